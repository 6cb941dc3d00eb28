"""The states of tasks, where Celery's callers look for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from shared.store.connection import redis_errors
from shared.store.context import Context


class Results:
    """What is shown of tasks. An end that is shown stays."""

    def __init__(self, context: Context) -> None:
        self._redis, self._keys, self._scripts = context.redis, context.keys, context.scripts
        self._keep_s = context.settings.command_memory_s

    def expect(self, task: str) -> None:
        """Note that `task` is about to be sent, so that it can be told from an unknown one."""
        with redis_errors():
            self._redis.set(self._keys("expected", task), 1, ex=self._keep_s)

    def look(self, task: str) -> dict[str, Any] | None:
        """The state of an expected task as Celery keeps it, PENDING before a worker has it.

        None for any other. Raises `StoreUnavailable`.
        """
        with redis_errors():
            expected, meta = self._redis.mget(
                self._keys("expected", task), self._keys("result", task)
            )
        if not expected:
            return None
        found: dict[str, Any] = json.loads(meta) if meta else {"status": "PENDING"}
        return found

    def put(self, task: str, meta: str, unless: Sequence[str], open_in: str | None = None) -> bool:
        """Show `meta`, a task's state as Celery's JSON, `unless` it is in one of these states.

        With `open_in` only if the task still is an open ticket: of that round, or, where it is
        empty, an open validation. Whether it was stored. Raises `StoreUnavailable`.
        """
        return bool(
            self._scripts.call(
                "store_result",
                task=task,
                meta=meta,
                keep_s=self._keep_s,
                unless=list(unless),
                open=open_in is not None,
                round=open_in or None,
            )
        )
