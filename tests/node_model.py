"""The rules of a node in plain Python: what the store must do, without Redis, Lua or JSON.

One object stands for one namespace. Times are milliseconds by a clock that the test moves.
Where the store makes up an id (a round's, a claim's), the model is told it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from shared.config import PoCConfig, PoCState
from shared.errors import (
    Cancelled,
    CouldNotCompute,
    InvalidRequest,
    PoCError,
    RoundFailed,
    RoundInProgress,
    RoundMismatch,
    RoundNotInitialized,
)
from shared.schemes import Batch, Proof
from shared.store import Message

#: What an error in a status begins with.
OTHER_MODEL = "the round began with the model "
GAVE_UP = "positions "
FULL = "the round holds "
NOT_FINITE = "no finite numbers"
USED_UP = "all "

#: Why a commit does not count.
OVER = "the round is over"
WENT_ON = "the round went on without it"
TAKEN_OVER = "its positions were taken over"
CHUNK_TAKEN_OVER = "its chunk was taken over"

#: From one of the callbacks that are joined to the next.
GATHER_MS = 1000
#: More positions than that are never used up.
COUNTED = 2**53


@dataclass(frozen=True)
class Limits:
    """The settings that the rules depend on."""

    lease_ms: int
    deadline_ms: int
    max_attempts: int
    max_valid: int
    keep_ms: int
    memory_ms: int
    worker_lives_ms: int


@dataclass
class Held:
    """Work under a lease: positions of a round, or a chunk of a validation."""

    start: int
    count: int
    attempts: int = 0
    job: str = ""
    #: When it was taken, or began to be computed.
    at: int = 0
    #: When it is free for others; 0 was given back, or its round changed.
    until: int = 0


class Claims(dict[str, Held]):
    """What is held, by token."""

    def hold(self, token: str, work: Held, now: int, lease_ms: int) -> Held:
        work.at, work.until = now, now + lease_ms
        self[token] = work
        return work

    def take_expired(self, now: int) -> Held | None:
        """The work that was free first; a holder that died has failed once more."""
        free = sorted((work.until, token) for token, work in self.items() if work.until <= now)
        if not free:
            return None
        until, token = free[0]
        work = self.pop(token)
        work.attempts += until > 0
        return work

    def give_back(self, token: str, *, failed: bool) -> None:
        if work := self.get(token):
            work.attempts += failed
            work.until = 0

    def free(self) -> None:
        for work in self.values():
            work.until = 0


@dataclass
class Stretch:
    """Time that passes only while it is on."""

    total: int = 0
    since: int | None = None

    def turn(self, on: bool, now: int) -> None:
        if self.since is not None and not on:
            self.total, self.since = self.total + now - self.since, None
        elif self.since is None and on:
            self.since = now

    def at(self, now: int) -> int:
        return self.total + (now - self.since if self.since is not None else 0)


@dataclass
class Gathered:
    """Callbacks that are joined, by the first of them."""

    first: Message
    items: list[str] = field(default_factory=list)

    @property
    def body(self) -> str:
        return self.first.body + ",".join(self.items) + self.first.tail


@dataclass
class Round:
    """One round."""

    id: str
    config: PoCConfig
    state: PoCState = PoCState.IDLE
    #: Another one after each change; it fences off what is in flight.
    epoch: object = field(default_factory=object)
    cursor: int = 0
    fingerprint: str | None = None
    checked: int = 0
    failed: int = 0
    valid: list[tuple[int, Proof]] = field(default_factory=list)
    #: Where its generation is to end: at so many valid nonces, at this time; 0 for never.
    until_valid: int = 0
    ends_at: int = 0
    error: str = ""
    callbacks: dict[str, int] = field(
        default_factory=lambda: {"pending": 0, "delivered": 0, "refused": 0}
    )
    callback_error: str = ""
    gathered: Gathered | None = None
    #: When such a one went out last in this generation.
    flushed_at: int = 0
    claims: Claims = field(default_factory=Claims)
    tickets: set[str] = field(default_factory=set)
    elapsed: Stretch = field(default_factory=Stretch)
    generating: Stretch = field(default_factory=Stretch)
    #: What flows with time, as it was last brought up to date.
    times: dict[str, float] = field(default_factory=dict)
    expires: int | None = None

    def refresh(self, now: int) -> None:
        elapsed = self.elapsed.at(now)
        rate = self.checked * 1000 / elapsed if elapsed else 0.0
        self.times |= {
            "elapsed_seconds": elapsed / 1000,
            "generating_seconds": self.generating.at(now) / 1000,
            "rate_per_second": float(f"{rate:.3f}"),
            "updated_at": now / 1000,
        }

    def enter(self, state: PoCState, now: int) -> None:
        """A new state, which fences off what is in flight."""
        if self.state == PoCState.GENERATING != state:
            self.claims.free()
        if state == PoCState.GENERATING != self.state:
            self.flushed_at = 0
        self.generating.turn(state == PoCState.GENERATING, now)
        self.elapsed.turn(state != PoCState.STOPPED, now)
        self.state, self.epoch = state, object()
        self.refresh(now)

    def is_due(self, now: int) -> bool:
        """Whether its generation has come to where it was to end."""
        enough = 0 < self.until_valid <= len(self.valid)
        return self.state == PoCState.GENERATING and (enough or 0 < self.ends_at <= now)

    def shown(self) -> dict[str, Any]:
        """What a status says, but for the error."""
        return {
            "state": self.state,
            "round_id": self.id,
            "block_hash": self.config.block_hash,
            "total_checked": self.checked,
            "total_valid": len(self.valid),
            "total_failed": self.failed,
            "until_valid": self.until_valid,
            "ends_at": self.ends_at / 1000,
            "callback_error": self.callback_error,
            **{f"callbacks_{name}": count for name, count in self.callbacks.items()},
            **self.times,
        }


@dataclass
class Job:
    """One validation."""

    batch: Batch
    config: PoCConfig
    round: str
    proofs: dict[int, list[Proof | None]] = field(default_factory=dict)
    done: int = 0
    fingerprint: str | None = None
    mixed: bool = False


@dataclass
class End:
    """What a ticket's caller is to be told."""

    tasks: set[str]
    status: dict[str, Any] | None = None
    result: str | None = None
    error: type[PoCError] | None = None


#: What a command answers with: a status and its error, nothing (a ticket), yes or no, or a refusal.
Outcome = tuple[dict[str, Any], str] | type[PoCError] | bool | None


class Node:
    """All that a namespace remembers."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.now = 1_000_000_000_000
        self.current: Round | None = None
        self.stopped_empty = False
        self.rounds: dict[str, Round] = {}
        self.tombstones: dict[str, int] = {}
        self.outcomes: dict[str, tuple[Outcome, int]] = {}
        self.jobs: dict[str, Job] = {}
        #: Validations that have ended and are still kept, and those of them without a verdict
        #: since a command wanted that.
        self.judged: dict[str, int] = {}
        self.cancelled: set[str] = set()
        self.chunks: deque[Held] = deque()
        self.chunk_claims = Claims()
        self.verdicts: deque[str] = deque()
        #: Ends in their order; those of one round came at once, in any order.
        self.ends: deque[End] = deque()
        #: Callbacks that wait: key -> the round that counts them, and what they say.
        self.outbox: dict[str, tuple[str, str]] = {}
        self.callbacks = {"pending": 0, "delivered": 0, "refused": 0}
        self.workers: dict[str, int] = {}
        self.model: tuple[str, int] | None = None

    def advance(self, ms: int) -> None:
        self.now += ms
        for name in [name for name, r in self.rounds.items() if self._past(r.expires)]:
            del self.rounds[name]
        for kept in (self.tombstones, self.workers, self.judged):
            for name in [name for name, until in kept.items() if until <= self.now]:
                del kept[name]
        for name in [name for name, (_, until) in self.outcomes.items() if until <= self.now]:
            del self.outcomes[name]
        if self.model and self.model[1] <= self.now:
            self.model = None

    def _past(self, until: int | None) -> bool:
        return until is not None and until <= self.now

    # Commands.

    def command(self, verb: str, id: str, made: str, **args: Any) -> Outcome:
        """What `verb` answers; the first time it also happens. `made` is a new round's id."""
        if id not in self.outcomes:
            outcome = getattr(self, f"_{verb}")(id, made, **args)
            self.outcomes[id] = outcome, self.now + self.limits.memory_ms
        return self.outcomes[id][0]

    def _init(self, _: str, made: str, **args: Any) -> Outcome:
        return self._open(made, **args) or self.status()

    def _generate(
        self,
        id: str,
        made: str,
        until_valid: int | None = None,
        seconds: float | None = None,
        **args: Any,
    ) -> Outcome:
        if until_valid and until_valid > self.limits.max_valid:
            return InvalidRequest
        if refusal := self._current_or_new(made, **args):
            return refusal
        current = self.current
        assert current
        current.tickets.add(id)
        if until_valid or seconds or current.state != PoCState.GENERATING:
            current.until_valid = until_valid or 0
            current.ends_at = self.now + round(seconds * 1000) if seconds else 0
        if current.state != PoCState.GENERATING:
            current.enter(PoCState.GENERATING, self.now)
        self._end_when_due()
        return self.status()

    def _validate(self, _: str, made: str, **args: Any) -> Outcome:
        if refusal := self._current_or_new(made, **args):
            return refusal
        self._leave_for(PoCState.VALIDATING)
        return self.status()

    def _stop(self, _: str, __: str, round_id: str | None = None) -> Outcome:
        if round_id and (self.current is None or round_id != self.current.id):
            if named := self.rounds.get(round_id):
                return named.shown(), named.error
            self.tombstones[round_id] = self.now + self.limits.memory_ms
        elif self.current is None:
            self.stopped_empty = True
        elif self.current.state != PoCState.STOPPED:
            self._leave_for(PoCState.STOPPED)
        return self.status()

    def _open_validation(self, id: str, _: str, batch: Batch, config: PoCConfig | None) -> Outcome:
        if id in self.jobs or id in self.judged:
            return None  # a repeat that came after its outcome was forgotten
        judged_by = config or (self.current.config if self.current else None)
        if judged_by is None:
            return RoundNotInitialized
        if batch.block_hash != judged_by.block_hash:
            return RoundMismatch
        counted = "" if config or not self.current else self.current.id
        self.jobs[id] = Job(batch, judged_by, counted)
        size = judged_by.batch_size
        for start in range(0, len(batch), size):
            self.chunks.append(Held(start, min(size, len(batch) - start), job=id))
        if not len(batch):
            self.verdicts.append(id)
        return None

    def _cancel(self, _: str, __: str, validation: str, message: str) -> Outcome:
        if validation in self.jobs:
            self.cancelled.add(validation)
            self._end(validation, None, Cancelled, message)
            self.chunks = deque(work for work in self.chunks if work.job != validation)
            for token in [t for t, work in self.chunk_claims.items() if work.job == validation]:
                del self.chunk_claims[token]
        elif validation not in self.judged:
            return InvalidRequest
        return validation in self.cancelled

    def _current_or_new(
        self,
        made: str,
        config: PoCConfig | None = None,
        round_id: str | None = None,
        replace: bool = False,
    ) -> type[PoCError] | None:
        if config:
            return self._open(made, config, round_id, replace)
        if self.current is None:
            return RoundNotInitialized
        return RoundMismatch if round_id and round_id != self.current.id else None

    def _open(
        self,
        made: str,
        config: PoCConfig,
        round_id: str | None = None,
        replace: bool = False,
    ) -> type[PoCError] | None:
        new = round_id or made
        if new in self.tombstones:
            return RoundMismatch
        if new in self.rounds:
            return InvalidRequest
        if self.current:
            if self.current.state == PoCState.GENERATING and not replace:
                return RoundInProgress
            if self.current.state != PoCState.STOPPED:
                self._leave_for(PoCState.STOPPED)
            self.current.claims.clear()
            self.current.expires = self.now + self.limits.keep_ms
        self.current = self.rounds[new] = Round(new, config)
        self.current.elapsed.turn(on=True, now=self.now)
        self.current.times["started_at"] = self.now / 1000
        self.current.refresh(self.now)
        return None

    def _leave_for(self, state: PoCState, error: type[PoCError] | None = None) -> None:
        current = self.current
        assert current
        was = current.state
        current.enter(state, self.now)
        if was == PoCState.GENERATING != state:
            self._flush(current)
        if was == PoCState.GENERATING and current.tickets:
            self.ends.append(End(current.tickets, current.shown(), error=error))
            current.tickets = set()

    def _end_when_due(self) -> None:
        if self.current and self.current.is_due(self.now):
            self._leave_for(PoCState.STOPPED)

    def _flush_when_due(self) -> None:
        current = self.current
        if current and current.gathered and self.now - current.flushed_at >= GATHER_MS:
            self._flush(current)

    def _flush(self, current: Round) -> None:
        """Send what was gathered as one callback."""
        if joined := current.gathered:
            self.outbox[joined.first.key] = current.id, joined.body
            current.gathered, current.flushed_at = None, self.now

    def _post(self, current: Round, message: Message) -> None:
        """Send a callback, or join it with others, with which it counts as one."""
        if not message.items:
            self.outbox[message.key] = current.id, message.body
        if not message.items or current.gathered is None:
            current.callbacks["pending"] += 1
        if message.items:
            current.gathered = current.gathered or Gathered(message)
            current.gathered.items += message.items

    def status(self) -> tuple[dict[str, Any], str]:
        """What pollers see of the newest round, and its error."""
        if self.current:
            return self.current.shown(), self.current.error
        return {"state": PoCState.STOPPED if self.stopped_empty else PoCState.IDLE}, ""

    # Work.

    def claim(self, token: str, fingerprint: str) -> Held | None:
        """The next positions of the round."""
        self._end_when_due()
        self._flush_when_due()
        current = self.current
        if current is None or current.state != PoCState.GENERATING:
            return None
        current.fingerprint = current.fingerprint or fingerprint
        if current.fingerprint != fingerprint:
            current.error = OTHER_MODEL
            return None
        if current.error == OTHER_MODEL:
            current.error = ""
        work = current.claims.pop(token, None) or current.claims.take_expired(self.now)
        while work and work.attempts >= self.limits.max_attempts:
            current.failed += work.count
            current.error = GAVE_UP
            work = current.claims.take_expired(self.now)
        if not work:
            size, positions = current.config.batch_size, current.config.positions
            if positions < COUNTED:
                size = min(size, positions - current.cursor)
            if not size:
                current.error = USED_UP
                return None
            work = Held(current.cursor, size)
            current.cursor += work.count
        return current.claims.hold(token, work, self.now, self.limits.lease_ms)

    def commit(
        self,
        token: str,
        round_id: str,
        epoch: object,
        failed: int,
        valid: list[tuple[int, Proof]],
        message: Message | None,
    ) -> str | None:
        """Count a batch once; why it did not count."""
        if self.current is None or self.current.id != round_id:
            return OVER
        refused = self._commit(self.current, token, epoch, failed, valid, message)
        self._end_when_due()
        self._flush_when_due()
        return refused

    def _commit(
        self,
        current: Round,
        token: str,
        epoch: object,
        failed: int,
        valid: list[tuple[int, Proof]],
        message: Message | None,
    ) -> str | None:
        if current.state != PoCState.GENERATING:
            return f"the round is {current.state}"
        if current.epoch != epoch:
            return WENT_ON
        if token not in current.claims:
            return TAKEN_OVER
        if len(current.valid) + len(valid) > self.limits.max_valid:
            current.error = FULL
            self._leave_for(PoCState.STOPPED, RoundFailed)
            return FULL
        current.checked += current.claims.pop(token).count - failed
        current.failed += failed
        if failed:
            current.error = NOT_FINITE
        current.valid += valid
        if message:
            self._post(current, message)
        current.refresh(self.now)
        return None

    def claim_chunk(self, token: str) -> Held | None:
        """The next chunk of a validation."""
        self._end_when_due()
        self._flush_when_due()
        work = self.chunk_claims.pop(token, None) or self.chunk_claims.take_expired(self.now)
        if not work:
            if not self.chunks:
                return None
            work = self.chunks.popleft()
        return self.chunk_claims.hold(token, work, self.now, self.limits.lease_ms)

    def commit_chunk(self, token: str, proofs: list[Proof | None], fingerprint: str) -> str | None:
        """Keep a chunk's proofs once; why they were not kept."""
        work = self.chunk_claims.pop(token, None)
        if work is None:
            return CHUNK_TAKEN_OVER
        job = self.jobs[work.job]
        job.fingerprint = job.fingerprint or fingerprint
        if job.fingerprint != fingerprint:
            proofs, job.mixed = [], True
        job.proofs[work.start] = proofs
        job.done += work.count
        if job.done == len(job.batch):
            self.verdicts.append(work.job)
        return None

    def heartbeat(self, worker: str, fingerprint: str, tokens: list[str]) -> bool:
        """A worker lives and keeps what it computes; False: it has the wrong model."""
        if self.model and self.model[0] != fingerprint:
            return False
        lives_until = self.now + self.limits.worker_lives_ms
        self.model = fingerprint, lives_until
        self.workers[worker] = lives_until
        held = self.current.claims | self.chunk_claims if self.current else self.chunk_claims
        first = held.get(tokens[0]) if tokens else None
        hangs = first is None or self._late(first)
        for place, token in enumerate(tokens):
            work = held.get(token)
            if work is None or work.until == 0:
                continue
            if place > 0 and not hangs:
                work.at = self.now  # it waits behind the first
            if not self._late(work):
                work.until = self.now + self.limits.lease_ms
        if self.current and self.current.state != PoCState.STOPPED:
            self.current.refresh(self.now)
        self._end_when_due()
        self._flush_when_due()
        return True

    def _late(self, work: Held) -> bool:
        return self.now >= work.at + self.limits.deadline_ms

    def leave(self, worker: str) -> None:
        self.workers.pop(worker, None)
        if not self.workers:
            self.model = None

    # What the world is told.

    def finish(self, id: str, result: str | None, message: str | None) -> None:
        """End a validation, once: with a `result`, or without a verdict."""
        if id in self.jobs:
            self._end(id, result, None if result else CouldNotCompute, message)

    def _end(
        self, id: str, result: str | None, error: type[PoCError] | None, message: str | None
    ) -> None:
        job = self.jobs.pop(id)
        self.judged[id] = self.now + self.limits.keep_ms
        if id in self.verdicts:
            self.verdicts.remove(id)
        self.ends.append(End({id}, result=result, error=error))
        if message:
            self.outbox[message] = job.round, "{}"
            self._count(job.round, "pending", 1)

    def settle(self, key: str, error: str | None) -> None:
        """A callback was delivered, or refused with `error`, once."""
        if key in self.outbox:
            of, _ = self.outbox.pop(key)
            self._count(of, "pending", -1)
            self._count(of, "refused" if error else "delivered", 1)
            if error and of in self.rounds:
                self.rounds[of].callback_error = error

    def _count(self, of: str, name: str, by: int) -> None:
        if not of:
            self.callbacks[name] += by
        elif of in self.rounds:
            self.rounds[of].callbacks[name] += by
