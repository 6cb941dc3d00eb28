"""The vLLM engine on a GPU, against transformers there, and beside live requests."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from driver import Driver
from sizes import SEQ_LEN, VOCAB_SIZE, check_batches, job
from transformers import AutoConfig

from shared.errors import EngineDied, EngineError
from support import assert_gone
from worker.engines import Job
from worker.engines.transformers_engine import TransformersEngine
from worker.engines.vllm.memory import reserve_bytes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(500),
]


@pytest.fixture(scope="module")
def driver(load: Callable[..., Driver], model: Path) -> Driver:
    """With a few blocks only, so that whatever writes into live ones hits a request's."""
    return load(model, {"num_gpu_blocks_override": 64}, tile="32", gpu_memory_utilization=0.3)


def test_it_is_the_compiled_forward_on_the_gpu(driver: Driver) -> None:
    profile = driver.engine.info.profile
    assert (profile["device"], profile["forward"], profile["dtype"]) == (
        "cuda",
        "compiled",
        "bfloat16",
    )


def test_distances_equal_transformers(driver: Driver, model: Path) -> None:
    """In bfloat16, against float32: what differs is noise, a small part of how distances spread."""
    nonces = range(256)
    ours = driver.engine.submit(job(*nonces)).result()
    exact = TransformersEngine(str(model), dtype="float32", device="cuda")
    theirs = exact.submit(job(*nonces)).result()
    exact.close()
    deltas = [a - b for a, b in zip(ours, theirs, strict=True)]
    # sd measured on an H200: 6e-5, with distances that spread by 4e-3.
    assert statistics.pstdev(deltas) < 0.1 * statistics.pstdev(theirs)
    assert max(map(abs, deltas)) < 1e-3


def test_a_nonce_does_not_feel_its_batch(driver: Driver) -> None:
    """The same bits alone, beside 6, 31 or 32 others: tiles have a constant shape."""
    together = driver.engine.submit(job(*range(33))).result()
    check_batches(driver, together)


def test_a_recorded_forward_gives_what_the_plain_one_gives(driver: Driver) -> None:
    """Bit for bit, however often it is replayed, and after inputs of another length."""
    jobs = [job(*range(start, start + 32)) for start in (0, 32, 64)]
    recorded = [driver.engine.submit(each).result() for each in jobs]
    driver.engine.submit(Job("b", "k", (1,), 100)).result()
    assert [driver.engine.submit(each).result() for each in jobs] == recorded
    assert driver.call("poc_record", False), "it was not recorded"
    plain = [driver.engine.submit(each).result() for each in jobs]
    assert driver.call("poc_record", True) is False, "it was recorded all the same"
    assert plain == recorded


@pytest.mark.parametrize("seq_len", [5, 100, SEQ_LEN])
def test_keys_and_values_need_no_pages(seq_len: int, driver: Driver) -> None:
    """Read as they are computed, they give what they give by way of pages: to the last bit.

    So they do where an earlier nonce left NaN in the pages, also behind the end of a last block.
    """
    one = job(*range(40), seq_len=seq_len)
    direct = driver.engine.submit(one).result()
    assert driver.call("poc_direct", False) == "direct", "no page was to be needed"
    try:
        assert driver.engine.submit(one).result() == direct
        driver.call("poc_poison_scratch")
        assert driver.engine.submit(one).result() == direct
    finally:
        driver.call("poc_direct", True)


def test_forwards_are_recorded(driver: Driver) -> None:
    """With the third tile of a shape."""
    driver.engine.submit(job(*range(96))).result()
    assert driver.call("poc_record", True) is True


def test_two_jobs_in_flight_keep_the_device_busy(driver: Driver) -> None:
    """The device's own clock says that it computed nearly all the time."""
    engine = driver.engine
    pending = [engine.submit(job(*range(256)))]
    pending[0].result()
    began, busy = time.perf_counter(), engine.busy_seconds
    pending = [engine.submit(job(*range(256))) for _ in range(2)]
    for _ in range(20):
        pending.append(engine.submit(job(*range(256))))
        pending.pop(0).result()
    for last in pending:
        last.result()
    share = (engine.busy_seconds - busy) / (time.perf_counter() - began)
    assert share > 0.9


def test_a_batch_leaves_the_pages_of_live_requests_as_they_are(driver: Driver) -> None:
    """Bit for bit, while requests are in flight in a pool of few blocks, batch after batch."""
    expected = driver.engine.submit(job(*range(32))).result()

    async def beside_requests() -> list[Any]:
        answers = asyncio.ensure_future(_answers(driver.llm))
        compare = partial(driver.engine._owner.call, "poc_compare_pages", asdict(job(*range(32))))
        seen = []
        while not answers.done():
            seen += await compare()
        await answers
        return seen

    seen = driver.run(beside_requests())
    assert len(seen) >= 5, "the batches were to take turns with the requests' steps"
    assert all(distances == expected for distances, _, _ in seen)
    assert any(used for _, used, _ in seen), "no request was in flight"
    assert not any(changed for _, _, changed in seen)


def test_a_forward_on_live_pages_would_be_noticed(driver: Driver) -> None:
    """The control: without the swap the same comparison finds changed pages.

    Given sequences of one block each: longer ones would write past the pool, which a GPU may not
    survive.
    """
    driver.call("poc_write_live_pages")
    try:
        short = job(*range(32), seq_len=16)
        _, _, changed = driver.call("poc_compare_pages", asdict(short))
    finally:
        driver.call("poc_mend")
    assert changed


async def _answers(llm: Any) -> list[list[int]]:
    """The greedy continuation of three prompts, all at the same time."""
    from vllm import SamplingParams

    sampling = SamplingParams(
        temperature=0, max_tokens=200, min_tokens=200, ignore_eos=True, detokenize=False
    )

    async def answer(number: int) -> list[int]:
        tokens = [(7 * i + 3 * number) % VOCAB_SIZE for i in range(100)]
        last: list[int] = []
        request = f"r{number}-{id(tokens)}"
        async for output in llm.generate({"prompt_token_ids": tokens}, sampling, request):
            last = list(output.outputs[0].token_ids)
        return last

    return await asyncio.gather(*(answer(number) for number in range(3)))


def test_jobs_need_no_more_memory_than_was_reserved(driver: Driver, model: Path) -> None:
    """By the GPU's own count: scratch, recording and all else, with two jobs in flight."""
    reserve = reserve_bytes(
        AutoConfig.from_pretrained(model), tile=32, tokens=32 * SEQ_LEN, ranks=1, width=2
    )
    scratch = driver.call("poc_prepare", 32, 8192)["scratch_bytes"]
    before = driver.call("poc_free_memory", True)
    for pending in [driver.engine.submit(job(*range(128))) for _ in range(2)]:
        pending.result()
    assert driver.call("poc_record", True) is True, "the recording was to be counted"
    used = before - driver.call("poc_free_memory", False)
    assert used > 0
    assert scratch + used <= reserve, f"{scratch >> 20} + {used >> 20} of {reserve >> 20} MiB"


def test_out_of_memory_halves_the_tile(driver: Driver) -> None:
    """Given memory for half of a tile at most, the job is done all the same, and later ones."""
    nonces = range(32)
    expected = driver.engine.submit(job(*nonces)).result()
    driver.call("poc_record", False)
    driver.call("poc_shapes")
    try:
        for megabytes in range(40, 1000, 20):
            driver.call("poc_leave_memory", megabytes << 20)
            with contextlib.suppress(EngineError):  # not even for a half
                halved = driver.engine.submit(job(*nonces)).result()
                break
        tiles = [shape[0] for shape in driver.call("poc_shapes")]
        assert tiles[-2:] == [16, 16], f"{megabytes} MiB were enough for whole tiles: {tiles}"
        assert max(abs(a - b) for a, b in zip(halved, expected, strict=True)) < 1e-3
    finally:
        driver.call("poc_leave_memory", -1)
        driver.call("poc_mend")
    assert driver.engine.submit(job(*nonces)).result() == expected


def test_a_lost_gpu_ends_vllm(driver: Driver) -> None:
    """The last test of the module: no other batch can succeed, and no process is left."""
    children = psutil.Process().children(recursive=True)
    assert children
    driver.call("poc_lose_gpu")
    with pytest.raises(EngineDied):
        driver.engine.submit(job(1)).result()
    with pytest.raises(EngineDied):
        driver.engine.submit(job(1))
    driver.engine.close()
    assert_gone(children)
