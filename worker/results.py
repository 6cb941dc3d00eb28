"""Celery's Redis result backend, without what callers have no use for.

Select it with `result_backend = "worker.results:Results+redis://..."`.
"""

from __future__ import annotations

from typing import Any

from celery.backends.redis import RedisBackend


class Results(RedisBackend):  # type: ignore[misc]
    """Says what went wrong, but not where in our code: the worker's log has the traceback."""

    def mark_as_failure(
        self, task_id: str, exc: BaseException, traceback: Any = None, **options: Any
    ) -> None:
        """Store `exc` as the end of a task."""
        super().mark_as_failure(task_id, exc, traceback=None, **options)
