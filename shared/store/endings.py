"""What the rest of the world still has to be told: the ends of tickets."""

from __future__ import annotations

import json
from dataclasses import dataclass

from shared import errors
from shared.keys import Keys
from shared.store.scripts import Client, redis_errors


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of one ticket: a round's final hash, a verdict, or an error."""

    task: str
    #: The final hash of the round that the task generated in.
    round_fields: dict[str, str] | None
    #: A `ValidatedBatch` as JSON.
    verdict: str | None
    error: errors.PoCError | None
    raw: str


class Endings:
    """The queue of ends. Whoever tells one removes it afterwards, so a crash repeats it."""

    def __init__(self, redis: Client, keys: Keys) -> None:
        self._redis, self._keys = redis, keys

    def next(self) -> Ending | None:
        """The oldest end, which stays in the queue until `drop`."""
        with redis_errors():
            raw = self._redis.lindex(self._keys("endings"), 0)
        if raw is None:
            return None
        fields = json.loads(raw)
        error = fields.get("error")
        return Ending(
            task=fields["task"],
            round_fields=fields.get("status"),
            verdict=fields.get("result"),
            error=getattr(errors, error["error"])(error["message"]) if error else None,
            raw=raw,
        )

    def drop(self, ending: Ending) -> None:
        """Take an end that was told out of the queue."""
        with redis_errors():
            self._redis.lrem(self._keys("endings"), 1, ending.raw)

    def may_report(self, every_s: float) -> bool:
        """Whether the caller is the one to report progress now: one worker each `every_s`."""
        with redis_errors():
            key = self._keys("reporter")
            return bool(self._redis.set(key, "1", nx=True, px=round(every_s * 1000)))
