"""What a worker is measured by, on an engine that takes a known time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fake_engine import FakeEngine
from shared.config import PoCConfig
from shared.schemes import Proof
from worker.engines import Job
from worker.engines.base import TimesForwards
from worker.tools.bench.candidates import WARM_UP, EngineAlone, Forward

SECONDS = 0.02


def test_the_engine_alone_is_fed_without_a_break(
    new_engine: Callable[..., FakeEngine], config: PoCConfig
) -> None:
    """Batches that take 20 ms give four nonces each 20 ms; those at the begin do not count."""
    engine = new_engine(seconds=SECONDS)
    nonces, seconds = EngineAlone(engine, config).turn(5 * SECONDS)
    assert nonces / seconds == pytest.approx(config.batch_size / SECONDS, rel=0.3)
    assert len(engine.jobs) * config.batch_size >= nonces + WARM_UP * config.batch_size


def test_a_turn_has_whole_tiles_in_it(
    new_engine: Callable[..., FakeEngine], config: PoCConfig
) -> None:
    """Three batches end together: a count that began at the first had two without their time."""

    class InTiles(FakeEngine):
        def _run(self, job: Job) -> list[Proof | None]:
            self.seconds = 0 if len(self.jobs) % 3 else 3 * SECONDS
            return super()._run(job)

    nonces, seconds = EngineAlone(new_engine(InTiles), config).turn(5 * SECONDS)
    tiles, rest = divmod(nonces, 3 * config.batch_size)
    assert rest == 0
    assert seconds >= tiles * 3 * SECONDS


def test_no_nonce_comes_twice(new_engine: Callable[..., FakeEngine], config: PoCConfig) -> None:
    """As in a round, in which nothing is computed again."""
    engine = new_engine()
    candidate = EngineAlone(engine, config)
    for _ in range(2):
        candidate.turn(0.001)
    nonces = [nonce for job in engine.jobs for nonce in job.nonces]
    assert len(nonces) == len(set(nonces))


def test_the_forward_is_timed_by_the_engine(config: PoCConfig) -> None:
    """Who computes it knows when the device began and ended; it is that of the scheme."""
    asked: list[tuple[int, str]] = []

    class Timed:
        def time_forwards(
            self, seq_len: int, seconds: float, scheme: str = ""
        ) -> tuple[int, float]:
            asked.append((seq_len, scheme))
            return 70, seconds

    assert Forward(Timed(), config).turn(2.0) == (70, 2.0)
    assert asked == [(config.seq_len, "distance")]


def test_an_engine_of_ones_own_need_not_time_its_forward(engine: FakeEngine) -> None:
    assert not isinstance(engine, TimesForwards)
