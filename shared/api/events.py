"""What the node does, told to all who look on, from one reader of the store.

However many pages are open, Redis is asked once a second, and not at all when none is. Whoever
is slow misses what came between: nothing is kept for anybody.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any

from anyio import BrokenResourceError
from fastapi import Depends, HTTPException, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.api.limits import ASKED_BY
from shared.api.routes import rounds
from shared.errors import StoreFailed, StoreUnavailable
from shared.overview import Overview
from shared.serving import RETRY_AFTER_S

#: Seconds from one look at the store to the next.
EVERY_S = 1.0
#: Streams at a time; more are told to come back, so that pages leave room for pollers.
MAX_FOLLOWERS = 200
#: Fields of an overview that change with the clock alone.
_CLOCKS = {"at", "outbox_oldest_seconds"}

_log = logging.getLogger("uvicorn.error")


@dataclass(frozen=True)
class News:
    """What one look at the store found: an overview's fields, or a problem's `detail`."""

    number: int
    event: str
    fields: dict[str, Any]
    #: Those of `fields` that differ from the news before; empty after a problem.
    changed: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def whole(self) -> str:
        """All fields as JSON."""
        return json.dumps(self.fields)

    @cached_property
    def changes(self) -> str:
        """The changed fields as JSON."""
        return json.dumps(self.changed)

    def told_after(self, seen: News | None) -> ServerSentEvent:
        """The event for one who saw `seen` last."""
        if seen and self.changed and seen.number == self.number - 1:
            return ServerSentEvent(event="changes", raw_data=self.changes)
        return ServerSentEvent(event=self.event, raw_data=self.whole)


class Feed:
    """The newest of the store for everybody who follows; all of it on one event loop."""

    def __init__(self, read: Callable[[], Overview]) -> None:
        self._read = read
        self._followers = 0
        self._reader: asyncio.Task[None] | None = None
        self._news: News | None = None
        self._moved = asyncio.Event()
        self._ended = False

    @property
    def full(self) -> bool:
        """Whether no more should follow."""
        return self._followers >= MAX_FOLLOWERS

    @contextmanager
    def follower(self) -> Iterator[None]:
        """A place among those who follow; while there are some, the store is read."""
        self._followers += 1
        if self._reader is None:
            self._reader = asyncio.create_task(self._run())
        try:
            yield
        finally:
            self._followers -= 1

    async def events(self) -> AsyncIterator[ServerSentEvent]:
        """The newest at once, then whatever is new, until the feed ends."""
        seen: News | None = None
        while not self._ended:
            news, moved = self._news, self._moved
            if news is None or news is seen:
                await moved.wait()
            else:
                yield news.told_after(seen)
                seen = news

    def end(self) -> None:
        """End all streams: the server waits for them when it ends."""
        self._ended = True
        self._wake()

    async def _run(self) -> None:
        while self._followers and not self._ended:
            event, fields = await asyncio.to_thread(self._look)
            self._tell(event, fields)
            await asyncio.sleep(EVERY_S)
        self._reader = self._news = None

    def _look(self) -> tuple[str, dict[str, Any]]:
        try:
            # Through pydantic's JSON, which has null for what JSON lacks.
            return "overview", json.loads(self._read().model_dump_json())
        except (StoreUnavailable, StoreFailed) as error:
            return "problem", {"detail": str(error)}
        except Exception:  # noqa: BLE001 - the next look may find something else
            _log.exception("what Redis holds can't be shown")
            return "problem", {"detail": "what Redis holds can't be shown; the API's log says why"}

    def _tell(self, event: str, fields: dict[str, Any]) -> None:
        last = self._news
        changed: dict[str, Any] = {}
        if last and last.event == event:
            changed = {name: new for name, new in fields.items() if last.fields.get(name) != new}
            if changed.keys() <= _CLOCKS:
                return
        number = last.number + 1 if last else 0
        self._news = News(number, event, fields, changed if event == "overview" else {})
        self._wake()

    def _wake(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()


class GoneClients:
    """Lets a page go in peace: it is no error that something was still on its way to it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as `app` does."""
        try:
            await self._app(scope, receive, send)
        except* BrokenResourceError:
            _log.debug("a page went while it was told something")


async def _following(request: Request) -> AsyncIterator[Feed]:
    feed: Feed = request.app.state.feed
    if feed.full:
        later = {"Retry-After": str(RETRY_AFTER_S)}
        raise HTTPException(503, f"{MAX_FOLLOWERS} pages are open: close one", headers=later)
    with feed.follower():
        yield feed


@rounds.get(
    "/events", response_class=EventSourceResponse, response_description="Server-sent events"
)
async def events(
    request: Request, feed: Annotated[Feed, Depends(_following)]
) -> AsyncIterator[ServerSentEvent]:
    """The overview, and then what is new about it, about once a second, as server-sent events.

    `overview` has all fields, `changes` those that are new: put them over the ones before.
    `problem` has a `detail`: Redis does not answer, and an `overview` follows when it does. When
    nothing but the clock changes, only a comment keeps the connection open.
    """
    if request.scope[ASKED_BY] == "HEAD":
        return
    async for event in feed.events():
        yield event
