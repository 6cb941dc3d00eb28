"""Threads that repeat one turn until the worker closes, also while Redis is away."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from shared.errors import StoreUnavailable, defect
from worker.outage import REST_S, RETRY_S, Outage

log = logging.getLogger(__name__)


class Repeating(threading.Thread):
    """Calls `turn` until `closing`; `turn` itself waits when there is nothing to do.

    When it raises, the thread gives that to `on_failure` and ends, or, without it, rests and goes
    on.
    """

    def __init__(
        self,
        name: str,
        turn: Callable[[], object],
        closing: threading.Event,
        outage: Outage,
        on_failure: Callable[[Exception], None] | None = None,
    ) -> None:
        super().__init__(name=f"poc-{name}", daemon=True)
        self._turn, self._closing, self._outage = turn, closing, outage
        self._on_failure = on_failure

    def run(self) -> None:
        """The thread's body."""
        while not self._closing.is_set():
            try:
                self._turn()
            except StoreUnavailable as error:
                self._outage.seen(error)
                self._closing.wait(RETRY_S)
            except Exception as error:
                trace = defect(error)
                if self._on_failure is not None:
                    log.critical("thread %s ends: %s", self.name, error, exc_info=trace)
                    self._on_failure(error)
                    return
                log.error("thread %s failed and goes on: %s", self.name, error, exc_info=trace)
                self._closing.wait(REST_S)
            else:
                self._outage.over()
