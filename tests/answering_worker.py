"""A stand-in for a worker, for what is on the other side of the queue."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Callable
from typing import Any

import redis

from shared.broker import celery_app
from shared.settings import Settings

#: What a command gets: (state, result) in the result backend, or None for no answer at all.
Reply = tuple[str, Any] | None


class AnsweringWorker(threading.Thread):
    """Takes messages off the queue and stores what `answer(count)` says for each."""

    def __init__(self, settings: Settings, answer: Callable[[int], Reply]) -> None:
        super().__init__(daemon=True)
        self.got: list[tuple[str, str, dict[str, Any]]] = []
        self._queue, self._answer = settings.queue, answer
        self._redis = redis.Redis.from_url(settings.redis_url)
        self._app = celery_app(settings)
        self._closing = threading.Event()

    def run(self) -> None:
        while not self._closing.is_set():
            item: Any = None
            with contextlib.suppress(redis.RedisError):
                item = self._redis.brpop([self._queue], timeout=0.05)
            if item is None:
                continue
            message = json.loads(item[1])
            headers = message["headers"]
            kwargs = json.loads(base64.b64decode(message["body"]))[1]
            self.got.append((headers["task"], headers["id"], kwargs))
            if reply := self._answer(len(self.got)):
                self.tell(*reply)

    def tell(self, state: str, result: Any) -> None:
        """Store the state of the command that came last."""
        self._app.backend.store_result(self.got[-1][1], result, state)

    def close(self) -> None:
        self._closing.set()
        self.join()
        self._redis.close()
        self._app.close()
