"""Jobs: validations that come by HTTP, from their admission on."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from shared.store.connection import redis_errors
from shared.store.context import Context
from shared.wire import MAX_PROOF_NONCES

#: Nonces of validations, and commands, that may wait for workers when one more job comes.
MAX_NONCES, MAX_COMMANDS = MAX_PROOF_NONCES, 64


class Waiting(NamedTuple):
    """What waits for workers."""

    nonces: int
    commands: int


class Jobs:
    """The jobs of a namespace. Each is a validation, and its id is that of the task."""

    def __init__(self, context: Context) -> None:
        self._redis, self._keys, self._scripts = context.redis, context.keys, context.scripts
        self._settings = context.settings

    def reserve(
        self, job: str, nonces: int, for_s: float, *, again: bool = False
    ) -> Waiting | None:
        """Keep room for a job of so many `nonces` that is about to be sent; it may be asked for.

        None, or what waits, if that leaves no room. The room is the job's until it has ended, or
        until no worker has opened it for `for_s` seconds. With `again` it was sent, and keeps the
        room that it has for so long from now. Raises `StoreUnavailable`.
        """
        answer = self._scripts.call(
            "reserve",
            namespace=self._settings.namespace,
            job=job,
            nonces=nonces,
            most=MAX_NONCES,
            most_commands=MAX_COMMANDS,
            for_s=for_s,
            keep_s=self._settings.command_memory_s,
            again=again or None,
        )
        return Waiting(**answer["waiting"]) if "waiting" in answer else None

    def look(self, job: str) -> dict[str, Any] | None:
        """The state of its task as Celery keeps it, PENDING before a worker has it.

        None for a task that is no job. Raises `StoreUnavailable`.
        """
        with redis_errors():
            expected, meta = self._redis.mget(
                self._keys("expected", job), self._keys("result", job)
            )
        if not expected:
            return None
        found: dict[str, Any] = json.loads(meta) if meta else {"status": "PENDING"}
        return found
