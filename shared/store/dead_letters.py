"""What nobody can read: written by another version or a stray hand, kept for inspection."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis.client import NEVER_DECODE

from shared.store.keys import Keys
from shared.store.scripts import Client, redis_errors

log = logging.getLogger(__name__)

#: The items kept, the newest first, and the bytes of each.
KEEP_ITEMS, KEEP_BYTES = 100, 1 << 20
#: Seconds after the last one until the list is removed.
KEEP_S = 7 * 86_400


class DeadLetters:
    """The list of a namespace, which the transport's bad messages go to as well."""

    def __init__(self, redis: Client, keys: Keys) -> None:
        self._redis, self._keys = redis, keys
        self._list = keys("dead_letters")

    def head(self, queue: str) -> bytes | None:
        """The first item of the list `queue` as it is: decoding it may fail."""
        with redis_errors():
            item: bytes | None = self._redis.execute_command(
                "LINDEX", self._keys(queue), 0, **{NEVER_DECODE: True}
            )
        return item

    def keep_from(self, queue: str, item: bytes, why: object) -> None:
        """Move `item` here out of the list `queue`."""
        with self.keeping(queue, item, why) as pipe:
            pipe.lrem(self._keys(queue), 1, item)

    @contextmanager
    def keeping(self, place: str, item: bytes, why: object) -> Iterator[Any]:
        """A transaction that keeps `item`; the caller adds what takes it out of its `place`."""
        log.error(
            "kept %d bytes of %s that can't be read: %s; look at them with LRANGE %s 0 -1",
            len(item),
            place,
            why,
            self._list,
        )
        with redis_errors(), self._redis.pipeline() as pipe:
            yield pipe
            pipe.lpush(self._list, item[:KEEP_BYTES])
            pipe.ltrim(self._list, 0, KEEP_ITEMS - 1)
            pipe.expire(self._list, KEEP_S)
            pipe.execute()
