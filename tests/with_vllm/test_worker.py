"""Real `poc worker` processes with vLLM: whole rounds, requests beside them, and their ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from driver import job
from prometheus_client.parser import text_string_to_metric_families
from real_worker import Worker, add_tokenizer
from small import OPTIONS

from caddy import proxy
from calls import BLOCK, POW
from serving_api import serving_gateway
from shared.client import PoCClient
from shared.config import PoCConfig
from shared.settings import Settings, load_settings
from shared.store import Store
from support import assert_gone, wait_until
from worker.children import end
from worker.engines.transformers_engine import TransformersEngine
from worker.tools.make_model import make_model

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.functional,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(300),
]

#: A tiny vLLM on the CPU.
SMALL = {
    "POC_TILE": "4",
    "POC_MAX_MODEL_LEN": "128",
    "POC_VLLM_OPTIONS": json.dumps(OPTIONS | {"num_gpu_blocks_override": 64}),
    "OMP_NUM_THREADS": "1",
}
CONFIG = PoCConfig(
    block_hash="b", block_height=1, public_key="k", r_target=2, batch_size=8, seq_len=40
)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a tokenizer of 160 words."""
    directory = tmp_path_factory.mktemp("served") / "model"
    make_model(directory, head_dim=32, vocab_size=160, max_seq_len=256)
    add_tokenizer(directory, 160)
    return directory


@pytest.fixture
def settings(redis_url: str) -> Settings:
    """A namespace without history."""
    return load_settings({}, redis_url=redis_url, namespace="test", lease_s="5", heartbeat_s="0.5")


@pytest.fixture
def start(settings: Settings, model_dir: Path, tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Start a worker; it is ended after the test."""
    workers: list[Worker] = []

    def start(**more: str) -> Worker:
        workers.append(Worker(settings, model_dir, tmp_path, **SMALL | more))
        return workers[-1]

    yield start
    for worker in workers:
        end(worker.process, timeout=60)


def counted(metrics: str, name: str) -> float:
    """The sum of a counter's series."""
    families = text_string_to_metric_families(metrics)
    return sum(each.value for family in families for each in family.samples if each.name == name)


def test_a_whole_round_beside_requests(
    start: Callable[..., Worker], settings: Settings, model_dir: Path
) -> None:
    """Given a worker that serves, requests are answered alike before a round and while it runs.

    vLLM's own metrics count them, and no batch of the round. The round's distances are those of
    transformers, the functional check passes again and again, and the end leaves no process.
    """
    worker = start(POC_SERVE_PORT="0", POC_CHECK_EVERY_S="0.5")
    worker.wait_until_ready()
    address = worker.served_at
    told = f"{address.removesuffix('/v1')}/metrics"
    processes = worker.below()
    # A Ctrl-C at the worker's terminal does not reach them.
    assert {os.getsid(each.pid) for each in processes}.isdisjoint({os.getsid(worker.process.pid)})

    def ask(_: int = 0) -> str:
        body = {"model": str(model_dir), "prompt": "w1 w2 w3", "max_tokens": 60, "temperature": 0}
        answer = httpx.post(f"{address}/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])

    before = ask()
    client, store = PoCClient(settings), Store(settings)
    try:
        client.generate(CONFIG)
        with ThreadPoolExecutor(3) as pool:
            during = list(pool.map(ask, range(6)))
        assert during == [before] * 6
        wait_until(lambda: store.status().total_checked >= 64, 60, "some batches")
        assert counted(httpx.get(told).text, "vllm:request_success_total") == 7
        status = client.stop()
        nonces, distances = store.rounds.found(status.round_id, 0, 64)
    finally:
        client.close()
        store.close()
    other = TransformersEngine(str(model_dir), device="cpu")
    expected = other.submit(job(*nonces)).result()
    other.close()
    assert sorted(nonces)[:48] == list(range(48))
    assert distances == pytest.approx(expected, abs=1e-5)

    assert end(worker.process, timeout=60) == 0, worker.log
    assert_gone(processes)
    assert "Traceback" not in worker.log


@pytest.mark.skipif(not shutil.which("caddy"), reason="caddy is not installed")
def test_an_answer_goes_on_while_a_round_refuses_others(
    start: Callable[..., Worker], settings: Settings, model_dir: Path, tmp_path: Path
) -> None:
    """Given the proxy and a gateway that refuses chat in rounds, an open answer ends whole."""
    worker = start(POC_SERVE_PORT="0", POC_SCHEME="artifact")
    worker.wait_until_ready()
    at = httpx.URL(worker.served_at)
    asked = {"model": str(model_dir), "prompt": "w1 w2 w3", "max_tokens": 100, "temperature": 0}
    task = {**BLOCK, "node_id": 0, "node_count": 1, "params": {"model": "m", "seq_len": 16}}
    variables = {"POC_GATE_CHAT": "true", "POC_GATEWAY_MODEL": "m"}
    with (
        serving_gateway(settings.redis_url, tmp_path / "gateway.log", **variables) as (_, url),
        proxy(httpx.URL(url).port or 0, tmp_path, f"{at.host}:{at.port}") as client,
    ):
        alone = client.post("/v1/completions", json=asked, timeout=60).json()
        with client.stream("POST", "/v1/completions", json=asked | {"stream": True}) as answer:
            lines = (line for line in answer.iter_lines() if line)
            said = [next(lines)]
            begun = client.post(f"{POW}/init/generate", json=task)
            assert begun.status_code == 200, begun.text
            refused = client.post("/v1/completions", json=asked)
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
            assert refused.json()["error"] == "poc_generation_active"
            said.extend(lines)
        assert said.pop() == "data: [DONE]"
        pieces = [json.loads(line.removeprefix("data: "))["choices"][0]["text"] for line in said]
        assert "".join(pieces) == alone["choices"][0]["text"]
        assert client.post(f"{POW}/stop").json()["pow_status"] == {"status": "STOPPED"}
        assert client.post("/v1/completions", json=asked, timeout=60).status_code == 200


def test_a_key_for_what_it_serves(start: Callable[..., Worker], model_dir: Path) -> None:
    """Given VLLM_API_KEY, who does not send it gets nothing below /v1, and no log has it.

    vLLM guards nothing else: /invocations generates for everybody.
    """
    key = "a-key-0123456789"
    worker = start(POC_SERVE_PORT="0", VLLM_API_KEY=key)
    worker.wait_until_ready()
    body = {"model": str(model_dir), "prompt": "w1 w2 w3", "max_tokens": 3}

    def ask(url: str, **headers: str) -> int:
        return httpx.post(url, json=body, headers=headers, timeout=60).status_code

    v1 = worker.served_at
    assert ask(f"{v1}/completions") == 401
    assert ask(f"{v1}/completions", Authorization=f"Bearer {key}x") == 401
    assert httpx.get(f"{v1}/models").status_code == 401
    assert ask(f"{v1}/completions", Authorization=f"Bearer {key}") == 200
    assert ask(f"{v1.removesuffix('/v1')}/invocations") == 200
    assert key not in worker.log


def test_a_worker_that_is_killed_while_it_loads(start: Callable[..., Worker]) -> None:
    """Whenever that is, nothing of it stays: from the first process on, and with all of them.

    Also not of one that hangs: a rank stands still here.
    """
    worker = start()
    wait_until(worker.below, 120, "the first process of vLLM")
    processes = worker.below()
    os.kill(worker.process.pid, signal.SIGKILL)
    assert_gone(processes)

    worker = start()
    wait_until(lambda: "Loading safetensors" in worker.log, 120, "the model to be loaded")
    processes = worker.below()
    assert len(processes) >= 2  # on a CPU the engine's process has one of its own for the rank
    for process in processes:
        process.suspend()
    os.kill(worker.process.pid, signal.SIGKILL)
    assert_gone(processes)


def test_a_worker_that_is_told_to_end_while_it_loads(start: Callable[..., Worker]) -> None:
    """It does so at once, with status 0, and leaves nothing."""
    worker = start()
    wait_until(lambda: "Loading safetensors" in worker.log, 120, "the model to be loaded")
    processes = worker.below()
    worker.process.terminate()
    assert worker.process.wait(10) == 0
    assert_gone(processes)


def test_a_worker_that_is_killed_at_work(start: Callable[..., Worker], settings: Settings) -> None:
    """Nothing of it stays, and its claims are free when the lease ends."""
    worker = start()
    worker.wait_until_ready()
    client, store = PoCClient(settings), Store(settings)
    try:
        client.generate(CONFIG)
        wait_until(lambda: store.status().total_checked >= 16, 60, "some batches")
        processes = worker.below()
        os.kill(worker.process.pid, signal.SIGKILL)
        assert_gone(processes)
    finally:
        client.close()
        store.close()


def test_a_vllm_that_dies_ends_the_worker(start: Callable[..., Worker], settings: Settings) -> None:
    """With status 3, its claims given back and no process left, so that another may be started."""
    worker = start()
    worker.wait_until_ready()
    client, store = PoCClient(settings), Store(settings)
    try:
        client.generate(CONFIG)
        wait_until(lambda: store.status().total_checked >= 16, 60, "some batches")
        processes = worker.below()
        processes[-1].kill()
        assert worker.process.wait(60) == 3, worker.log
        assert_gone(processes)
        assert "vLLM has ended" in worker.log
        wait_until(lambda: not store.workers.listing(), 10, "the worker to be gone")
    finally:
        client.close()
        store.close()


def test_a_vllm_that_dies_idle_ends_the_worker(
    start: Callable[..., Worker], settings: Settings
) -> None:
    """Given no work, then all the same, and the status says why."""
    worker = start()
    worker.wait_until_ready()
    processes = worker.below()
    processes[-1].kill()
    assert worker.process.wait(60) == 3, worker.log
    assert_gone(processes)
    with closing(Store(settings)) as store:
        assert store.workers.listing() == []
        assert store.workers.incidents()[0].reason.startswith("vLLM has ended")


def test_a_vllm_that_hangs_ends_the_worker(
    start: Callable[..., Worker], settings: Settings
) -> None:
    """With status 3, its claims given back, and no process left that hangs on in the device."""
    worker = start(POC_BATCH_DEADLINE="8")
    worker.wait_until_ready()
    with closing(PoCClient(settings)) as client, closing(Store(settings)) as store:
        client.generate(CONFIG)
        wait_until(lambda: store.status().total_checked >= 16, 60, "some batches")
        processes = worker.below()
        for each in processes:
            each.suspend()
        assert worker.process.wait(60) == 3, worker.log
        assert_gone(processes)
        assert "no progress for 8 s (POC_BATCH_DEADLINE)" in worker.log
        assert store.workers.listing() == []


def test_a_model_that_cant_be_loaded(
    start: Callable[..., Worker], settings: Settings, model_dir: Path
) -> None:
    """One line that says why, status 2, no worker and no process."""
    worker = start(POC_MAX_MODEL_LEN="4096")
    seen: dict[int, Any] = {}
    while worker.process.poll() is None:
        try:
            seen |= {each.pid: each for each in worker.below()}
        except psutil.NoSuchProcess:
            break
        time.sleep(0.1)
    assert worker.process.wait(120) == 2, worker.log
    assert "the worker can't start" in worker.log
    assert "4096" in worker.log.partition("the worker can't start")[2]
    assert_gone(list(seen.values()))
