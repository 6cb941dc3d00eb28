"""Many messages to many receivers: what one sender holds, and whom it tries when.

Each message is with one sender, under a lease that is renewed. A receiver that fails is left alone
for a while, then tried with one message; the others are not held up. What can't be delivered is
shown in the round's status.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlsplit

import httpx

from shared.about import About, note
from shared.errors import StoreUnavailable
from shared.settings import Settings
from shared.store import Entry, Store
from worker.callbacks.attempt import Answer, post
from worker.outage import RETRY_S, Outage

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Requests under way at a time, in all and to one receiver. One that fails gets one at a time.
MAX_REQUESTS, MAX_PER_RECEIVER = 32, 4
#: Of these, requests to receivers that failed last time: slow ones must leave room for the others.
MAX_TROUBLED = 24
#: What requests ask of the store at a time: each call takes one of its connections.
MAX_CALLS = 4
#: Messages that a sender holds, without their bodies: about 700 bytes each.
MAX_HELD = 10_000
#: Messages asked for at once. Redis sends their bodies along, of up to some megabytes.
TAKE = 16
#: Messages renewed at once.
RENEW = 1000
#: Receivers that are remembered while nothing waits for them.
MAX_RECEIVERS = 1000
#: Seconds before the second attempt, and the most between two attempts.
FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 30.0
#: Seconds between two looks at what is due.
TICK_S = 0.1
#: Seconds between two looks at what has passed its deadline.
SWEEP_S = 1.0


def pause(failures: int) -> float:
    """Seconds to wait after so many failures in a row, with jitter: senders shall not march."""
    longest = min(FIRST_PAUSE_S * 2.0 ** min(failures - 1, 16), MAX_PAUSE_S)
    return random.uniform(longest / 2, longest)  # noqa: S311 - no secret


def origin(url: str) -> str:
    """What fails as one: scheme, host and port. All that is shown of a URL: its path may be secret.

    A user and password are refused when a config is read; what is shown here does without.
    """
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2].lower()}"


@dataclass(slots=True)
class _Held:
    """A message that this sender has; its body is still in Redis."""

    entry: Entry
    #: Its receiver may have taken it from an earlier attempt, of this sender or another.
    in_doubt: bool
    failures: int = 0
    last_error: str = ""


@dataclass(slots=True)
class _Receiver:
    """Whom messages wait for. One that fails is left alone, then tried with one message."""

    name: str
    #: A heap of (when it is due, id, message).
    waiting: list[tuple[float, str, _Held]] = field(default_factory=list)
    requests: int = 0
    failures: int = 0
    last_error: str = ""
    quiet_until: float = 0.0
    #: The log has said that it is in trouble, and not yet that it is well again.
    complained: bool = False
    #: The round whose status says so although none of its messages was tried yet.
    shown_in: str | None = None

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.requests

    def ready(self, now: float) -> bool:
        allowed = 1 if self.failures else MAX_PER_RECEIVER
        return (
            self.requests < allowed
            and now >= self.quiet_until
            and bool(self.waiting)
            and now >= self.waiting[0][0]
        )

    def park(self, held: _Held, due: float) -> None:
        heapq.heappush(self.waiting, (due, held.entry.id, held))

    def take(self) -> _Held:
        return heapq.heappop(self.waiting)[2]

    def take_expired(self, now: float) -> list[_Held]:
        if not any(held.entry.gives_up_at <= now for _, _, held in self.waiting):
            return []
        expired = [each[2] for each in self.waiting if each[2].entry.gives_up_at <= now]
        self.waiting = [each for each in self.waiting if each[2].entry.gives_up_at > now]
        heapq.heapify(self.waiting)
        return expired

    def heard(self, answer: Answer, now: float) -> None:
        """Learn from an attempt when to try the next."""
        self.last_error = answer.error
        if not answer.retry or answer.untimely:
            self.failures, self.quiet_until, self.shown_in = 0, 0.0, None
        else:
            # What was under way together fails together: that is one failure.
            if now >= self.quiet_until:
                self.failures += 1
            left_alone = max(pause(self.failures), answer.retry_after_s)
            self.quiet_until = max(self.quiet_until, now + left_alone)
        if not answer.error and self.complained:
            log.info("callbacks to %s are delivered again", self.name)
            self.complained = False
        elif answer.untimely:
            self.complain("callbacks wait for the receiver's phase", answer.error)
        elif answer.error and not answer.retry:
            self.complain("a callback was refused for good", answer.error)
        elif self.failures > 1:  # a single failure is no news
            self.complain("callbacks fail and are tried again until their deadline", answer.error)

    def complain(self, what: str, error: str) -> None:
        """Say it once until the receiver is well again."""
        if not self.complained:
            log.warning("%s: %s: %s", self.name, what, error)
            self.complained = True


class Delivery:
    """What a sender holds and does until `stop`. Only calls to the store leave its thread."""

    def __init__(
        self,
        store: Store,
        name: str,
        settings: Settings,
        outage: Outage,
        client: httpx.AsyncClient,
        stop: threading.Event,
    ) -> None:
        self._store, self._name, self._outage = store, name, outage
        self._client, self._settings, self._stop = client, settings, stop
        self._renew_every_s = settings.lease_s / 3
        self._next_renewal = 0.0
        self._held: dict[str, _Held] = {}
        self._receivers: dict[str, _Receiver] = {}
        self._expired: deque[tuple[_Receiver, _Held]] = deque()
        self._requests: set[asyncio.Task[None]] = set()
        self._calls = asyncio.Semaphore(MAX_CALLS)

    async def serve(self) -> None:
        """Deliver until `stop`. Raises what only a defect can raise."""
        keeper = asyncio.create_task(self._keep())
        next_sweep = 0.0
        try:
            while not self._stop.is_set():
                if keeper.done():
                    keeper.result()  # raises: it ends early only by a defect
                if (now := time.monotonic()) >= next_sweep:
                    next_sweep = now + SWEEP_S
                    self._sweep(now)
                self._start_due()
                await asyncio.sleep(TICK_S)
        finally:
            # The keeper ends by itself, unless Redis holds it.
            await asyncio.wait([keeper], timeout=1.0)
            while tasks := [task for task in (keeper, *self._requests) if not task.done()]:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)

    async def _keep(self) -> None:
        """Take what is new or left by dead senders, and keep what is held."""
        news = self._store.subscribe("outbox")
        try:
            while not self._stop.is_set():
                try:
                    more = await self._collect()
                    self._outage.over()
                    if not more:
                        await asyncio.to_thread(news.wait, min(self._renew_every_s, 0.5))
                except StoreUnavailable as error:
                    self._outage.seen(error)
                    await asyncio.sleep(RETRY_S)
        finally:
            self._outage.left()
            news.close()

    async def _collect(self) -> bool:
        """One round of the keeper; whether there is more at once."""
        outbox = self._store.outbox
        # First, since it is what makes the group.
        entries = await asyncio.to_thread(outbox.take, self._name, TAKE)
        self._hold(entries)
        await self._show_trouble(entries)
        more = len(entries) == TAKE
        if (now := time.monotonic()) >= self._next_renewal:
            ids = list(self._held)
            for start in range(0, len(ids), RENEW):
                await asyncio.to_thread(outbox.renew, self._name, ids[start : start + RENEW])
            entries = await asyncio.to_thread(outbox.take_over, self._name, TAKE)
            self._hold(entries, in_doubt=True)
            # While it is full, what is left behind by the dead has time.
            if len(entries) == TAKE and len(self._held) < MAX_HELD:
                more = True
            else:
                self._next_renewal = now + self._renew_every_s
        self._start_due()
        return more

    def _hold(self, entries: Iterable[Entry], *, in_doubt: bool = False) -> None:
        now = time.monotonic()
        for entry in entries:
            if entry.id not in self._held:
                self._held[entry.id] = held = _Held(entry, in_doubt)
                self._receiver(origin(entry.url)).park(held, now)
        while len(self._held) > MAX_HELD:
            # Let go of what waits for the receiver with the most, so that there is always room for
            # the others. It comes back when its lease ends: nobody renews it.
            longest = max(self._receivers.values(), key=lambda receiver: len(receiver.waiting))
            if not longest.waiting:
                return
            held = longest.waiting.pop()[2]  # a heap's last item is one of its latest
            del self._held[held.entry.id]

    async def _show_trouble(self, entries: Iterable[Entry]) -> None:
        """Say in a round's status why its messages wait before the first of them is tried."""
        for entry in entries:
            receiver = self._receiver(origin(entry.url))
            if receiver.failures and receiver.shown_in != entry.round:
                receiver.shown_in = entry.round
                error = f"{receiver.name}: {receiver.last_error}"
                await asyncio.to_thread(self._store.outbox.defer, entry, error)

    def _receiver(self, name: str) -> _Receiver:
        if name not in self._receivers:
            if len(self._receivers) >= MAX_RECEIVERS:
                self._receivers = {n: r for n, r in self._receivers.items() if not r.idle}
            self._receivers[name] = _Receiver(name)
        return self._receivers[name]

    def _sweep(self, now: float) -> None:
        """Find what has passed its deadline, also where nothing is tried at the moment."""
        for receiver in self._receivers.values():
            self._expired.extend((receiver, held) for held in receiver.take_expired(now))

    def _start_due(self) -> None:
        now = time.monotonic()
        while len(self._requests) < MAX_REQUESTS and not self._stop.is_set():
            if self._expired:
                receiver, held = self._expired.popleft()
            else:
                all_of = self._receivers.values()
                full = sum(r.requests for r in all_of if r.failures) >= MAX_TROUBLED
                ready = (r for r in all_of if r.ready(now) and not (full and r.failures))
                if (found := next(ready, None)) is None:
                    return
                receiver, held = found, found.take()
                # To the end of the row: they take turns.
                self._receivers[receiver.name] = self._receivers.pop(receiver.name)
            receiver.requests += 1
            task = asyncio.create_task(self._deliver(receiver, held))
            self._requests.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._requests.discard(task)
        self._start_due()

    async def _deliver(self, receiver: _Receiver, held: _Held) -> None:
        """One attempt, and what follows from it."""
        entry = held.entry
        note(About(entry.round, entry.traceparent))
        try:
            answer = await self._attempt(receiver, held)
            if answer is None or not answer.retry:
                if answer is not None:
                    error = f"{receiver.name}: {answer.error}" if answer.error else None
                    reason = answer.reason
                    await self._until_answered(
                        lambda: self._store.outbox.settle(entry, error, reason)
                    )
                del self._held[entry.id]
            else:
                held.failures += 1
                if answer.error != held.last_error:
                    held.last_error = answer.error
                    error = f"{receiver.name}: {answer.error}"
                    await self._until_answered(lambda: self._store.outbox.defer(entry, error))
                receiver.park(held, time.monotonic() + pause(held.failures))
        except Exception:
            log.exception("callback %s failed: a defect; it is tried again", entry.id)
            # Not before its lease ends, so that a defect does not spin.
            self._held.pop(entry.id, None)
        finally:
            receiver.requests -= 1

    async def _attempt(self, receiver: _Receiver, held: _Held) -> Answer | None:
        """Send a message; None when it was settled by another sender meanwhile."""
        entry = held.entry
        if time.monotonic() >= entry.gives_up_at:
            before = receiver.last_error or "no sender came to it in time"
            why = held.last_error or f"it was never tried, since {before}"
            error = f"its deadline passed; the last attempt: {why}"
            receiver.complain("a callback was given up", error)
            return Answer(error, reason="deadline")
        body = await self._until_answered(lambda: self._store.outbox.body(entry.id))
        if body is None:
            return None
        answer = await post(
            self._client, self._settings, entry.url, entry.key, body, in_doubt=held.in_doubt
        )
        held.in_doubt = held.in_doubt or answer.in_doubt
        receiver.heard(answer, time.monotonic())
        return answer

    async def _until_answered(self, call: Callable[[], T]) -> T:
        """What the store gives once Redis answers."""
        try:
            while True:
                try:
                    async with self._calls:
                        result = await asyncio.to_thread(call)
                except StoreUnavailable as error:
                    self._outage.seen(error)
                    await asyncio.sleep(RETRY_S)
                else:
                    self._outage.over()
                    return result
        finally:
            self._outage.left()
