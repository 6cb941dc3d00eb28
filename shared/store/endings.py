"""The ends of tickets that callers have yet to be told."""

from __future__ import annotations

import json
from dataclasses import dataclass

from shared import errors
from shared.store.connection import redis_errors
from shared.store.context import Context
from shared.store.dead_letters import DeadLetters


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of one ticket: a round's final hash, a verdict, or an error."""

    task: str
    #: The final hash of the round that the task generated in.
    round_fields: dict[str, str] | None
    #: A `ValidatedBatch` as JSON.
    verdict: str | None
    error: errors.PoCError | None
    raw: bytes


class Endings:
    """The queue of ends. Whoever tells one removes it afterwards, so a crash repeats it."""

    def __init__(self, context: Context, dead_letters: DeadLetters) -> None:
        self._redis, self._keys, self._dead_letters = context.redis, context.keys, dead_letters

    def next(self) -> Ending | None:
        """The oldest end, which stays in the queue until `drop`. What is none is set aside."""
        while (raw := self._dead_letters.head("endings")) is not None:
            try:
                return _read(raw)
            except (ValueError, TypeError, LookupError, RecursionError) as error:
                self._dead_letters.keep_from("endings", raw, error)
        return None

    def drop(self, ending: Ending) -> None:
        """Take an end that was told out of the queue."""
        with redis_errors():
            self._redis.lrem(self._keys("endings"), 1, ending.raw)

    def set_aside(self, ending: Ending, why: object) -> None:
        """Take an end that can't be told out of the queue, and keep it for inspection."""
        self._dead_letters.keep_from("endings", ending.raw, why)

    def may_report(self, every_s: float) -> bool:
        """Whether the caller is the one to report progress now: one worker each `every_s`."""
        with redis_errors():
            key = self._keys("reporter")
            return bool(self._redis.set(key, "1", nx=True, px=round(every_s * 1000)))


def _read(raw: bytes) -> Ending:
    fields = json.loads(raw)
    task = fields["task"]
    if not isinstance(task, str) or not task.encode():  # raises for half a character
        raise TypeError(f"the task is {task!r}")
    error = fields.get("error")
    return Ending(
        task=task,
        round_fields=fields.get("status"),
        verdict=fields.get("result"),
        error=errors.named(error["error"], error["message"]) if error else None,
        raw=raw,
    )
