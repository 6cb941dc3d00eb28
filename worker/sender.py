"""Callbacks: freezing a message for the outbox, and delivering what the outbox holds.

    manager, clerk ─▶ generated_message, validated_message ─▶ the script that commits the work
                                                                        │
    receiver ◀─ POST ◀─ PoCCallbackSender.run ◀─ outbox (a stream) ◀────┘

A message is frozen in the script that commits what it tells, so neither is there without the
other. Each worker has a sender; each message is with one of them, under a lease that is renewed.
Delivery is at least once and in no order: a receiver knows a repeat by its `Idempotency-Key`.

Any 2xx is a delivery. 408, 429, 5xx and trouble on the network are tried again until the
message's deadline. Redirects and other 4xx are final. What can't be delivered is shown in the
round's status.

Where a message goes is decided by the address that is connected to (see `worker.guard`), and who
sent it is shown by a signature (see `shared.signature`).
"""

from __future__ import annotations

import asyncio
import heapq
import json
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TypeVar
from urllib.parse import quote, urlsplit

import httpx

from shared.config import PoCConfig
from shared.data import ProofBatch, ValidatedBatch
from shared.errors import PoCError, StoreUnavailable
from shared.receivers import Receivers
from shared.settings import Settings
from shared.signature import sign
from shared.store import Claim, Computed, Entry, Message, Store
from worker.guard import NotAllowed, guarded_transport
from worker.threads import REST_S, RETRY_S, Outage

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Requests under way at a time, in all and to one receiver. One that fails gets one at a time.
MAX_REQUESTS, MAX_PER_RECEIVER = 32, 4
#: Of these, requests to receivers that failed last time: slow ones must leave room for the others.
MAX_TROUBLED = 24
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
#: The most seconds that a receiver may ask to be left alone.
MAX_RETRY_AFTER_S = 300.0
#: Seconds between two looks at what is due.
TICK_S = 0.1
#: Seconds between two looks at what has passed its deadline.
SWEEP_S = 1.0
#: Bytes of the longest answer that is read at all; nobody looks at it.
ANSWER_BYTES = 65_536


# Freezing.


def generated_message(claim: Claim, valid: Sequence[tuple[int, float]]) -> Message | None:
    """What tells a claim's `valid` nonces; None when there are none, or nobody wants to know."""
    if not valid:
        return None
    batch = ProofBatch.of(claim.config, [n for n, _ in valid], [d for _, d in valid])
    key = f"{claim.round_id}:{claim.token}"
    return _message(claim.config, "generated", batch.model_dump_json(), key, claim.round_id)


def validated_message(
    job: Computed, outcome: ValidatedBatch | PoCError, not_computed: Sequence[int] = ()
) -> Message | None:
    """What tells the end of a validation; None if nobody wants to know.

    The end is a verdict, or an error with the nonces that were `not_computed`.
    """
    if isinstance(outcome, ValidatedBatch):
        body = outcome.model_dump_json()
    else:
        said = {"error": type(outcome).__name__, "message": str(outcome)}
        about = job.batch.model_dump(include={"public_key", "block_hash", "block_height", "nonces"})
        rest = {"node_id": job.batch.node_id, "not_computed": list(not_computed)}
        body = json.dumps(said | about | rest)
    return _message(job.config, "validated", body, f"validation:{job.id}", job.round_id)


def _message(
    config: PoCConfig, path: str, body: str, key: str, round_id: str = ""
) -> Message | None:
    if config.callback_url is None:
        return None
    return Message(
        url=f"{config.callback_url}/{path}",
        body=body,
        # A task id may be any text, a header may not.
        key=quote(key, safe=":"),
        round=round_id,
        deadline_s=config.callback_deadline_s,
    )


# One attempt.


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one attempt."""

    #: Empty when it was delivered.
    error: str = ""
    #: Another attempt may end better.
    retry: bool = False
    #: Seconds that the receiver asked to be left alone.
    retry_after_s: float = 0.0


def judge(status: int, retry_after: str | None = None) -> Answer:
    """What an HTTP status means for a message."""
    if 200 <= status < 300:
        return Answer()
    error = f"it answered {status} {httpx.codes.get_reason_phrase(status)}".rstrip()
    if status in (408, 429) or status >= 500:
        return Answer(error, retry=True, retry_after_s=seconds_asked_for(retry_after))
    if 300 <= status < 400:
        error += "; redirects are not followed: set callback_url to where it leads"
    return Answer(error)


def seconds_asked_for(retry_after: str | None) -> float:
    """The seconds that a Retry-After header means, within reason; 0 for none and for nonsense."""
    value = (retry_after or "").strip()
    # isdigit alone knows digits of other scripts, and a number may be longer than int() takes.
    if value.isascii() and value.isdigit():
        return min(float(value), MAX_RETRY_AFTER_S)
    try:
        until = parsedate_to_datetime(value)
        if until.tzinfo is None:  # "-0000": UTC, says RFC 5322
            until = until.replace(tzinfo=UTC)
        seconds = (until - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


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


def _client(settings: Settings) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        timeout=None,  # noqa: S113 - `_post` has a limit for the whole request
        transport=guarded_transport(Receivers.of(settings.callback_allow), MAX_REQUESTS),
        follow_redirects=False,
        trust_env=False,  # no proxy, no .netrc: the config alone says where a callback goes
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
    )


async def _post(
    client: httpx.AsyncClient, settings: Settings, url: str, key: str, body: str
) -> Answer:
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    if settings.callback_secret:
        secret = settings.callback_secret.get_secret_value()
        headers |= sign(secret, key, int(time.time()), body)
    timeout_s = settings.callback_timeout_s
    answer = None
    try:
        # In all: a receiver that sends a byte now and then must not hold the request for ever.
        async with (
            asyncio.timeout(timeout_s),
            client.stream("POST", url, content=body, headers=headers) as response,
        ):
            answer = judge(response.status_code, response.headers.get("Retry-After"))
            if _is_short(response):
                # To its end, so that the connection can be used again.
                async for _ in response.aiter_raw():
                    pass
    except TimeoutError:
        return answer or Answer(f"it gave no answer within {timeout_s:g} s", retry=True)
    except _NEVER_SENT as error:
        return answer or Answer(f"the message can't be sent: {_sentence(error)}")
    except httpx.TransportError as error:
        return answer or Answer(_sentence(error), retry=True)
    return answer


#: What is raised for a URL or a header that no attempt can send.
_NEVER_SENT = (
    httpx.InvalidURL,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
    NotAllowed,
    ValueError,  # a host name that is none
)


def _is_short(response: httpx.Response) -> bool:
    length = response.headers.get("Content-Length")
    return response.status_code == 204 or (length is not None and int(length) <= ANSWER_BYTES)


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


# Many messages to many receivers.


@dataclass(slots=True)
class _Held:
    """A message that this sender has; its body is still in Redis."""

    entry: Entry
    failures: int = 0
    last_error: str = "it was never tried"


@dataclass(slots=True)
class _Receiver:
    """Whom messages wait for. One that fails is left alone, then tried with one message."""

    name: str
    #: A heap of (when it is due, id, message).
    waiting: list[tuple[float, str, _Held]] = field(default_factory=list)
    requests: int = 0
    failures: int = 0
    quiet_until: float = 0.0
    #: The log has said that it is in trouble, and not yet that it is well again.
    complained: bool = False

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
        if not answer.retry:
            self.failures, self.quiet_until = 0, 0.0
        else:
            # What was under way together fails together: that is one failure.
            if now >= self.quiet_until:
                self.failures += 1
            left_alone = max(pause(self.failures), answer.retry_after_s)
            self.quiet_until = max(self.quiet_until, now + left_alone)
        if not answer.error and self.complained:
            log.info("callbacks to %s are delivered again", self.name)
            self.complained = False
        elif answer.error and not answer.retry:
            self.complain("a callback was refused for good", answer.error)
        elif self.failures > 1:  # a single failure is no news
            self.complain("callbacks fail and are tried again until their deadline", answer.error)

    def complain(self, what: str, error: str) -> None:
        """Say it once until the receiver is well again."""
        if not self.complained:
            log.warning("%s: %s: %s", self.name, what, error)
            self.complained = True


class PoCCallbackSender:
    """Delivers callbacks: `run` those of the outbox, `send_*` one at once, past the outbox."""

    def __init__(
        self, store: Store, name: str, settings: Settings, outage: Outage | None = None
    ) -> None:
        """`name` is this sender's own; an `outage` that is shared says that Redis is away once."""
        self._store, self._name, self._settings = store, name, settings
        self._outage = outage or Outage()

    def send_generated(self, batch: ProofBatch, config: PoCConfig, key: str) -> str | None:
        """POST `batch` once and wait; None when it was delivered, else why not.

        `key` is the idempotency key. Without a `callback_url` there is nothing to do.
        """
        return self._send(_message(config, "generated", batch.model_dump_json(), key))

    def send_validated(self, batch: ValidatedBatch, config: PoCConfig, key: str) -> str | None:
        """POST a verdict once and wait; as `send_generated`."""
        return self._send(_message(config, "validated", batch.model_dump_json(), key))

    def _send(self, message: Message | None) -> str | None:
        async def post(message: Message) -> Answer:
            async with _client(self._settings) as client:
                return await _post(client, self._settings, message.url, message.key, message.body)

        if message is None:
            return None
        return asyncio.run(post(message)).error or None

    def run(self, stop: threading.Event) -> None:
        """A thread's body: deliver the outbox until `stop`, then end within about a second.

        What was not delivered by then is taken over by another sender when its lease ends.
        """
        # httpx logs every attempt, with the whole URL.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        while not stop.is_set():
            # Not asyncio.run: it waits at the end for every thread, and so for a Redis or a name
            # server that hangs.
            loop = asyncio.new_event_loop()
            loop.set_default_executor(ThreadPoolExecutor(2 * MAX_REQUESTS, "poc-sender"))
            try:
                loop.run_until_complete(self._serve(stop))
            except Exception:
                log.exception("the sender failed: a defect; it goes on")
                stop.wait(REST_S)
            finally:
                loop.close()

    async def _serve(self, stop: threading.Event) -> None:
        async with _client(self._settings) as client:
            await _Run(self._store, self._name, self._settings, self._outage, client, stop).serve()


class _Run:
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
        bell = self._store.bell("outbox")
        try:
            while not self._stop.is_set():
                try:
                    more = await self._collect()
                    self._outage.over()
                    if not more:
                        await asyncio.to_thread(bell.wait, min(self._renew_every_s, 0.5))
                except StoreUnavailable as error:
                    self._outage.seen(error)
                    await asyncio.sleep(RETRY_S)
        finally:
            bell.close()

    async def _collect(self) -> bool:
        """One round of the keeper; whether there is more at once."""
        outbox = self._store.outbox
        # First, since it is what makes the group.
        entries = await asyncio.to_thread(outbox.take, self._name, TAKE)
        self._hold(entries)
        more = len(entries) == TAKE
        if (now := time.monotonic()) >= self._next_renewal:
            ids = list(self._held)
            for start in range(0, len(ids), RENEW):
                await asyncio.to_thread(outbox.renew, self._name, ids[start : start + RENEW])
            entries = await asyncio.to_thread(outbox.take_over, self._name, TAKE)
            self._hold(entries)
            # While it is full, what is left behind by the dead has time.
            if len(entries) == TAKE and len(self._held) < MAX_HELD:
                more = True
            else:
                self._next_renewal = now + self._renew_every_s
        self._start_due()
        return more

    def _hold(self, entries: Iterable[Entry]) -> None:
        now = time.monotonic()
        for entry in entries:
            if entry.id not in self._held:
                self._held[entry.id] = held = _Held(entry)
                self._receiver(origin(entry.url)).park(held, now)
        while len(self._held) > MAX_HELD:
            # Let go of what waits for the receiver with the most, so that there is always room for
            # the others. It comes back when its lease ends: nobody renews it.
            longest = max(self._receivers.values(), key=lambda receiver: len(receiver.waiting))
            if not longest.waiting:
                return
            held = longest.waiting.pop()[2]  # a heap's last item is one of its latest
            del self._held[held.entry.id]

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
        try:
            answer = await self._attempt(receiver, held)
            if answer is None or not answer.retry:
                if answer is not None:
                    error = f"{receiver.name}: {answer.error}" if answer.error else None
                    await self._insist(lambda: self._store.outbox.settle(entry, error))
                del self._held[entry.id]
            else:
                held.failures += 1
                held.last_error = answer.error
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
            error = f"its deadline passed; the last attempt: {held.last_error}"
            receiver.complain("a callback was given up", error)
            return Answer(error)
        body = await self._insist(lambda: self._store.outbox.body(entry.id))
        if body is None:
            return None
        answer = await _post(self._client, self._settings, entry.url, entry.key, body)
        receiver.heard(answer, time.monotonic())
        return answer

    async def _insist(self, call: Callable[[], T]) -> T:
        """What the store gives once Redis answers."""
        while True:
            try:
                result = await asyncio.to_thread(call)
            except StoreUnavailable as error:
                self._outage.seen(error)
                await asyncio.sleep(RETRY_S)
            else:
                self._outage.over()
                return result
