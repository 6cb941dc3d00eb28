"""Redis goes away and comes back: what waits for it, and what the log says of it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from shared.errors import StoreUnavailable
from shared.settings import Settings
from shared.store import admitted

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds between two attempts while Redis is away.
RETRY_S = 0.5
#: Seconds that a thread rests after it failed.
REST_S = 5.0
#: Seconds after which a wait is told once more.
TELL_EVERY_S = 30.0


def _caller() -> object:
    """Who asks Redis: the running task of an event loop, or else the thread."""
    try:
        return asyncio.current_task() or threading.get_ident()
    except RuntimeError:
        return threading.get_ident()


class Outage:
    """Says once that Redis is away and once that it is back, for all callers of a process.

    A caller is a thread, or a task of an event loop. Redis is back when each caller that missed it
    has its answer: a Redis that refuses writes still answers those who only read, and an answer
    from before the outage may be read after it began.
    """

    def __init__(self, settings: Settings) -> None:
        self._where = f"POC_REDIS_URL={settings.safe_redis_url}"
        self._since = self._told = 0.0
        self._waiting: set[object] = set()
        self._lock = threading.Lock()

    @property
    def goes_on(self) -> bool:
        """Whether a caller still waits for its answer."""
        return bool(self._waiting)

    def seen(self, error: StoreUnavailable) -> None:
        """Redis did not answer the caller."""
        with self._lock:
            now = time.monotonic()
            if not self._waiting:
                self._since = self._told = now
                log.warning(
                    "%s (%s); nothing is lost, trying again until it answers", error, self._where
                )
            elif now - self._told >= TELL_EVERY_S:
                self._told = now
                log.warning(
                    "still waiting for Redis, for %.0f s now (%s): %s",
                    now - self._since,
                    self._where,
                    error,
                )
            self._waiting.add(_caller())

    def over(self) -> None:
        """Redis answered the caller."""
        if not self._waiting or (caller := _caller()) not in self._waiting:  # usual: no lock
            return
        with self._lock:
            self._waiting.discard(caller)
            if not self._waiting:
                log.warning("Redis answers again, after %.0f s", time.monotonic() - self._since)

    def left(self) -> None:
        """The caller ends; it no longer waits for an answer."""
        with self._lock:
            self._waiting.discard(_caller())

    def first_call(self, call: Callable[[], object]) -> None:
        """`call` Redis as a process starts: one that is away is waited for later.

        Raises `ConfigError` if it refuses.
        """
        try:
            admitted(call)
        except StoreUnavailable as error:
            self.seen(error)

    def until_answered(
        self, call: Callable[[], T], closing: threading.Event, for_s: float = float("inf")
    ) -> T:
        """What `call` gives once Redis answers.

        Raises `StoreUnavailable` when it does not within `for_s` seconds, or when the worker is
        `closing`.
        """
        gives_up_at = time.monotonic() + for_s
        while True:
            try:
                result = call()
            except StoreUnavailable as error:
                self.seen(error)
                if time.monotonic() > gives_up_at or closing.wait(RETRY_S):
                    self.left()
                    raise
            else:
                self.over()
                return result
