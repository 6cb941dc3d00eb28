"""The last layer for the last positions only, in the forward that vLLM compiles."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from driver import Driver, faulty, job
from small import settings_of

from shared.errors import EngineError
from worker.engines.vllm.engine import VllmEngine

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(600),
]

COMPILED = {"enforce_eager": False}
TOKENS = 8192


def distances(driver: Driver, tile: int, seq_len: int, *, prunes: bool = True) -> list[float]:
    """Of 33 nonces, by a device that is prepared for it."""
    facts = driver.call("poc_prepare", tile, TOKENS, prunes)
    assert facts["last_layer"] == ("pruned" if prunes else "whole")
    driver.call("poc_launch", -1, asdict(job(*range(33), seq_len=seq_len)))
    found: list[float] = driver.call("poc_collect", -1)[0]
    return found


@pytest.mark.parametrize("architecture", ["llama", "mistral", "phi3", "qwen2", "qwen3"])
def test_pruned_equals_whole(
    architecture: str, checkpoint: Callable[[str], Path], load: Callable[..., VllmEngine]
) -> None:
    """In float32; the same bits in any tile, and for one nonce alone."""
    engine = load(checkpoint(architecture), COMPILED)
    assert engine.info.profile["last_layer"] == "pruned"
    driver = Driver(engine)
    together = driver.distances(*range(33))
    for batch in ([0], [32], range(7), range(26, 33)):
        assert driver.distances(*batch) == [together[nonce] for nonce in batch]
    for tile in (1, 7, 33, 40):
        assert distances(driver, tile, 40) == together
    for seq_len in (1, 5, 40, 128):
        whole = distances(driver, 4, seq_len, prunes=False)
        assert distances(driver, 4, seq_len) == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("architecture", ["gemma3_text", "qwen3_moe"])
def test_a_layer_of_another_kind_stays_whole(
    architecture: str, checkpoint: Callable[[str], Path], load: Callable[..., VllmEngine]
) -> None:
    """And the profile says so."""
    profile = load(checkpoint(architecture), COMPILED).info.profile
    assert (profile["forward"], profile["last_layer"]) == ("compiled", "whole")


@pytest.fixture(scope="module")
def compiled(checkpoint: Callable[[str], Path]) -> Iterator[Driver]:
    """One compiled Qwen3 engine."""
    engine = faulty(settings_of(checkpoint("qwen3"), COMPILED))
    yield Driver(engine)
    engine.close()


@pytest.mark.parametrize(("sequences", "rows"), [(1, 32), (4, 32), (32, 32), (33, 64)])
def test_no_other_row_is_computed(sequences: int, rows: int, compiled: Driver) -> None:
    """As many as there are sequences, filled up to a number that a tile does not change."""
    compiled.call("poc_prepare", 40, TOKENS)
    assert compiled.call("poc_rows", sequences) == rows


@pytest.mark.parametrize("scale", [1.2, float("nan"), None])
def test_a_forward_that_is_not_the_models_is_not_taken(
    scale: float | None, compiled: Driver
) -> None:
    """Whatever a compiler makes of a model: then the last layer stays whole, and rounds go on."""
    expected = distances(compiled, 4, 40, prunes=False)
    compiled.call("poc_prune_badly", scale)
    try:
        assert compiled.call("poc_prepare", 4, TOKENS)["last_layer"] == "whole"
        assert compiled.distances(*range(33)) == expected
    finally:
        compiled.call("poc_mend")


@pytest.mark.parametrize("scale", [1.2, None])
def test_without_a_fused_mlp_it_is_pruned_all_the_same(
    scale: float | None, compiled: Driver
) -> None:
    """Whatever is wrong with the kernel, and the profile says what computes in its place."""
    expected = distances(compiled, 4, 40)
    compiled.call("poc_fuse_badly", scale)
    try:
        facts = compiled.call("poc_prepare", 4, TOKENS)
        assert (facts["last_layer"], facts["mlp"]) == ("pruned", "separate")
        assert compiled.distances(*range(33)) == expected
    finally:
        compiled.call("poc_mend")


def test_a_scheme_that_finds_no_memory_waits_for_it(compiled: Driver) -> None:
    """Its forward is that of the profile, or there is none: another one has other numbers."""
    compiled.call("poc_prepare", 4, TOKENS)
    expected = compiled.distances(*range(8))
    compiled.call("poc_make_nothing", "pruned", True)
    try:
        with pytest.raises(EngineError, match=r"scheme distance can.t be computed .*9 GiB"):
            compiled.distances(*range(8))
    finally:
        compiled.call("poc_mend")
    assert compiled.distances(*range(8)) == expected


def test_requests_do_not_meet_it(compiled: Driver) -> None:
    """Given batches on our forward, vLLM's own one answers as it did."""
    from vllm import SamplingParams

    async def answer(number: int) -> list[int]:
        sampling = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, detokenize=False)
        prompt: Any = {"prompt_token_ids": [(7 * i) % 160 for i in range(40)]}
        last: list[int] = []
        async for output in compiled.llm.generate(prompt, sampling, request_id=f"r{number}"):
            last = list(output.outputs[0].token_ids)
        return last

    async def beside() -> list[int]:
        answering = asyncio.ensure_future(answer(1))
        while not answering.done():
            pending = compiled.engine.submit(job(*range(8)))
            batches.append(await asyncio.to_thread(pending.result))
        return await answering

    assert compiled.call("poc_prepare", 4, TOKENS)["last_layer"] == "pruned"
    batches: list[list[float]] = []
    before, expected = compiled.run(answer(0)), compiled.distances(*range(8))
    assert compiled.run(beside()) == before
    assert batches
    assert all(each == expected for each in batches)
