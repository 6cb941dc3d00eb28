"""The last layer for the last positions only, on a GPU in bfloat16."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from driver import Driver
from sizes import SEQ_LEN, check_batches, job

from worker.engines.transformers_engine import TransformersEngine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(500),
]

NONCES, TOKENS = 512, 256 * SEQ_LEN


@pytest.fixture(scope="module")
def driver(load: Callable[..., Driver], model: Path) -> Driver:
    """An engine with room for the largest tile."""
    return load(model, tile="256")


def distances(driver: Driver, tile: int, *, prunes: bool = True) -> list[float]:
    """By a device that is prepared for `tile`; its forward is recorded on the way."""
    facts = driver.call("poc_prepare", tile, TOKENS, prunes)
    assert facts["last_layer"] == ("pruned" if prunes else "whole")
    found: list[float] = []
    for start in range(0, NONCES, 96):
        nonces = range(start, min(start + 96, NONCES))
        driver.call("poc_launch", -1, asdict(job(*nonces)))
        found += driver.call("poc_collect", -1)[0]
    return found


def test_it_is_pruned(driver: Driver) -> None:
    """And on Hopper the MLPs' first products are one kernel with their activations."""
    profile = driver.engine.info.profile
    is_hopper = torch.cuda.get_device_capability() == (9, 0)
    assert (profile["last_layer"], profile["mlp"]) == (
        "pruned",
        "fused" if is_hopper else "separate",
    )


def test_its_bits_are_those_of_any_tile(driver: Driver) -> None:
    """32 to 256 sequences in a forward, recorded or not, and what else is in a batch."""
    expected = distances(driver, 32)
    for tile in (64, 128, 256):
        assert distances(driver, tile) == expected
    driver.call("poc_prepare", 32, TOKENS)
    check_batches(driver, expected)


def test_it_is_recorded_bit_for_bit(driver: Driver) -> None:
    driver.call("poc_prepare", 32, TOKENS)
    recorded = driver.engine.submit(job(*range(128))).result()
    assert driver.call("poc_record", False), "it was not recorded"
    assert driver.engine.submit(job(*range(128))).result() == recorded
    driver.call("poc_record", True)


def test_it_differs_from_the_whole_one_by_noise(
    driver: Driver, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two honest forwards in bfloat16 differ by 3e-5 where distances spread by 1.8e-3.

    So pruned is as near to float32 as whole is. Prints what was measured.
    """
    pruned, whole = distances(driver, 32), distances(driver, 32, prunes=False)
    driver.call("poc_prepare", 32, TOKENS)
    reference = TransformersEngine(str(model), dtype="float32", device="cuda")
    exact = reference.submit(job(*range(NONCES))).result()
    reference.close()
    spread = statistics.pstdev(exact)
    equal = sum(a == b for a, b in zip(pruned, whole, strict=True))
    with capsys.disabled():
        print(f"\ndistances spread by {spread:.2g}; pruned and whole: {equal} of {NONCES} equal")
        noise = {}
        for name, left, right in (
            ("pruned against whole", pruned, whole),
            ("pruned against float32", pruned, exact),
            ("whole against float32", whole, exact),
        ):
            deltas = [a - b for a, b in zip(left, right, strict=True)]
            noise[name] = statistics.pstdev(deltas)
            print(f"  {name:24} sd {noise[name]:.2g}, largest {max(map(abs, deltas)):.2g}")
    assert noise["pruned against whole"] < 0.05 * spread
    assert noise["pruned against float32"] < 1.3 * noise["whole against float32"]
