"""Celery's Redis result backend: an end that is shown stays, and none is made up.

Select it with `result_backend = "worker.queue.results:Results+redis://..."`, in an application
that has a `node`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from celery import states
from celery.backends.redis import RedisBackend

from shared.errors import StoreUnavailable
from shared.store import redis_errors

log = logging.getLogger(__name__)

PROGRESS = "PROGRESS"

#: Seconds that a task waits for Redis before it is left unanswered.
PATIENCE_S = 60.0

# Celery's own way reads and then writes, so two reports at once could undo an end. KEYS[1] is the
# task's key, on whose channel a waiting caller listens; ARGV its new state, its life in seconds,
# its id, and the states that it is left in. What can't be read is no end, and is replaced.
# Given KEYS[2], the task must be among its members: a Redis that lost the work must not show
# progress of it, or its caller would wait for ever instead of sending it again.
_STORE = """
if KEYS[2] then
  local sorted = redis.call('TYPE', KEYS[2]).ok == 'zset'
  local found = redis.call(sorted and 'ZSCORE' or 'SISMEMBER', KEYS[2], ARGV[3])
  if not found or found == 0 then return 0 end
end
local is_ours = redis.call('TYPE', KEYS[1]).ok == 'string'
local read, now = pcall(cjson.decode, is_ours and redis.call('GET', KEYS[1]) or 'null')
if read and type(now) == 'table' then
  for i = 4, #ARGV do
    if now.status == ARGV[i] then return 0 end
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
redis.call('PUBLISH', KEYS[1], ARGV[1])
return 1
"""


class Results(RedisBackend):  # type: ignore[misc]
    """Where the ends of tasks are shown: those of tickets, and those that Celery itself stores."""

    def store(
        self, task_id: str, meta: Mapping[str, Any], unless: Sequence[str], among: str | None = None
    ) -> bool:
        """Store a task's state, `unless` it is in one of these, and only if it is `among` a key's.

        In one step; whether it was stored. Raises `StoreUnavailable`.
        """
        keys = [self.get_key_for_task(task_id), *([among] if among else [])]
        with redis_errors():
            return bool(
                self._script(keys=keys, args=[self.encode(meta), self.expires, task_id, *unless])
            )

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
            stored = node.outage.insist(
                lambda: self.store(task_id, meta, unless=stays),
                node.closing,
                PATIENCE_S,
            )
        except StoreUnavailable as error:
            # Not a failure, which would be final: sent again under its id it has its answer.
            log.warning("task %s is left unanswered: %s", task_id, error)
        else:
            if not stored and state != states.SUCCESS:
                log.info("task %s has another end, or none yet: %s is not shown", task_id, state)
        return result

    @cached_property
    def _script(self) -> Any:
        return self.client.register_script(_STORE)
