"""Callbacks that wait for delivery: a stream with one consumer group, `senders`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from redis.exceptions import ResponseError

from shared.status import CallbackCounts
from shared.store.connection import redis_errors
from shared.store.context import Context
from shared.store.dead_letters import DeadLetters
from shared.tracing import traceparent_of

GROUP = "senders"
#: Where a search of the stream begins, and what it gives when it was at the end.
_START = "0-0"


@dataclass(frozen=True, slots=True)
class Message:
    """A callback, frozen: it is delivered as it is, or not at all."""

    url: str
    body: str
    #: What tells a receiver that it has this message already.
    key: str
    #: The round whose counters show it; empty when there is none.
    round: str
    deadline_s: float
    #: The step of a trace that it follows from; empty without one.
    traceparent: str = ""
    #: With items it is joined with others of its round, so that about one a second goes out: body,
    #: items with commas between them, tail.
    items: tuple[str, ...] = ()
    tail: str = ""

    def as_args(self) -> dict[str, Any]:
        """What a script takes."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Entry:
    """A callback to deliver. Its body stays in Redis until it is sent: see `Outbox.body`."""

    id: str
    url: str
    #: What tells a receiver that it has this message already.
    key: str
    round: str
    #: When it is given up, by this process' `time.monotonic()`.
    gives_up_at: float
    #: The step of a trace that it follows from; empty without one.
    traceparent: str = ""


class Outbox:
    """The callbacks of a namespace. Several senders share it; each entry is with one of them."""

    def __init__(self, context: Context, dead_letters: DeadLetters) -> None:
        self._context, self._dead_letters = context, dead_letters
        self._redis, self._keys, self._scripts = context.redis, context.keys, context.scripts
        self._stream = context.keys("outbox")
        # How far `take_over` has looked.
        self._cursor = _START

    def take(self, sender: str, count: int) -> list[Entry]:
        """Up to `count` entries that no sender has had, oldest first."""
        with redis_errors():
            try:
                reply = self._redis.xreadgroup(GROUP, sender, {self._stream: ">"}, count=count)
            except ResponseError as error:
                if "NOGROUP" not in str(error):
                    raise
                self._create_group()
                reply = self._redis.xreadgroup(GROUP, sender, {self._stream: ">"}, count=count)
            return self._entries(reply[0][1]) if reply else []

    def take_over(self, sender: str, count: int) -> list[Entry]:
        """Up to `count` entries of senders that have not renewed theirs for a lease."""
        lease_ms = self._context.lease_ms
        with redis_errors():
            try:
                while True:
                    # One call looks at ten times `count` entries; the next goes on behind them.
                    # Redis 6.2 has no third part, and gives None for an entry settled meanwhile.
                    self._cursor, found, *_ = self._redis.xautoclaim(
                        self._stream, GROUP, sender, lease_ms, start_id=self._cursor, count=count
                    )
                    entries = [entry for entry in found if entry[0]]
                    if entries or self._cursor == _START:
                        return self._entries(entries)
            except ResponseError as error:
                if "NOGROUP" not in str(error):
                    raise
                return []

    def renew(self, sender: str, ids: Sequence[str]) -> None:
        """Keep entries with `sender` for another lease."""
        if not ids:
            return
        with redis_errors():
            self._redis.xclaim(
                self._stream, GROUP, sender, min_idle_time=0, message_ids=list(ids), justid=True
            )

    def body(self, id: str) -> str | None:
        """The message of an entry as it goes over the wire; None if it was settled meanwhile."""
        with redis_errors():
            found = self._redis.xrange(self._stream, id, id)
        return found[0][1]["body"] if found else None

    def settle(self, entry: Entry, error: str | None = None, reason: str = "other") -> None:
        """Take an entry out, once: delivered, or refused with `error`, for a `reason` in a word."""
        self._scripts.call(
            "settle",
            round=entry.round,
            group=GROUP,
            entry=entry.id,
            outcome="refused" if error else "delivered",
            error=error,
            reason=reason if error else None,
        )

    def defer(self, entry: Entry, error: str) -> None:
        """Show in the status why an entry waits for another attempt; its delivery ends that."""
        self._scripts.call("defer", round=entry.round, entry=entry.id, error=error)

    def waiting(self) -> int:
        """How many callbacks are not settled."""
        with redis_errors():
            return int(self._redis.xlen(self._stream))

    def uncounted(self) -> CallbackCounts:
        """The counts of callbacks that belong to no round."""
        with redis_errors():
            return CallbackCounts(**self._redis.hgetall(self._keys("callbacks")))

    def _create_group(self) -> None:
        try:
            self._redis.xgroup_create(self._stream, GROUP, id="0", mkstream=True)
        except ResponseError as error:  # another sender was faster
            if "BUSYGROUP" not in str(error):
                raise

    def _entries(self, raw: Sequence[tuple[str, Mapping[str, str]]]) -> list[Entry]:
        if not raw:
            return []
        seconds, micros = self._redis.time()
        ahead = seconds + micros / 1e6 - time.monotonic()
        entries = []
        for entry_id, fields in raw:
            try:
                entries.append(_read(entry_id, fields, ahead))
            except (LookupError, ValueError, ArithmeticError) as error:
                # Written by another version or by mistake: those behind it go on.
                item = json.dumps({"outbox": entry_id, **fields}).encode()
                with self._dead_letters.keeping(item, "outbox", error) as pipe:
                    pipe.xack(self._stream, GROUP, entry_id)
                    pipe.xdel(self._stream, entry_id)
        return entries


def _read(id: str, fields: Mapping[str, str], ahead: float) -> Entry:
    """The entry `id`; `ahead` are the seconds from this process' clock to Redis'."""
    fields["body"].encode()  # which is sent later; text that was no UTF-8 can't be
    urlsplit(fields["url"])
    return Entry(
        id=id,
        url=fields["url"],
        key=fields["key"],
        round=fields["round"],
        gives_up_at=int(fields["expires_at"]) / 1000 - ahead,
        traceparent=traceparent_of(fields.get("traceparent")),
    )
