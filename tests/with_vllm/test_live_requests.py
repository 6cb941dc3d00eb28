"""Rounds beside requests: what vLLM answers stays as it was, and rounds stay as they are."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from driver import Driver, job

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(300),
]

#: Three requests of 40 + 80 tokens take 12 of the 23 blocks that there are, and a batch that writes
#: live pages writes blocks 1 to 8.
PROMPTS = [[(7 * i + 3 * n) % 160 for i in range(40)] for n in range(3)]
ANSWER = 80


async def _answers(llm: Any) -> list[list[int]]:
    """The greedy continuation of each prompt, all at the same time."""
    from vllm import SamplingParams

    sampling = SamplingParams(
        temperature=0, max_tokens=ANSWER, ignore_eos=True, detokenize=False, min_tokens=ANSWER
    )

    async def answer(number: int) -> list[int]:
        prompt = {"prompt_token_ids": PROMPTS[number]}
        last: list[int] = []
        async for output in llm.generate(prompt, sampling, request_id=f"r{number}-{id(prompt)}"):
            last = list(output.outputs[0].token_ids)
        return last

    return await asyncio.gather(*(answer(n) for n in range(len(PROMPTS))))


async def _beside_batches(driver: Driver, batches: list[Any]) -> list[list[int]]:
    """The answers while one batch after the other is computed; `batches` gets what they gave."""
    answers = asyncio.ensure_future(_answers(driver.llm))
    while not answers.done():
        pending = driver.engine.submit(job(*range(8)))
        batches.append(await asyncio.to_thread(pending.result))
    return await answers


def test_requests_and_batches_leave_each_other_alone(driver: Driver) -> None:
    """Given a pool of few blocks and requests in flight, tokens and distances don't change."""
    undisturbed = driver.run(_answers(driver.llm))
    assert all(len(tokens) == ANSWER for tokens in undisturbed)
    expected = driver.distances(*range(8))

    batches: list[Any] = []
    while len(batches) < 10:  # how many fit beside the requests is the machine's affair
        assert driver.run(_beside_batches(driver, batches)) == undisturbed
    assert all(each == expected for each in batches)


def test_a_forward_on_live_pages_would_be_noticed(driver: Driver) -> None:
    """The control: without the swap the same test sees other tokens.

    Not each time: a batch may write a page that its request has not filled yet.
    """
    undisturbed = driver.run(_answers(driver.llm))
    driver.call("poc_write_live_pages")
    assert any(driver.run(_beside_batches(driver, [])) != undisturbed for _ in range(20))


def test_a_batch_that_fails_restores_the_live_pages(driver: Driver) -> None:
    """Also while requests are in flight."""
    undisturbed = driver.run(_answers(driver.llm))

    async def beside_failures() -> list[list[int]]:
        answers = asyncio.ensure_future(_answers(driver.llm))
        while not answers.done():
            pending = driver.engine.submit(job(1))
            failure = await asyncio.to_thread(_failure, pending)
            assert "loose wire" in failure
        return await answers

    driver.call("poc_fail", "loose wire")
    assert driver.run(beside_failures()) == undisturbed


def _failure(pending: Any) -> str:
    try:
        pending.result()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is asked for
        return str(error)
    return "none"
