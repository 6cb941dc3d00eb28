"""Whoever waits for a job, and how long its room is kept. Here no worker ends it, or takes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Self, cast

import pytest

from calls import JOB
from shared.client import AsyncPoCClient
from shared.gateway import in_time, jobs
from shared.gateway.deployed import Deployed, Refused
from shared.gateway.jobs import QUEUED_S, SENDING_S, Jobs
from shared.gateway.messages import GenerateBody
from shared.settings import load_settings
from shared.store import Store
from shared.store.connection import Client
from shared.store.keys import Keys

pytestmark = pytest.mark.usefixtures("worker")


class Line:
    """A client whose commands are taken, if they are, and never end."""

    def __init__(self, *, taken: bool) -> None:
        self.taken, self.sent, self.followed = taken, asyncio.Event(), 0

    def within(self, _: float) -> Self:
        return self

    async def validate_batch(self, *_: Any) -> Self:
        self.sent.set()
        if not self.taken:
            await asyncio.Event().wait()
        return self

    async def wait(self) -> None:
        self.followed += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.followed -= 1


async def stays() -> None:
    """A caller who waits however long it takes."""
    await asyncio.Event().wait()


@pytest.fixture
def asked() -> GenerateBody:
    return GenerateBody.model_validate(JOB | {"wait": True})


@pytest.fixture
def over(store: Store) -> Callable[[Line], Jobs]:
    """Makes jobs over a line."""
    settings = load_settings({}, namespace="test")

    def make(line: Line) -> Jobs:
        return Jobs(settings, store, Deployed(settings, store), cast(AsyncPoCClient, line))

    return make


def answer(
    of: Jobs, asked: GenerateBody, hangs_up: Callable[[], Coroutine[Any, Any, None]] = stays
) -> asyncio.Task[dict[str, Any]]:
    """What a caller is told, as a request of its own."""

    async def ask() -> dict[str, Any]:
        in_time.begin()
        return await of.compute(asked, hangs_up)

    return asyncio.create_task(ask())


def test_who_hangs_up_is_waited_with_for_no_longer(
    over: Callable[[Line], Jobs], asked: GenerateBody
) -> None:
    """The server counts whoever waits, with and without a connection."""

    async def run() -> None:
        line, gone = Line(taken=True), asyncio.Event()

        async def hangs_up() -> None:
            await gone.wait()

        asks = answer(over(line), asked, hangs_up)
        await line.sent.wait()
        await asyncio.sleep(0.05)
        assert line.followed == 1
        gone.set()
        assert (await asks)["status"] == "queued"
        await asyncio.sleep(0)
        assert line.followed == 0

    asyncio.run(run())


def test_when_the_process_ends_whoever_waits_is_told_the_id(
    over: Callable[[Line], Jobs], asked: GenerateBody
) -> None:
    async def run() -> None:
        line = Line(taken=True)
        of = over(line)
        asks = answer(of, asked)
        await line.sent.wait()
        await asyncio.sleep(0.05)
        of.end()
        told = await asks
        assert (told["status"], told["queued_count"]) == ("queued", len(asked.nonces))

    asyncio.run(run())


def test_when_the_process_ends_a_job_that_redis_may_not_have_has_no_id(
    over: Callable[[Line], Jobs], asked: GenerateBody
) -> None:
    async def run() -> None:
        line = Line(taken=False)
        of = over(line)
        asks = answer(of, asked)
        await line.sent.wait()
        of.end()
        with pytest.raises(Refused) as refused:
            await asks
        assert refused.value.status == 503
        assert "request_id" not in refused.value.body

    asyncio.run(run())


def test_room_for_a_job_is_kept_for_long_only_once_it_was_sent(
    over: Callable[[Line], Jobs],
    asked: GenerateBody,
    redis: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A gateway that is killed meanwhile leaves room for others soon."""
    monkeypatch.setattr(jobs, "ANSWER_S", 0.3)

    def kept_for() -> float:
        seconds, micros = redis.time()
        until = max(
            score for _, score in redis.zrange(Keys("test")("reserved"), 0, -1, withscores=True)
        )
        return float(until / 1000 - seconds - micros / 1e6)

    async def run() -> None:
        line = Line(taken=False)
        asks = answer(over(line), asked)
        await line.sent.wait()
        assert 0 < kept_for() <= SENDING_S
        await asyncio.sleep(0.6)
        assert SENDING_S < kept_for() <= QUEUED_S
        asks.cancel()

    asyncio.run(run())
