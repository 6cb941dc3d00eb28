"""News of the namespace: a channel that scripts publish to when there is something to do."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from redis.client import PubSub

from shared import errors
from shared.store.connection import Client, redis_errors


class Subscription:
    """Waits for the namespace's wake channel; one for each thread that waits.

    It may be woken for nothing, and miss a message while Redis is away. So its user looks at the
    state after every wait, however the wait ended.
    """

    def __init__(self, redis: Client, channel: str, *topics: str) -> None:
        """Is woken by `topics`, the words that scripts publish; by all of them without any."""
        self._redis, self._channel, self._topics = redis, channel, topics
        self._pubsub: PubSub | None = None

    def wait(self, timeout: float) -> bool:
        """Return at the next message, or after `timeout` seconds; whether there was one.

        When newly connected it returns at once, as if there was one: what came before is unknown.
        Raises `StoreUnavailable`.
        """
        try:
            with redis_errors():
                return self._wait(timeout)
        except errors.StoreError:
            self.close()
            raise

    def _wait(self, timeout: float) -> bool:
        if self._pubsub is None:
            self._pubsub = self._redis.pubsub()
            self._pubsub.subscribe(self._channel)
            # Only when Redis has confirmed it is no message missed any more.
            self._pubsub.get_message(timeout=timeout)
            return True
        deadline = time.monotonic() + timeout
        woken = False
        while not woken and (left := deadline - time.monotonic()) > 0:
            woken = self._concerns(self._pubsub.get_message(timeout=left))
        # Messages that came together are one.
        while message := self._pubsub.get_message(timeout=0):
            woken |= self._concerns(message)
        return woken

    def _concerns(self, message: Mapping[str, Any] | None) -> bool:
        return message is not None and (not self._topics or message["data"] in self._topics)

    def close(self) -> None:
        """Give the connection back."""
        if self._pubsub is not None:
            self._pubsub.close()  # type: ignore[no-untyped-call]
            self._pubsub = None
