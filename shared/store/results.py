"""The states of tasks, where Celery's callers look for them."""

from __future__ import annotations

from collections.abc import Sequence

from shared.store.context import Context


class Results:
    """What is shown of tasks. An end that is shown stays."""

    def __init__(self, context: Context) -> None:
        self._scripts = context.scripts
        self._keep_s = context.settings.command_memory_s

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
