"""Tickets: tasks that stand for long work and are ended by whoever ends the work.

A task that takes a ticket ends at once, without a result. From then on its state in Celery's
result backend, and what Flower hears of it, is written here, by any worker.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from celery import Celery, states
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from shared.errors import PoCError
from shared.store import Store
from worker.queue.results import PROGRESS

log = logging.getLogger(__name__)

#: What a ticket's end does not replace.
ENDED = (states.SUCCESS, states.FAILURE, states.REVOKED)
#: Nor progress: but an open ticket's id may have an older failure, of a command that was refused,
#: mended and sent again.
SUCCEEDED = (states.SUCCESS,)


class CeleryTickets:
    """The sink for tickets that Celery's callers and Flower see. Thread-safe."""

    def __init__(self, app: Celery, store: Store, worker: str) -> None:
        self._app, self._store, self._worker = app, store, worker

    def progress(self, task: str, state: dict[str, Any], open_in: str) -> None:
        """Show how far `task` is, if it is still open and has not ended.

        `open_in` is the round that its ticket is of; empty for a validation.
        """
        if self._put(task, PROGRESS, state, SUCCEEDED, open_in):
            self._send("task-progress", task, result=state)

    def succeeded(self, task: str, result: dict[str, Any]) -> None:
        """End `task` with `result`, unless it has ended."""
        self._put(task, states.SUCCESS, result, ENDED)
        # Also when it was stored before: whoever did may have been killed before the event.
        self._send("task-succeeded", task, result=_short(result), runtime=None)

    def failed(self, task: str, error: PoCError) -> None:
        """End `task` with `error`, unless it has ended."""
        self._put(task, states.FAILURE, self._app.backend.prepare_exception(error), ENDED)
        self._send("task-failed", task, exception=repr(error), traceback="")

    def _put(
        self, task: str, state: str, result: Any, unless: Sequence[str], open_in: str | None = None
    ) -> bool:
        meta = {
            "status": state,
            "result": result,
            "traceback": None,
            "children": [],
            "date_done": self._app.now().isoformat() if state in states.READY_STATES else None,
            "task_id": task,
            "worker": self._worker,
        }
        return self._store.results.put(task, self._app.backend.encode(meta), unless, open_in)

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
