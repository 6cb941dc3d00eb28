"""What tells the others that this worker lives, and keeps its claims."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time

from shared.config import PoCState
from shared.errors import ModelMismatch, NameTaken
from shared.settings import Settings
from shared.store import Reference, fresh_id
from worker.node.gpus import Gpus
from worker.node.pipeline import Pipeline
from worker.node.rounds import REPORT_EVERY_S

log = logging.getLogger(__name__)


class Heartbeat:
    """Registers the worker with its device, model and rate, and renews the leases it holds.

    It has a thread of its own, so that a batch may take longer than a lease; a batch that is
    past POC_BATCH_DEADLINE loses its claim all the same.
    """

    def __init__(self, pipeline: Pipeline, settings: Settings, closing: threading.Event) -> None:
        self._pipeline, self._settings, self._closing = pipeline, settings, closing
        self._started_at = time.time()
        self._report_at = time.monotonic() + REPORT_EVERY_S
        #: What tells this process from others under its name.
        self.instance = fresh_id()
        # Rates look back over two beats, or two batches where those take longer: a batch counts
        # when it ends, so between two ends they would be nothing, and too much after them.
        self._samples = [self._sample()] * 2
        # As of the last beat: asking for rates takes a sample.
        self._rate, self._busy = 0.0, 0.0
        self._gpus = Gpus.of(pipeline.engine.info.device)

    def turn(self) -> None:
        """Beat, say how rounds and validations go, then wait for the next beat."""
        try:
            self.beat()
        except NameTaken:
            raise NameTaken(
                f"the name {self._pipeline.worker} was taken over by another process, since this "
                "one did not beat for a while: give each its own POC_WORKER_NAME, or none"
            ) from None
        self._pipeline.rounds.look(self._rate, self._busy)
        self._report_validation()
        self._closing.wait(self._settings.heartbeat_s)

    def first(self, closing: threading.Event) -> Reference | None:
        """The first beat. A name that a killed process has left is taken over when its beats stop.

        Raises `NameTaken` when its holder lives, and as `beat` does.
        """
        last, gives_up_at = "", time.monotonic() + 3 * self._settings.heartbeat_s
        while True:
            stopped = bool(last) and time.monotonic() > gives_up_at
            try:
                return self.beat(takes_over=stopped)
            except NameTaken as taken:
                if last not in ("", str(taken)) or closing.is_set():
                    raise NameTaken(
                        f"another worker lives under the name {self._pipeline.worker}: give each "
                        "its own POC_WORKER_NAME, or none"
                    ) from None
                last = str(taken)
            closing.wait(self._settings.heartbeat_s / 4)

    def beat(self, *, takes_over: bool = False) -> Reference | None:
        """Show that the worker lives; what its model's first worker gave in its check.

        Raises `ModelMismatch` that says what to do, and `NameTaken` by another process.
        """
        self._rate, self._busy = self._rates()
        engine, check = self._pipeline.engine, self._pipeline.check
        info, counted = engine.info, self._pipeline.tally.take()
        fields = {
            "state": self._pipeline.state.lower(),
            "device": info.device,
            "model": info.model,
            "fingerprint": info.fingerprint,
            "rate_per_second": f"{self._rate:.3f}",
            "busy": f"{self._busy:.3f}",
            "computed": str(self._pipeline.computed),
            "started_at": f"{self._started_at:.3f}",
            "pid": str(os.getpid()),
            "host": socket.gethostname(),
            "vocab_size": str(info.vocab_size),
            "max_seq_len": str(info.max_seq_len),
            "tile": str(info.tile),
            "batches": str(self._pipeline.batches),
            "busy_seconds": f"{engine.busy_seconds:.3f}",
            "checks": str(check.passed if check else 0),
            "checked_at": f"{check.passed_at if check else 0:.3f}",
            "versions": json.dumps(self._pipeline.computer.versions),
            "gpus": json.dumps(self._gpus.read()),
        }
        model = {
            "fingerprint": info.fingerprint,
            "model": info.model,
            "max_seq_len": str(info.max_seq_len),
            "vocab_size": str(info.vocab_size),
        }
        try:
            reference = self._pipeline.store.workers.heartbeat(
                self._pipeline.worker,
                model,
                fields,
                self._pipeline.tokens,
                check.distances if check else (),
                self.instance,
                takes_over=takes_over,
                counted=counted,
                schemes=self._pipeline.schemes,
            )
        except ModelMismatch as error:
            wants = (
                f"namespace {self._settings.namespace!r} runs the model with fingerprint {error}"
            )
            if self._settings.model_fingerprint:
                wants = f"POC_MODEL_FINGERPRINT is {error}"
            raise ModelMismatch(
                f"{wants}, and {info.model} has {info.fingerprint}: load the same model, or choose "
                "another POC_NAMESPACE or POC_MODEL_FINGERPRINT"
            ) from None
        self._pipeline.tally.told()
        return reference

    def _report_validation(self) -> None:
        now, working_on = time.monotonic(), self._pipeline.working_on
        if self._pipeline.state != PoCState.VALIDATING:
            self._report_at = now + REPORT_EVERY_S
        elif now >= self._report_at:
            self._report_at = now + REPORT_EVERY_S
            log.info(
                "%s: %.1f nonces/s here, device busy %.0f%%, %d computed since the start",
                working_on,
                self._rate,
                100 * self._busy,
                self._pipeline.computed,
            )

    def _rates(self) -> tuple[float, float]:
        """Nonces per second, and the share of the time that the device computed."""
        now = self._sample()
        if now[1] != self._samples[-1][1] or self._pipeline.state == PoCState.IDLE:
            self._samples = [*self._samples[-2:], now]
        (began, computed, busy), (ended, computed_now, busy_now) = (
            self._samples[0],
            self._samples[-1],
        )
        # A batch that takes far longer than those before it is not seen as standing still.
        seconds = max(ended - began, (now[0] - began) / 2, 1e-9)
        return (computed_now - computed) / seconds, min((busy_now - busy) / seconds, 1.0)

    def _sample(self) -> tuple[float, int, float]:
        return time.monotonic(), self._pipeline.computed, self._pipeline.engine.busy_seconds
