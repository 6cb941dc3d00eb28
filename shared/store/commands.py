"""Commands on their way from the queue to their outcome.

A worker takes one by moving it into a list of its own, in one step, and removes it when it is
done. So a command is always in Redis: what was taken and is worked on no more is put back.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection

from shared.errors import StoreFailed
from shared.store.connection import redis_errors
from shared.store.context import Context
from shared.store.dead_letters import KEEP_BYTES, KEEP_ITEMS, KEEP_S

log = logging.getLogger(__name__)

#: How often one may be put back: a command that ends each worker that takes it must not end them
#: all, nor must one that breaks each connection keep all others waiting. Connections break often.
OF_THE_DEAD, OF_THE_LIVING = 5, 50
#: Seconds after which that is forgotten.
FORGET_S = 86_400
#: Milliseconds after its last heartbeat until a worker can have taken nothing any more.
GONE_MS = 60_000


def digest(item: bytes) -> str:
    """What an item of the queue is told by: it may have megabytes, and may not be text."""
    return hashlib.sha1(item, usedforsecurity=False).hexdigest()


class Commands:
    """The queue of a namespace, and what its workers have taken of it."""

    def __init__(self, context: Context) -> None:
        self._redis, self._keys, self._scripts = context.redis, context.keys, context.scripts
        self._namespace = context.settings.namespace

    def taken_key(self, worker: str) -> str:
        """The list that `worker` moves into what it takes."""
        return self._keys("taken", worker)

    def settle(self, worker: str, item: bytes) -> None:
        """`item`, which `worker` took, is done: its outcome is in Redis. Raises `StoreError`."""
        with redis_errors(), self._redis.pipeline() as pipe:
            pipe.lrem(self.taken_key(worker), 1, item)
            pipe.hdel(self._keys("put_back"), digest(item))
            pipe.execute()

    def put_back(self, worker: str, idle: Collection[str], working: int = 0) -> list[str]:
        """Put back what live `worker` took and works on no more: `idle`, by their digests.

        The digests of what it has besides these, if that is more than the `working` that it works
        on. Raises `StoreError`.
        """
        return self._put_back(worker, idle, working)

    def put_back_of_the_dead(self) -> None:
        """Put back what workers took that live no more. Raises `StoreError`."""
        with redis_errors():
            takers = self._redis.zrange(self._keys("takers"), 0, -1)
            living = self._redis.zrange(self._keys("workers"), 0, -1)
        trouble = None
        for worker in set(takers).difference(living):
            try:
                self._put_back(worker, None)
            except StoreFailed as error:  # of one list: the others need not wait
                trouble = error
        if trouble:
            raise trouble

    def _put_back(
        self, worker: str, idle: Collection[str] | None, working: int | None = None
    ) -> list[str]:
        answer = self._scripts.call(
            "put_back",
            worker=worker,
            namespace=self._namespace,
            idle=None if idle is None else list(idle),
            working=working,
            weight=OF_THE_LIVING // OF_THE_DEAD if idle is None else 1,
            most=OF_THE_LIVING,
            most_s=FORGET_S,
            keep_items=KEEP_ITEMS,
            keep_bytes=KEEP_BYTES,
            keep_s=KEEP_S,
            gone_ms=GONE_MS,
        )
        if back := answer["back"]:
            log.warning("%d commands that %s took and did not finish are put back", back, worker)
        if aside := answer["aside"]:
            log.error(
                "%d commands that %s took were put back again and again, and are kept in %s",
                aside,
                worker,
                self._keys("dead_letters"),
            )
        return list(answer["left"])
