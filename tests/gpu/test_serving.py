"""A real `poc worker` on a GPU whose vLLM serves requests while a round runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from real_worker import Worker, add_tokenizer
from sizes import VOCAB_SIZE

from shared.client import PoCClient
from shared.config import PoCConfig
from shared.data import ProofBatch
from shared.settings import Settings, load_settings
from shared.store import Store
from support import assert_gone, wait_until
from worker.children import end

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.vllm,
    pytest.mark.functional,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(400),
]

CONFIG = PoCConfig(block_hash="b", block_height=1, public_key="k", r_target=2, batch_size=32)
ENVIRONMENT = {
    "POC_SERVE_PORT": "0",
    "POC_MAX_MODEL_LEN": "1024",
    "POC_GPU_MEMORY_UTILIZATION": "0.3",
    "POC_VLLM_OPTIONS": json.dumps({"enable_prefix_caching": False}),
}


@pytest.fixture(scope="module")
def model(model: Path) -> Path:
    """With a tokenizer."""
    add_tokenizer(model, VOCAB_SIZE)
    return model


@pytest.fixture
def settings(redis_url: str) -> Settings:
    """A namespace without history."""
    return load_settings({}, redis_url=redis_url, namespace="test")


@pytest.fixture
def worker(settings: Settings, model: Path, tmp_path: Path) -> Iterator[Worker]:
    """A worker that serves its model."""
    worker = Worker(settings, model, tmp_path, **ENVIRONMENT)
    worker.wait_until_ready()
    yield worker
    end(worker.process, timeout=60)


def test_a_whole_round_beside_requests(worker: Worker, settings: Settings, model: Path) -> None:
    """Requests are answered in full while batches are; later the batches give the same bits."""
    address, processes = worker.served_at, worker.below()

    def ask(number: int) -> int:
        body = {"model": str(model), "prompt": f"w1 w{number}", "max_tokens": 100}
        body |= {"temperature": 0, "ignore_eos": True}
        answer = httpx.post(f"{address}/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["usage"]["completion_tokens"])

    client, store = PoCClient(settings, timeout=60), Store(settings)
    try:
        client.generate(CONFIG)
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(ask, range(24))) == [100] * 24
        wait_until(lambda: store.status().total_checked >= 640, 60, "some batches")
        status = client.stop()
        nonces, distances = store.rounds.found(status.round_id, 0, 640)
        assert sorted(nonces)[:576] == list(range(576))
        batch = ProofBatch.of(CONFIG, nonces, distances)
        verdict = client.validate_batch(batch, CONFIG).wait(timeout=60)
        assert verdict.dist == verdict.received_dist
    finally:
        client.close()
        store.close()
    assert end(worker.process, timeout=60) == 0, worker.log
    assert_gone(processes)
