"""The artifact scheme on a GPU in bfloat16: vLLM's weights, forwards of our own."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from driver import Driver
from sizes import ARTIFACT, SEQ_LEN, job, l2

from worker.engines.transformers_engine import TransformersEngine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(500),
]

NONCES, TOKENS = 256, 256 * SEQ_LEN


@pytest.fixture(scope="module")
def driver(load: Callable[..., Driver], model: Path) -> Driver:
    """An engine that is made ready for the scheme, with room for the largest tile."""
    return load(model, tile="256", scheme="artifact")


def vectors(driver: Driver, tile: int, *, prunes: bool = True) -> list[str]:
    """By a device that is prepared for `tile`; its forward is recorded on the way."""
    facts = driver.call("poc_prepare", tile, TOKENS, prunes, "artifact")
    assert facts["last_layer"] == ("pruned" if prunes else "whole")
    found: list[str] = []
    for start in range(0, NONCES, 96):
        nonces = range(start, min(start + 96, NONCES))
        driver.call("poc_launch", -1, asdict(job(*nonces, **ARTIFACT)))
        found += driver.call("poc_collect", -1)[0]
    return found


def test_its_bits_are_those_of_any_tile_and_batch(driver: Driver) -> None:
    expected = vectors(driver, 32)
    for tile in (64, 256):
        assert vectors(driver, tile) == expected
    driver.call("poc_prepare", 32, TOKENS, True, "artifact")
    for batch in ([0], range(7), range(26, 33)):
        alone = driver.engine.submit(job(*batch, **ARTIFACT)).result()
        assert alone == [expected[nonce] for nonce in batch]


def test_it_is_the_other_engines_but_for_noise(
    driver: Driver, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prints what was measured; another block is 1.4 away."""
    pruned, whole = vectors(driver, 32), vectors(driver, 32, prunes=False)
    driver.call("poc_prepare", 32, TOKENS, True, "artifact")
    found = {"vLLM pruned": pruned, "vLLM whole": whole}
    for dtype in ("bfloat16", "float32"):
        engine = TransformersEngine(str(model), dtype=dtype, device="cuda")
        found[f"transformers {dtype}"] = engine.submit(job(*range(NONCES), **ARTIFACT)).result()
        engine.close()
    exact = found["transformers float32"]
    with capsys.disabled():
        print()
        for one, other in (
            ("vLLM pruned", "vLLM whole"),
            ("vLLM pruned", "transformers bfloat16"),
            ("vLLM pruned", "transformers float32"),
            ("vLLM whole", "transformers float32"),
            ("transformers bfloat16", "transformers float32"),
        ):
            apart = l2(found[one], found[other])
            print(f"  {one} / {other}: L2 {statistics.mean(apart):.3g}, largest {max(apart):.3g}")
    assert statistics.mean(l2(pruned, exact)) < 0.1
    assert max(l2(pruned, exact)) < 0.4
    elsewhere = driver.engine.submit(job(*range(NONCES), **ARTIFACT, block_hash="other")).result()
    assert statistics.mean(l2(pruned, elsewhere)) > 1.0


def test_rounds_of_both_schemes_take_turns(driver: Driver) -> None:
    """Neither leaves anything in the other's forward."""
    driver.call("poc_prepare", 32, TOKENS, True, "artifact")
    distances = driver.engine.submit(job(*range(64))).result()
    artifacts = driver.engine.submit(job(*range(64), **ARTIFACT)).result()
    for _ in range(3):
        assert driver.engine.submit(job(*range(64))).result() == distances
        assert driver.engine.submit(job(*range(64), **ARTIFACT)).result() == artifacts
    driver.engine.submit(job(*range(64), **ARTIFACT, block_hash="other")).result()
    assert driver.engine.submit(job(*range(64), **ARTIFACT)).result() == artifacts


def test_live_pages_stay_as_they_are(driver: Driver) -> None:
    _, _, changed = driver.call("poc_compare_pages", asdict(job(*range(64), **ARTIFACT)))
    assert not changed
