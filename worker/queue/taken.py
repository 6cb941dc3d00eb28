"""The commands that a worker has taken: each stays in Redis until its outcome is there.

Celery acknowledges a message before it runs the task, and forgets it with a connection that breaks.
So not that, but the end of the task settles a command. What this worker has in its list and works
on no more is put back, and so is what dead workers have.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from celery import Celery, signals

from shared.errors import StoreError
from shared.store import Store
from shared.store.commands import digest
from worker.queue.transport import TAKEN

log = logging.getLogger(__name__)

#: Seconds between two looks at what was taken.
LOOK_EVERY_S = 2.0


class Taken:
    """What one worker has taken; `turn` is what a thread repeats."""

    def __init__(self, store: Store, worker: str, closing: threading.Event) -> None:
        self._commands, self._worker, self._closing = store.commands, worker, closing
        self._lock = threading.Lock()
        self._working_on: Counter[str] = Counter()
        self._idle: set[str] = set()

    def follow(self, app: Celery) -> None:
        """Learn from `app`, for as long as the process lives, what begins and ends."""

        def received(request: Any, **_: Any) -> None:
            if request.app is app:
                self.begin(request.message.properties)

        def ran(task: Any, **_: Any) -> None:
            if task.app is app:
                self.end(task.request.properties, settled=not task.request.get("unanswered"))

        def refused(sender: Any, message: Any, **_: Any) -> None:
            if sender.app is app:
                self.end(message.properties)

        def revoked(sender: Any, request: Any, **_: Any) -> None:
            if sender.app is app:
                self.end(request.properties, settled=not request.get("unanswered"))

        signals.task_received.connect(received, weak=False)
        signals.task_postrun.connect(ran, weak=False)
        signals.task_unknown.connect(refused, weak=False)
        signals.task_revoked.connect(revoked, weak=False)

    def begin(self, properties: Mapping[str, Any] | None) -> None:
        """A message with these properties is worked on."""
        if item := (properties or {}).get(TAKEN):
            with self._lock:
                self._working_on[digest(item)] += 1

    def end(self, properties: Mapping[str, Any] | None, *, settled: bool = True) -> None:
        """It is worked on no more; unless it is `settled`, it will be put back."""
        if not (item := (properties or {}).get(TAKEN)):
            return
        if settled:
            try:
                self._commands.settle(self._worker, item)
            except StoreError as error:
                log.warning("a command that was carried out comes again: %s", error)
        with self._lock:
            self._working_on -= Counter((digest(item),))

    def turn(self) -> None:
        """Put back what nobody works on, then wait. Raises `StoreError`."""
        with self._lock:
            working = self._working_on.total()
        # Idle twice: what was taken a moment ago may be on its way to us.
        left = self._commands.put_back(self._worker, self._not_worked_on(self._idle), working)
        self._idle = self._not_worked_on(left)
        self._commands.put_back_of_the_dead()
        self._closing.wait(LOOK_EVERY_S)

    def _not_worked_on(self, digests: Collection[str]) -> set[str]:
        with self._lock:
            return set(digests) - self._working_on.keys()
