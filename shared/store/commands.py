"""Commands on their way from the queue to their outcome.

A worker takes one by moving it into a list of its own, in one step, and removes it when it is
done. So a command is always in Redis: what was taken and is worked on no more is put back.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection
from dataclasses import dataclass

from shared.store.connection import redis_errors
from shared.store.context import Context
from shared.store.dead_letters import KEEP_BYTES, KEEP_ITEMS, KEEP_S

log = logging.getLogger(__name__)

#: How often one may be put back, and the seconds after which that is forgotten: a command that ends
#: each worker that takes it must not take them all.
PUT_BACK, FORGET_S = 5, 86_400


def digest(item: bytes) -> str:
    """What an item of the queue is told by: it may have megabytes, and may not be text."""
    return hashlib.sha1(item, usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class _PutBack:
    left: list[str]
    back: int
    aside: int


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
        with redis_errors():
            self._redis.lrem(self._keys("taken", worker), 1, item)

    def put_back(self, worker: str, idle: Collection[str]) -> list[str]:
        """Put back what live `worker` took and works on no more: `idle`, by their digests.

        The digests of what it has, besides these. Raises `StoreError`.
        """
        return self._put_back(worker, idle).left

    def put_back_of_the_dead(self) -> None:
        """Put back what workers took that live no more. Raises `StoreError`."""
        with redis_errors():
            takers = self._redis.smembers(self._keys("takers"))
            living = self._redis.zrange(self._keys("workers"), 0, -1)
        for worker in takers.difference(living):
            self._put_back(worker, None)

    def _put_back(self, worker: str, idle: Collection[str] | None) -> _PutBack:
        answer = self._scripts.call(
            "put_back",
            worker=worker,
            namespace=self._namespace,
            idle=None if idle is None else list(idle),
            most=PUT_BACK,
            most_s=FORGET_S,
            keep_items=KEEP_ITEMS,
            keep_bytes=KEEP_BYTES,
            keep_s=KEEP_S,
        )
        done = _PutBack(list(answer["left"]), answer["back"], answer["aside"])
        if done.back:
            log.warning("%d commands that %s took are put back: it did not end", done.back, worker)
        if done.aside:
            log.error(
                "%d commands that %s took were put back %d times before, and are kept in %s",
                done.aside,
                worker,
                PUT_BACK,
                self._keys("dead_letters"),
            )
        return done
