"""What is to be seen of a node, read at one go."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress

from pydantic import ValidationError

from shared.histogram import edge
from shared.overview import Bin, Course, Outcome, Sample, Totals
from shared.status import OutboxStatus
from shared.store.connection import redis_errors
from shared.store.context import Context

#: Validations that an overview shows.
OUTCOMES = 20


class Views:
    """What of a node only viewers need."""

    def __init__(self, context: Context) -> None:
        self._redis, self._keys = context.redis, context.keys
        self._queue = context.settings.queue

    def read(self, round_id: str, vocab_size: int) -> dict[str, object]:
        """The fields of an `Overview` that no status has; `round_id` may be empty."""
        key = self._keys
        with redis_errors(), self._redis.pipeline(transaction=True) as pipe:
            # In one step: what a round has counted is in the totals once it is no longer current.
            pipe.time()
            pipe.hget(key("clock"), "offset")
            pipe.hgetall(key("totals"))
            pipe.hmget(key("status"), "total_checked", "total_valid", "total_failed")
            pipe.xrevrange(key("outcomes"), count=OUTCOMES)
            pipe.llen(self._queue)
            pipe.xlen(key("outbox"))
            pipe.hmget(key("callbacks"), "oldest_at", "last_error")
            pipe.lrange(key("history", round_id or "-"), 0, -1)
            pipe.hgetall(key("histogram", round_id or "-"))
            pipe.hlen(key("claims", round_id or "-"))
            clock, offset, totals, counts, outcomes, queue, outbox, trouble, *of_round = (
                pipe.execute()
            )
        history, bins, claims = of_round
        # Streams have the server's clock; all else has that of the scripts, which never goes back.
        ahead = int(offset or 0) / 1000
        now = _seconds(clock) + ahead
        waiting = _waiting(now, outbox, trouble)
        return {
            "at": now,
            "totals": _totals(totals, counts),
            "outcomes": [each for name, entry in outcomes for each in _outcome(name, entry, ahead)],
            "claims": claims,
            "queue_length": queue,
            "outbox_length": waiting.waiting,
            "outbox_oldest_seconds": waiting.oldest_seconds,
            "outbox_error": waiting.error,
            "history": [_sample(line) for line in history],
            "histogram": _histogram(bins, vocab_size),
        }

    def outbox(self) -> OutboxStatus:
        """What waits for delivery."""
        with redis_errors(), self._redis.pipeline(transaction=True) as pipe:
            pipe.time()
            pipe.hget(self._keys("clock"), "offset")
            pipe.xlen(self._keys("outbox"))
            pipe.hmget(self._keys("callbacks"), "oldest_at", "last_error")
            clock, offset, length, trouble = pipe.execute()
        return _waiting(_seconds(clock) + int(offset or 0) / 1000, length, trouble)

    def course(self, round_id: str, vocab_size: int) -> Course:
        """The course of a round that is kept."""
        with redis_errors(), self._redis.pipeline(transaction=True) as pipe:
            pipe.time()
            pipe.hget(self._keys("clock"), "offset")
            pipe.lrange(self._keys("history", round_id), 0, -1)
            pipe.hgetall(self._keys("histogram", round_id))
            clock, offset, history, bins = pipe.execute()
        return Course(
            at=_seconds(clock) + int(offset or 0) / 1000,
            history=[_sample(line) for line in history],
            histogram=_histogram(bins, vocab_size),
        )


def _seconds(clock: Sequence[int]) -> float:
    return clock[0] + clock[1] / 1e6


def _waiting(now: float, length: int, trouble: Sequence[str | None]) -> OutboxStatus:
    since, error = float(trouble[0] or 0), trouble[1] or ""
    oldest = max(0.0, now - since) if length and since else 0.0
    return OutboxStatus(waiting=length, oldest_seconds=oldest, error=error)


def _totals(kept: Mapping[str, str], current: Sequence[str | None]) -> Totals:
    """What is kept of earlier rounds, and `current`: checked, valid and failed of the newest."""
    counts = {name: int(count) for name, count in kept.items()}
    for name, count in zip(("checked", "valid", "failed"), current, strict=True):
        counts[name] = counts.get(name, 0) + int(count or 0)
    labelled: dict[str, dict[str, int]] = {}
    for name in [name for name in counts if ":" in name]:
        family, label = name.split(":", 1)
        labelled.setdefault(family, {})[label] = counts.pop(name)
    return Totals.model_validate({**counts, **labelled})


def _outcome(id: str, fields: Mapping[str, str], ahead: float) -> list[Outcome]:
    """None of another version's that can't be read."""
    with suppress(ValidationError, ValueError, TypeError, LookupError):
        at = int(id.partition("-")[0]) / 1000 + ahead
        return [Outcome(**{**json.loads(fields["summary"]), "at": at})]
    return []


def _sample(line: str) -> Sample:
    at, checked, valid = line.split()
    return Sample(at=float(at), checked=int(checked), valid=int(valid))


def _histogram(counts: Mapping[str, str], vocab_size: int) -> list[Bin]:
    """From the first bin that has some to the last."""
    nonces = {int(number): int(count) for number, count in counts.items()}
    if not nonces or not vocab_size:
        return []
    return [
        Bin(
            low=edge(number, vocab_size),
            high=edge(number + 1, vocab_size),
            nonces=nonces.get(number, 0),
        )
        for number in range(min(nonces), max(nonces) + 1)
    ]
