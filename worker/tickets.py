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
from shared.store.scripts import redis_errors

log = logging.getLogger(__name__)

PROGRESS = "PROGRESS"

# Celery's own store_result reads and then writes, so a late report could undo an end. KEYS[1] is
# the task's key, on whose channel a waiting caller listens; ARGV its new state and its life.
# Given KEYS[2], the work must be among its members, as ARGV[3]: a Redis that lost the work
# must not show progress of it, or its caller would wait for ever instead of sending it again.
_STORE_UNLESS_ENDED = """
if KEYS[2] then
  local sorted = redis.call('TYPE', KEYS[2]).ok == 'zset'
  local found = redis.call(sorted and 'ZSCORE' or 'SISMEMBER', KEYS[2], ARGV[3])
  if not found or found == 0 then return 0 end
end
local now = redis.call('GET', KEYS[1])
if now then
  local status = cjson.decode(now).status
  if status == 'SUCCESS' or status == 'FAILURE' or status == 'REVOKED' then return 0 end
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
redis.call('PUBLISH', KEYS[1], ARGV[1])
return 1
"""


class CeleryTickets:
    """The sink for tickets that Celery's callers and Flower see. Thread-safe."""

    def __init__(self, app: Celery, worker: str) -> None:
        self._app, self._worker = app, worker
        self._store_unless_ended = app.backend.client.register_script(_STORE_UNLESS_ENDED)

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
        self._store(task, states.FAILURE, self._app.backend.prepare_exception(error))
        self._send("task-failed", task, exception=repr(error), traceback="")

    def _store(self, task: str, state: str, result: Any, among: str | None = None) -> bool:
        backend = self._app.backend
        meta = {
            "status": state,
            "result": result,
            "traceback": None,
            "children": [],
            "date_done": self._app.now().isoformat() if state in states.READY_STATES else None,
            "task_id": task,
            "worker": self._worker,
        }
        with redis_errors():
            return bool(
                self._store_unless_ended(
                    keys=[backend.get_key_for_task(task), *([among] if among else [])],
                    args=[backend.encode(meta), int(self._app.conf.result_expires), task],
                )
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
