"""Tickets: tasks that stand for long work and are ended by whoever ends the work.

A task that takes a ticket ends at once, without a result. From then on its state in Celery's
result backend, and what Flower hears of it, is written here, by any worker.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery, states
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from shared.errors import PoCError
from worker.queue.results import PROGRESS, Results

log = logging.getLogger(__name__)

#: What a ticket's end does not replace.
ENDED = (states.SUCCESS, states.FAILURE, states.REVOKED)
#: Nor progress: but an open ticket's id may have an older failure, of a command that was refused,
#: mended and sent again.
SUCCEEDED = (states.SUCCESS,)


class CeleryTickets:
    """The sink for tickets that Celery's callers and Flower see. Thread-safe."""

    def __init__(self, app: Celery, worker: str) -> None:
        """`app` keeps its results in `Results`."""
        self._app, self._worker = app, worker
        self._results: Results = app.backend

    def progress(self, task: str, state: dict[str, Any], among: str) -> None:
        """Show how far `task` is, if it is `among` what is open, and has not ended."""
        if self._store(task, PROGRESS, state, among):
            self._send("task-progress", task, result=state)

    def succeeded(self, task: str, result: dict[str, Any]) -> None:
        """End `task` with `result`, unless it has ended."""
        self._store(task, states.SUCCESS, result)
        # Also when it was stored before: whoever did may have been killed before the event.
        self._send("task-succeeded", task, result=_short(result), runtime=None)

    def failed(self, task: str, error: PoCError) -> None:
        """End `task` with `error`, unless it has ended."""
        self._store(task, states.FAILURE, self._results.prepare_exception(error))
        self._send("task-failed", task, exception=repr(error), traceback="")

    def _store(self, task: str, state: str, result: Any, among: str | None = None) -> bool:
        meta = {
            "status": state,
            "result": result,
            "traceback": None,
            "children": [],
            "date_done": self._app.now().isoformat() if state in states.READY_STATES else None,
            "task_id": task,
            "worker": self._worker,
        }
        return self._results.store(
            task, meta, unless=ENDED if among is None else SUCCEEDED, among=among
        )

    def _send(self, event: str, task: str, **fields: Any) -> None:
        """Tell whoever watches. An event is news, not state: one that is lost is not repeated."""
        try:
            with self._app.events.default_dispatcher(hostname=self._worker) as dispatcher:
                dispatcher.send(event, uuid=task, **fields)
        except (OperationalError, RedisError, OSError) as error:
            log.warning("Flower was not told of %s of %s: %s", event, task, error)


def _short(result: dict[str, Any]) -> str:
    text = repr(result)
    return text if len(text) <= 1000 else f"{text[:997]}..."
