"""One model over two GPUs."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from driver import Driver
from sizes import ARTIFACT, check_batches, job, l2

from shared.errors import EngineDied
from support import assert_gone
from worker.engines.transformers_engine import TransformersEngine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(300),
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]


@pytest.fixture(scope="module")
def driver(load: Callable[..., Driver], model: Path) -> Driver:
    """An engine of two ranks."""
    return load(model, tensor_parallel="2", gpu_memory_utilization=0.3)


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


def test_artifacts_equal_transformers_on_one(
    driver: Driver, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but noise; vectors of another block lie far away. Prints what was measured."""
    nonces = range(256)
    ours = driver.engine.submit(job(*nonces, **ARTIFACT)).result()
    elsewhere = driver.engine.submit(job(*nonces, **ARTIFACT, block_hash="other")).result()
    exact = TransformersEngine(str(model), dtype="float32", device="cuda")
    apart = l2(ours, exact.submit(job(*nonces, **ARTIFACT)).result())
    exact.close()
    with capsys.disabled():
        mean, largest = statistics.mean(apart), max(apart)
        print(f"\ntwo ranks against float32: L2 {mean:.3g}, largest {largest:.3g}")
    assert mean < 0.1
    assert largest < 0.4
    assert statistics.mean(l2(ours, elsewhere)) > 1.0


@pytest.mark.parametrize("scheme", [{}, ARTIFACT], ids=["distance", "artifact"])
def test_a_nonce_does_not_feel_its_batch(driver: Driver, scheme: dict[str, Any]) -> None:
    together = driver.engine.submit(job(*range(33), **scheme)).result()
    check_batches(driver, together, **scheme)


def test_a_rank_that_fails_ends_the_engine(driver: Driver) -> None:
    """The last test of the module: the other rank would wait for ever, so all of vLLM ends."""
    children = psutil.Process().children(recursive=True)
    driver.call("poc_fail", "loose wire")
    with pytest.raises(EngineDied):
        driver.engine.submit(job(1)).result()
    driver.engine.close()
    assert_gone(children)
