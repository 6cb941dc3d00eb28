"""The loop that keeps the device at work: it looks at the round in Redis and makes it so."""

from __future__ import annotations

import logging
import threading

from shared.errors import EngineDied, EngineError, Quarantined
from shared.store import Subscription
from worker.node.pipeline import Pipeline
from worker.node.watchdog import Watchdog

log = logging.getLogger(__name__)

#: Seconds after which an idle loop looks for itself: news may be missed while Redis is away.
LOOK_S = 1.0
#: Seconds that the loop rests after the first of several batches that failed, and at most.
REST_S, MAX_REST_S = 0.5, 30.0


class GpuLoop:
    """`turn` for the thread that owns the engine, `listen` for the one that hears of changes."""

    def __init__(
        self,
        pipeline: Pipeline,
        subscription: Subscription,
        closing: threading.Event,
        watchdog: Watchdog,
    ) -> None:
        self._pipeline, self._subscription, self._closing = pipeline, subscription, closing
        self._watchdog = watchdog
        self._news = threading.Event()
        self._rest_s = REST_S

    def turn(self) -> None:
        """One step of the round, or a wait for news."""
        self._news.clear()
        try:
            with self._watchdog.watching():
                self._pipeline.engine.ensure_alive()  # also while there is no work
                busy = self._pipeline.step()
            if not busy:
                self._news.wait(LOOK_S)
        except (EngineDied, Quarantined):
            raise  # which ends the worker: whoever watches it starts another
        except EngineError as error:
            # A broken device must not burn through the nonces at full speed.
            log.error("a batch failed: %s; the next one in %.1f s", error, self._rest_s)
            self._closing.wait(self._rest_s)
            self._rest_s = min(2 * self._rest_s, MAX_REST_S)
        else:
            self._rest_s = REST_S

    def listen(self) -> None:
        """Wait for news, pass them on, and free the device of what nobody wants any more."""
        self._subscription.wait(LOOK_S)
        self._news.set()
        self._pipeline.cancel_unwanted()

    def wake(self) -> None:
        """End a wait, for a thread that shall see that the worker closes."""
        self._news.set()
