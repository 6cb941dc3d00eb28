"""What nobody can read: written by another version or by mistake, kept for inspection."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from redis.client import NEVER_DECODE

from shared.store.connection import Client, redis_errors
from shared.store.context import Context

log = logging.getLogger(__name__)

#: The items kept, the newest first, and the bytes of each.
KEEP_ITEMS, KEEP_BYTES = 100, 1 << 20
#: Seconds after the last one until the list is removed.
KEEP_S = 7 * 86_400
#: The bytes of an item that are logged.
SHOW_BYTES = 200


@contextmanager
def keeping(redis: Client, key: str, item: bytes, place: str, why: object) -> Iterator[Any]:
    """A transaction that keeps `item` in the list `key`; the caller adds what removes it elsewhere.

    Raises `StoreUnavailable`.
    """
    log.error(
        "kept %d bytes of %s that can't be read: %s; they begin with %r. Look at them with "
        "LRANGE %s 0 -1 and mend what sends them",
        len(item),
        place,
        why,
        item[:SHOW_BYTES],
        key,
    )
    with redis_errors(), redis.pipeline() as pipe:
        yield pipe
        pipe.lpush(key, item[:KEEP_BYTES])
        pipe.ltrim(key, 0, KEEP_ITEMS - 1)
        pipe.expire(key, KEEP_S)
        pipe.execute()


class DeadLetters:
    """The one list of a namespace for what can't be read, wherever it came from."""

    def __init__(self, context: Context) -> None:
        self._redis, self._keys = context.redis, context.keys
        self._list = context.keys("dead_letters")

    def head(self, queue: str) -> bytes | None:
        """The first item of the list `queue` as it is: decoding it may fail."""
        with redis_errors():
            item: bytes | None = self._redis.execute_command(
                "LINDEX", self._keys(queue), 0, **{NEVER_DECODE: True}
            )
        return item

    def keep_from(self, queue: str, item: bytes, why: object) -> None:
        """Move `item` here out of the list `queue`."""
        with self.keeping(item, queue, why) as pipe:
            pipe.lrem(self._keys(queue), 1, item)

    def keeping(self, item: bytes, place: str, why: object) -> AbstractContextManager[Any]:
        """A transaction that keeps `item`; the caller adds what takes it out of its `place`."""
        return keeping(self._redis, self._list, item, place, why)
