"""One reader tells all who follow what is new, and nothing is kept for those who are slow."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import fakeredis
import pytest
from fastapi.sse import ServerSentEvent
from fastapi.testclient import TestClient

from shared.api import MAX_FOLLOWERS, create_app, events
from shared.api.events import Feed
from shared.errors import StoreUnavailable
from shared.overview import Overview, Sample
from shared.settings import load_settings
from shared.status import NodeStatus
from shared.store import Store

EVENTS = "/api/v1/pow/events"
#: Seconds that a test waits for what must come.
PATIENCE_S = 10


class Node:
    """What a feed reads; `fails` with a sentence while that is set."""

    def __init__(self) -> None:
        self.reads = 0
        self.overview = Overview(namespace="test", at=0, node=NodeStatus())
        self.fails = ""

    def read(self) -> Overview:
        """The node now: only its clock moves by itself."""
        self.reads += 1
        if self.fails:
            raise StoreUnavailable(self.fails)
        return self.overview.model_copy(update={"at": float(self.reads)})

    def change(self, **fields: Any) -> None:
        """Let the next look find something else."""
        self.overview = self.overview.model_copy(update=fields)

    async def looked_at(self, more: int = 2) -> None:
        """Wait until it was read again, and what was found was told."""
        until = self.reads + more
        while self.reads < until:  # noqa: ASYNC110 - the reads are in threads
            await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "EVERY_S", 0.001)


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def feed(node: Node) -> Feed:
    return Feed(node.read)


def run(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Play a scene, which may not take long."""
    asyncio.run(asyncio.wait_for(scene(), PATIENCE_S))


@contextlib.asynccontextmanager
async def following(feed: Feed) -> AsyncIterator[AsyncIterator[ServerSentEvent]]:
    """The events of one who follows."""
    with feed.follower():
        stream = feed.events()
        yield stream
        await stream.aclose()  # type: ignore[attr-defined]


async def told(stream: AsyncIterator[ServerSentEvent]) -> tuple[str | None, dict[str, Any]]:
    """The next event and its data."""
    event = await anext(stream)
    return event.event, json.loads(event.raw_data or "")


def test_the_first_event_is_the_overview(feed: Feed, node: Node) -> None:
    """Given somebody who has just come, then all fields are there."""

    async def scene() -> None:
        async with following(feed) as stream:
            event, data = await told(stream)
            assert (event, data["namespace"]) == ("overview", "test")
            assert Overview.model_validate(data) == node.overview.model_copy(
                update={"at": data["at"]}
            )

    run(scene)


def test_then_come_the_fields_that_changed(feed: Feed, node: Node) -> None:
    """And the clock with them; over the ones before they are the overview."""

    async def scene() -> None:
        async with following(feed) as stream:
            await told(stream)
            node.change(queue_length=3)
            event, data = await told(stream)
            assert event == "changes"
            assert data == {"at": data["at"], "queue_length": 3}

    run(scene)


def test_the_clock_alone_is_no_news(feed: Feed, node: Node) -> None:
    """Given a node that nothing happens to, it is read, and nothing is sent."""

    async def scene() -> None:
        async with following(feed) as stream:
            await told(stream)
            waiting = asyncio.ensure_future(anext(stream))
            await node.looked_at(20)
            node.change(outbox_oldest_seconds=9.0)
            await node.looked_at(20)
            assert not waiting.done()
            node.change(queue_length=1)
            assert (await waiting).event == "changes"

    run(scene)


def test_all_who_follow_share_one_reader(feed: Feed, node: Node) -> None:
    """Given a hundred, the store is read no more often than for one."""

    async def scene() -> None:
        async with contextlib.AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(following(feed)) for _ in range(100)]
            assert {(await told(stream))[0] for stream in streams} == {"overview"}
            before = node.reads
            node.change(queue_length=5)
            assert [(await told(stream))[1]["queue_length"] for stream in streams] == [5] * 100
            assert node.reads - before < 100

    run(scene)


def test_nobody_follows_and_nothing_is_read(feed: Feed, node: Node) -> None:
    """Given that the last one has gone, reading ends; who comes then begins anew."""

    async def scene() -> None:
        async with following(feed) as stream:
            await told(stream)
        await asyncio.sleep(0.05)
        before = node.reads
        await asyncio.sleep(0.05)
        assert node.reads == before
        async with following(feed) as stream:
            assert (await told(stream))[0] == "overview"
        assert node.reads > before

    run(scene)


def test_who_is_slow_misses_what_came_between(feed: Feed, node: Node) -> None:
    """Given one who does not read while much changes, it then gets the newest, whole, once."""

    async def scene() -> None:
        async with following(feed) as stream:
            await told(stream)
            for at in range(50):
                node.change(history=[Sample(at=at, checked=at, valid=0)])
                await node.looked_at()
            event, data = await told(stream)
            assert (event, data["history"][0]["at"]) == ("overview", 49)
            node.change(queue_length=1)
            assert (await told(stream))[1].keys() == {"at", "queue_length"}

    run(scene)


def test_an_outage_is_told_and_passes(feed: Feed, node: Node) -> None:
    """Given a Redis that goes, a problem is told once; when it comes, the whole overview."""

    async def scene() -> None:
        async with following(feed) as stream:
            await told(stream)
            node.fails = "Redis: gone"
            assert await told(stream) == ("problem", {"detail": "Redis: gone"})
            await node.looked_at(5)
            node.fails = "Redis: loading"
            assert await told(stream) == ("problem", {"detail": "Redis: loading"})
            node.fails = ""
            assert (await told(stream))[0] == "overview"

    run(scene)


def test_a_defect_ends_no_stream(
    feed: Feed, node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Given what can't be read, it is logged and told, and what comes next is shown."""

    def fails() -> Overview:
        raise ValueError("not a number")

    async def scene() -> None:
        async with following(feed) as stream:
            with monkeypatch.context() as patch:
                patch.setattr(feed, "_read", fails)
                event, data = await told(stream)
            assert event == "problem"
            assert "not a number" not in data["detail"]
            assert (await told(stream))[0] == "overview"

    run(scene)
    assert "not a number" in caplog.text


def test_the_end_ends_all_streams(feed: Feed) -> None:
    """Those who wait, and those who come then."""

    async def scene() -> None:
        async with following(feed) as early, following(feed) as late:
            await told(early)
            waiting = asyncio.ensure_future(anext(early, None))
            await asyncio.sleep(0)
            feed.end()
            assert await waiting is None
            assert await anext(late, None) is None

    run(scene)


@pytest.fixture
def api() -> Iterator[TestClient]:
    settings = load_settings({}, namespace="test")
    store = Store(settings, fakeredis.FakeRedis(decode_responses=True))
    with TestClient(create_app(settings, store)) as client:
        yield client


def test_too_many_pages_are_told_to_come_back(api: TestClient) -> None:
    """So that pollers still have connections."""
    with contextlib.ExitStack() as stack:
        feed = api.app.state.feed  # type: ignore[attr-defined]
        feed._reader = "none, for a test that has no loop"
        for _ in range(MAX_FOLLOWERS):
            stack.enter_context(feed.follower())
        answer = api.get(EVENTS)
    assert answer.status_code == 503
    assert "close one" in answer.json()["detail"]
    assert int(answer.headers["Retry-After"]) > 0


def test_a_head_ends(api: TestClient) -> None:
    """Without a body there is nothing to wait for."""
    answer = api.head(EVENTS)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Content-Type"].startswith("text/event-stream")
