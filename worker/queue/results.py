"""Celery's Redis result backend: an end that is shown stays, and none is made up.

Select it with `result_backend = "worker.queue.results:Results+redis://..."`, or `SentinelResults`
with `sentinel://`, in an application that has a `node`.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import states
from celery.backends.redis import RedisBackend, SentinelBackend
from celery.exceptions import NotRegistered

from shared.errors import StoreError

log = logging.getLogger(__name__)

PROGRESS = "PROGRESS"

#: Seconds that a task waits for Redis before it is tried again later.
PATIENCE_S = 60.0


class Results(RedisBackend):  # type: ignore[misc]
    """Where Celery itself shows the ends of tasks. Those of tickets are `CeleryTickets`'."""

    def mark_as_failure(self, task_id: str, exc: Exception, *args: Any, **kwargs: Any) -> Any:
        """How Celery refuses a task that there is not: with the names of those that there are."""
        if isinstance(exc, NotRegistered):
            known = ", ".join(sorted(self.app.tasks))
            exc = NotRegistered(f"there is no task {str(exc)[:100]}; there are {known}")
        return super().mark_as_failure(task_id, exc, *args, **kwargs)

    def _store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **_: Any,
    ) -> Any:
        """How Celery itself ends a task: insisting as the task did, since it has been carried out.

        A ticket whose work is open ends with its work; what wants to end it earlier is a repeat, or
        another message under its id. Success may follow on a failure: the command was mended and
        sent again. The traceback is for the worker's log alone.
        """
        stays = [states.SUCCESS, PROGRESS]
        if state != states.SUCCESS:
            stays.append(states.FAILURE)
        meta = self._get_result_meta(result=result, state=state, traceback=None, request=request)
        meta["task_id"] = task_id
        node = self.app.node
        try:
            stored = node.outage.until_answered(
                lambda: node.store.results.put(task_id, self.encode(meta), unless=stays),
                node.closing,
                PATIENCE_S,
            )
        except StoreError as error:
            # Not a failure, which would be final: tried again under its id it has its answer.
            log.warning("task %s is not answered yet, and tried again later: %s", task_id, error)
            if request is not None:
                request.unanswered = True
        else:
            if not stored and state != states.SUCCESS:
                log.info("task %s has another end, or none yet: %s is not shown", task_id, state)
        return result


class SentinelResults(Results, SentinelBackend):  # type: ignore[misc]
    """The same in the primary that Sentinels name."""

    @property
    def _transport_options(self) -> dict[str, Any]:
        # Not from the application's options, which whoever may list workers sees.
        options: dict[str, Any] = self.app.node.settings.redis.celery_options
        return options
