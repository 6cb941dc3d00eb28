"""One worker process beside its device: what it is made of, and how it starts and ends.

    controller ─▶ Redis queue ─▶ Celery task ─▶ PoCManager ─▶ Store ─▶ Redis
                                                    ▲           ▲
                        GpuLoop: claim, submit, ────┘           │
                                 collect, commit ─▶ Engine      │
                        Heartbeat: alive, leases ───────────────┤
                        Clerk: verdicts, ends of tickets ───────┤ ─▶ result backend, Flower
                        PoCCallbackSender: outbox ──────────────┘ ─▶ receivers

The engine is loaded before the first task is taken. Every arrow into the store is one atomic
script, so any of the threads, or the whole process, may be killed at any moment.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from shared.errors import PoCError
from shared.receivers import Receivers
from shared.settings import Settings
from shared.store import Store
from worker.clerk import Clerk, TicketSink
from worker.engines import Engine, load_engine
from worker.heartbeat import Heartbeat
from worker.loop import GpuLoop
from worker.manager import PoCManager
from worker.sender import PoCCallbackSender
from worker.threads import Outage, Repeating

log = logging.getLogger(__name__)


class Node:
    """A worker without Celery: `sink` reports tickets, `on_failure` ends the process."""

    manager: PoCManager
    sink: TicketSink

    def __init__(self, settings: Settings, on_failure: Callable[[], None]) -> None:
        self.settings, self._on_failure = settings, on_failure
        self.store = Store(settings)
        self.outage = Outage()
        #: Set when the worker is to end: nothing is claimed any more.
        self.closing = threading.Event()
        # Set when all claims are committed or given back: until then they are kept alive.
        self._landed = threading.Event()
        self._engine: Engine | None = None
        self._loop: GpuLoop | None = None
        self._workers: list[threading.Thread] = []
        self._helpers: list[threading.Thread] = []

    def start(self, name: str, sink: TicketSink) -> None:
        """Load the engine, register the worker as `name`, and begin.

        Raises `EngineError` if the model can't be loaded and `ModelMismatch` if the namespace
        runs another; waits for a Redis that is away.
        """
        self.sink = sink
        log.info("loading %s", self.settings.model or "the engine")
        began = time.monotonic()
        self._engine = engine = load_engine(self.settings)
        receivers = Receivers.of(self.settings.callback_allow)
        self.manager = PoCManager(engine, self.store, name, receivers)
        log.info(
            "loaded %s on %s in %.1f s, fingerprint %s",
            engine.info.model,
            engine.info.device,
            time.monotonic() - began,
            engine.info.fingerprint,
        )
        heartbeat = Heartbeat(self.manager, self.settings, self._landed)
        self.outage.insist(heartbeat.beat, self.closing)
        self._loop = loop = GpuLoop(self.manager, self.store.bell("work"), self.closing)
        clerk = Clerk(self.store, sink, self.store.bell("verdicts", "endings"))
        self._workers = [
            Repeating("loop", loop.turn, self.closing, self.outage, self._on_failure),
            Repeating("ear", loop.listen, self.closing, self.outage),
        ]
        self._helpers = [
            Repeating("heartbeat", heartbeat.turn, self._landed, self.outage, self._on_failure),
            Repeating("clerk", clerk.turn, self._landed, self.outage),
        ]
        if self.settings.run_callbacks:
            sender = PoCCallbackSender(self.store, name, self.settings, self.outage)
            self._helpers.append(
                threading.Thread(
                    target=sender.run, args=(self._landed,), name="poc-sender", daemon=True
                )
            )
        for thread in (*self._helpers, *self._workers):
            thread.start()
        log.info("ready: worker %s of namespace %s", name, self.settings.namespace)

    def stop(self) -> None:
        """Commit what is computed, give the rest back, and go; also after a failed `start`."""
        self.closing.set()
        if self._loop:
            self.manager.drop_waiting()
            self._loop.wake()
        # A device that hangs must not hold the process for longer than a batch may take.
        gives_up_at = time.monotonic() + self.settings.batch_deadline
        for thread in self._workers:
            thread.join(max(0.0, gives_up_at - time.monotonic()))
        hangs = any(thread.is_alive() for thread in self._workers)
        if self._engine and not hangs:
            try:
                self.manager.land()
            except PoCError as error:
                log.warning("%s: what this worker holds is free when its lease ends", error)
        # First the heartbeat ends: it would register anew what has just left.
        self._landed.set()
        for thread in self._helpers:
            thread.join(timeout=5)
        if self._engine:
            try:
                self.store.workers.leave(self.manager.worker)
            except PoCError as error:
                log.warning("%s: this worker is listed until it is missed", error)
            if not hangs:
                self._engine.close()
        self.store.close()
