"""What a program without Celery does: LPUSH a message, GET its result."""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any

import redis

from support import wait_until


def raw_message(task: str, id: str, kwargs: dict[str, Any], queue: str) -> str:
    """What any language pushes with one LPUSH to the list `queue`; nothing can be left out."""
    body = json.dumps([[], kwargs, {"callbacks": None, "errbacks": None}])
    return json.dumps(
        {
            "body": base64.b64encode(body.encode()).decode(),
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {"task": task, "id": id},
            "properties": {
                "correlation_id": id,
                "body_encoding": "base64",
                "delivery_info": {"exchange": "", "routing_key": queue},
                "delivery_tag": id,
            },
        }
    )


def push(direct: redis.Redis, task: str, kwargs: dict[str, Any], task_id: str = "") -> str:
    """Enqueue `task` in the namespace `test` and return its id."""
    task_id = task_id or str(uuid.uuid4())
    direct.lpush("poc.test", raw_message(task, task_id, kwargs, "poc.test"))
    return task_id


def meta(direct: redis.Redis, id: str) -> dict[str, Any]:
    """How a task stands, as soon as a worker has it."""
    raw: Any = wait_until(lambda: direct.get(f"celery-task-meta-{id}"), description="the result")
    found: dict[str, Any] = json.loads(raw)
    return found
