"""One worker process beside its device: what it is made of, and how it starts and ends.

    controller ─▶ Redis queue ─▶ Celery task ─▶ PoCManager ─▶ Store ─▶ Redis
                                                                ▲
                  GpuLoop ─▶ Pipeline: claim, submit, ──────────┤
                                       collect, commit ─▶ Engine│
                  Heartbeat: alive, leases ─────────────────────┤
                  Clerk: verdicts, ends of tickets ─────────────┤ ─▶ result backend, Flower
                  PoCCallbackSender: outbox ────────────────────┘ ─▶ receivers
                  Watchdog: the loop moves, or the process ends

The engine is loaded before the first task is taken. Every change of a round or a validation is one
atomic script, so any of the threads, or the whole process, may be killed at any moment.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from shared.errors import EngineError, Hung, PoCError, Quarantined
from shared.settings import Settings
from shared.status import Incident
from shared.store import Store, admitted
from worker.engines import Engine, load_engine
from worker.node.clerk import Clerk, TicketSink
from worker.node.functional_check import FunctionalCheck
from worker.node.heartbeat import Heartbeat
from worker.node.loop import GpuLoop
from worker.node.pipeline import Pipeline
from worker.node.threads import Repeating
from worker.node.watchdog import Watchdog
from worker.notify import Supervisor
from worker.outage import Outage
from worker.sender import PoCCallbackSender

log = logging.getLogger(__name__)

#: Seconds that a worker which has to end waits for Redis, to say why.
REPORT_FOR_S = 10.0


class Node:
    """A worker without Celery: `sink` reports tickets, `on_failure` ends the process.

    After `Hung` the process must end at once: a thread of it can't be ended.
    """

    engine: Engine
    pipeline: Pipeline
    sink: TicketSink

    def __init__(self, settings: Settings, on_failure: Callable[[Exception], None]) -> None:
        self.settings, self._on_failure = settings, on_failure
        self.store = Store(settings)
        self.outage = Outage(settings)
        #: Set when the worker is to end: nothing is claimed any more.
        self.closing = threading.Event()
        #: Set while the model is loaded: the process may end at once, it holds nothing.
        self.loading = threading.Event()
        #: Whether Redis answered as this node went. Else nothing more is asked of it: each question
        #: would be waited for once more, and whoever ends us waits, too.
        self.reached = True
        # Set when all claims are committed or given back: until then they are kept alive.
        self._drained = threading.Event()
        self._hangs = threading.Event()
        self._supervisor = Supervisor()
        self._watchdog = Watchdog(
            settings.batch_deadline, "POC_BATCH_DEADLINE", self._hung, self._supervisor.alive
        )
        self._loaded = False
        self._instance = ""
        self._loop: GpuLoop | None = None
        self._worker: threading.Thread | None = None
        self._heartbeat: threading.Thread | None = None
        self._helpers: list[threading.Thread] = []

    def start(self, name: str, sink: TicketSink) -> None:
        """Load the engine, register the worker as `name`, and begin.

        Raises `ConfigError` if Redis refuses what a worker needs or a certificate can't be used,
        `EngineError` if the model can't be loaded, `ModelMismatch` if the namespace runs another
        and `Quarantined` if the device gives wrong numbers; waits for a Redis that is away.
        """
        self.sink = sink
        self._supervisor.starting()
        # Both before the model is loaded in vain.
        sender = (
            PoCCallbackSender(self.store, name, self.settings, self.outage)
            if self.settings.run_callbacks
            else None
        )
        self.outage.first_call(lambda: self.store.check_access(self.settings.queue))
        began = time.monotonic()
        self.engine = engine = self._load()
        check = FunctionalCheck(engine, self.settings)
        self.pipeline = pipeline = Pipeline(engine, self.store, name, check)
        self._loaded = True
        log.info(
            "loaded %s on %s in %.1f s, fingerprint %s",
            engine.info.model,
            engine.info.device,
            time.monotonic() - began,
            engine.info.fingerprint,
        )
        profile = ", ".join(
            f"{name} {value}" for name, value in engine.info.profile.items() if value
        )
        log.info("it computes with %s", profile or "what its engine does not tell")
        self._watchdog.start()
        with self._watchdog.watching():
            check.begin()
        # One that is ready must not stand still for want of a connection.
        self.outage.until_answered(self.store.check_room, self.closing)
        heartbeat = Heartbeat(pipeline, self.settings, self._drained)
        self._instance = heartbeat.instance
        beat = self.outage.until_answered(
            lambda: admitted(lambda: heartbeat.first(self.closing)), self.closing
        )
        check.agree_with(beat)
        self.outage.until_answered(pipeline.rounds.first_look, self.closing)
        subscription = self.store.subscribe("work")
        self._loop = loop = GpuLoop(pipeline, subscription, self.closing, self._watchdog)
        clerk = Clerk(self.store, sink, self.store.subscribe("verdicts", "endings"))
        self._worker = Repeating("loop", loop.turn, self.closing, self.outage, self.failed)
        self._heartbeat = Repeating(
            "heartbeat", heartbeat.turn, self._drained, self.outage, self.failed
        )
        self._helpers = [
            self._heartbeat,
            Repeating("listener", loop.listen, self.closing, self.outage),
            Repeating("clerk", clerk.turn, self._drained, self.outage),
        ]
        if sender:
            self._helpers.append(
                threading.Thread(
                    target=sender.run, args=(self._drained,), name="poc-sender", daemon=True
                )
            )
        for thread in (*self._helpers, self._worker):
            thread.start()
        self._supervisor.ready()
        log.info("ready: worker %s of namespace %s", name, self.settings.namespace)

    def _load(self) -> Engine:
        """The engine, or the end of the process: nothing is held yet."""
        watchdog = Watchdog(self.settings.load_deadline, "POC_LOAD_DEADLINE", self._on_failure)
        watchdog.start()
        self.loading.set()
        log.info("loading %s", self.settings.model or "the engine")
        try:
            if self.closing.is_set():  # told to end just before
                raise EngineError("told to end before the model was loaded")
            with watchdog.watching():
                return load_engine(self.settings)
        finally:
            self.loading.clear()
            watchdog.stop()

    def stop(self) -> None:
        """Commit what is computed, give the rest back, and go; also after a failed `start`."""
        self.closing.set()
        self._supervisor.stopping()
        if self._loop:
            self.pipeline.cancel_waiting()
            self._loop.wake()
        # For as long as the watchdog lets it.
        while self._worker and self._worker.is_alive() and not self._hangs.is_set():
            self._worker.join(0.1)
        if self._loaded and not self._hangs.is_set():
            try:
                with self._watchdog.watching():
                    self.pipeline.drain()
            except Quarantined as error:
                self.failed(error)
            except PoCError as error:
                self.reached = False
                log.warning("%s: what this worker holds is free when its lease ends", error)
        # First the heartbeat ends: it would register anew what has just left.
        self._drained.set()
        if self.reached:
            with suppress(PoCError):  # then they look after a second by themselves
                self.store.wake()
        for thread in self._helpers:
            thread.join(timeout=5)
        if self._loaded:
            try:
                if self.reached:
                    self.store.workers.leave(self.pipeline.worker, self._instance)
            except PoCError as error:
                log.warning("%s: this worker is listed until it is missed", error)
            if not self._hangs.is_set():
                with self._watchdog.watching():
                    self.engine.close()
        self._watchdog.stop()
        self.store.close()

    def failed(self, error: Exception) -> None:
        """A thread can't go on: leave word of it, and end the process."""
        try:
            self.outage.until_answered(lambda: self._report(error), self.closing, REPORT_FOR_S)
        except PoCError as trouble:
            log.warning("%s: only this log says why the worker ends", trouble)
        except Exception:
            log.exception("a defect: only this log says why the worker ends")
        finally:
            self._on_failure(error)

    def _hung(self, error: Hung) -> None:
        """The watchdog's thread calls it: give back what is held, leave, and end the process."""
        self.closing.set()  # what wakes up meanwhile claims nothing
        self._drained.set()
        worker = self.pipeline.worker
        try:
            self.pipeline.abandon(f"worker {worker}: {error}")
            self._report(error)
            if self._heartbeat:  # it would register anew what has just left
                self._heartbeat.join(timeout=5)
            self.store.workers.leave(worker, self._instance)
        except PoCError as trouble:
            log.warning("%s: what this worker holds is free when its lease ends", trouble)
        except Exception:
            log.exception("a defect: what this worker holds is free when its lease ends")
        finally:
            self._hangs.set()
            self._on_failure(error)

    def _report(self, error: Exception) -> None:
        info, check = self.engine.info, self.pipeline.check
        # A defect may have no message.
        reason = str(error) if isinstance(error, PoCError) else repr(error)
        incident = Incident(
            worker=self.pipeline.worker,
            host=socket.gethostname(),
            device=info.device,
            model=info.model,
            at=time.time(),
            reason=reason,
        )
        if check and check.failed:
            doubt = {
                "sound_until": check.passed_at,
                "in_doubt": check.in_doubt,
                "commits": list(check.commits),
            }
            incident = incident.model_copy(update=doubt)
        self.store.workers.report(incident)
