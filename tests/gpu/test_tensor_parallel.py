"""One model over two GPUs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from driver import Driver
from sizes import job

from shared.errors import EngineDied
from shared.settings import load_settings
from support import assert_gone
from worker.engines.transformers_engine import TransformersEngine
from worker.engines.vllm.engine import VllmEngine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(300),
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]


@pytest.fixture(scope="module")
def driver(model: Path) -> Iterator[Driver]:
    """An engine of two ranks."""
    settings = load_settings(
        {},
        engine="vllm",
        model=str(model),
        max_model_len=1024,
        gpu_memory_utilization=0.3,
        tensor_parallel="2",
        vllm_options=json.dumps({"enable_prefix_caching": False}),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.engines.vllm.options.EXTENSION", "faulty_extension.FaultyExtension")
        engine = VllmEngine(settings)
    yield Driver(engine)
    engine.close()


def test_distances_equal_transformers_on_one(
    driver: Driver, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each rank makes the same inputs; what differs is noise. Prints what was measured."""
    assert driver.engine.info.profile["tensor_parallel"] == "2"
    nonces = range(512)
    ours = driver.engine.submit(job(*nonces)).result()
    exact = TransformersEngine(str(model), dtype="float32", device="cuda")
    theirs = exact.submit(job(*nonces)).result()
    exact.close()
    deltas = [a - b for a, b in zip(ours, theirs, strict=True)]
    noise, spread = statistics.pstdev(deltas), statistics.pstdev(theirs)
    with capsys.disabled():
        print(f"\ntwo ranks against float32: sd {noise:.2g}, distances spread by {spread:.2g}")
    assert noise < 0.1 * spread


def test_a_nonce_does_not_feel_its_batch(driver: Driver) -> None:
    together = driver.engine.submit(job(*range(33))).result()
    for batch in ([0], [32], range(7), range(26, 33), range(32)):
        alone = driver.engine.submit(job(*batch)).result()
        assert alone == [together[nonce] for nonce in batch]


def test_a_rank_that_fails_ends_the_engine(driver: Driver) -> None:
    """The last test of the module: the other rank would wait for ever, so all of vLLM ends."""
    children = psutil.Process().children(recursive=True)
    driver.call("poc_fail", "loose wire")
    with pytest.raises(EngineDied):
        driver.engine.submit(job(1)).result()
    driver.engine.close()
    assert_gone(children)
