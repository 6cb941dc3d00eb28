"""One rank of the engine: jobs are queued on its device, proofs come back."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shared.schemes import Proof
from worker.engines.checkpoint import first_line
from worker.engines.tile import Tiles, cut, join
from worker.engines.vllm.model import Model
from worker.engines.vllm.recording import FIRST_AFTER
from worker.job import NO_BLOCK, Job

log = logging.getLogger("vllm.poc")  # vLLM shows what is below its own name


class Rank:
    """Jobs on the deployed model of one rank."""

    def __init__(self, worker: Any, tile: int, max_tokens: int, *, prunes: bool) -> None:
        model = Model(worker, tile, max_tokens, prunes=prunes)
        #: What computes.
        self.model = model
        self._device = model.deployed.device
        self._tiles = Tiles(
            tile,
            model.deployed,
            max_tokens=model.max_tokens,
            # Those of its forwards: edits of others would change nothing. Bound to the model, since
            # a cycle would keep its memory until the next collection.
            tensors_of=lambda scheme, _: model.tensors(scheme),
        )
        self._launched: dict[int, tuple[Job, _Launched]] = {}

    def prepare(self, scheme: str) -> dict[str, Any]:
        """Compile the forward of a scheme; what is known of the model, and of who makes inputs."""
        return self.model.prepare(scheme) | {"generator": self._tiles.generator}

    def time(self, tile: int, seq_len: int, count: int, scheme: str) -> float:
        """Seconds of `count` forwards of `tile` sequences in a row, recorded if they can be."""
        try:
            return self._time(tile, seq_len, count, scheme)
        except Exception as error:
            self.model.forget()
            self._end_if_lost(error)
            raise

    @torch.inference_mode()
    def _time(self, tile: int, seq_len: int, count: int, scheme: str) -> float:
        shape = tile, seq_len, self.model.deployed.hidden_size
        # Random, as in a round: what a GPU draws, and so its clock, depends on the numbers.
        inputs = torch.randn(shape, dtype=self.model.deployed.dtype, device=self._device)
        forward = self.model.forward(scheme)
        self._tiles.tensors(scheme).enter(Job(NO_BLOCK, "", (), seq_len))
        if forward.recorded != inputs.shape:
            self.model.forget()
            for _ in range(FIRST_AFTER):
                forward(inputs.clone())
        recorded = forward.recorded is not None
        launched = _Launched(self._device)
        for _ in range(count):
            forward(inputs if recorded else inputs.clone())  # a recording copies them itself
        launched.close(None)
        return launched.result()[1]

    def launch(self, handle: int, job: Job) -> bool:
        """Queue a job, all of it or nothing; whether the device still computes."""
        launched = _Launched(self._device)
        # The ranks of a group must do the same: one that halves alone waits for ever.
        may_halve = self.model.alone and not job.whole_tiles
        compute = self._compute_or_halve if may_halve else self._compute
        try:
            launched.close(self._tiles.launch(job, compute))
        except Exception as error:
            if job.scheme not in self.model.without:  # which all ranks find out alike
                self._end_if_lost(error)
            raise
        self._launched[handle] = job, launched
        return launched.running

    def collect(self, handle: int) -> tuple[list[Proof | None], float]:
        """Wait for a job: its proofs, empty on a rank without logits, and its device seconds."""
        job, launched = self._launched.pop(handle)
        try:
            rows, seconds = launched.result()
            return self._tiles.proofs(rows, job), seconds
        except Exception as error:
            self._end_if_lost(error)
            raise

    def _compute(self, job: Job, nonces: Sequence[int], size: int) -> Tensor | None:
        """The rows of one tile."""
        return self._tiles.rows(job, nonces, self.model.forward(job.scheme), size)

    def _compute_or_halve(self, job: Job, nonces: Sequence[int], size: int) -> Tensor | None:
        """The rows of one tile; when memory runs out in it, of its halves."""
        try:
            return self._compute(job, nonces, size)
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise
            reason = first_line(error)
        # Out here, since the exception's traceback would keep the failed tile's tensors alive.
        half = -(-size // 2)
        log.error(
            "out of memory with %d sequences in one forward (%s): going on with %d. "
            "Their last bits may differ; lower POC_TILE on every worker",
            size,
            reason,
            half,
        )
        self._tiles.forget()
        self.model.forget()
        plain = self.model.forward(job.scheme).plain
        return join([self._tiles.rows(job, part, plain, half) for part in cut(nonces, half)])

    def close(self) -> None:
        """Give its memory back as soon as nobody has it."""
        self.model.close()

    def _end_if_lost(self, error: Exception) -> None:
        """End this process, which vLLM reports as a dead engine, if it can't go on as it is."""
        if self._device.type == "cuda":
            try:
                torch.cuda.synchronize(self._device)
            except Exception:
                log.critical("the GPU is lost to this process: %s", error, exc_info=error)
                os._exit(1)
        if not self.model.alone:
            log.critical("a rank failed, the others may wait for it: %s", error, exc_info=error)
            os._exit(1)


class _Launched:
    """Rows on their way to the host, and how long the device took."""

    def __init__(self, device: torch.device) -> None:
        self._rows: Tensor | None = None
        self._began, self._seconds = time.perf_counter(), 0.0
        self._events: tuple[Any, Any] | None = None
        if device.type == "cuda":
            event: Any = torch.cuda.Event  # without types
            self._events = event(enable_timing=True), event(enable_timing=True)
            self._events[0].record()

    def close(self, rows: Tensor | None) -> None:
        """Note that `rows` are all there is; their way to the host is queued behind them."""
        if self._events and rows is not None:
            pinned = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
            rows = pinned.copy_(rows, non_blocking=True)
        self._rows = rows
        if self._events:
            self._events[1].record()
        self._seconds = time.perf_counter() - self._began

    @property
    def running(self) -> bool:
        """Whether the device still computes."""
        return self._events is not None and not self._events[1].query()

    def result(self) -> tuple[Tensor | None, float]:
        """Wait; the rows on the host, and the seconds on the device."""
        if self._events:
            start, end = self._events
            end.synchronize()
            self._seconds = start.elapsed_time(end) / 1000
        return self._rows, self._seconds
