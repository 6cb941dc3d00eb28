"""What every engine promises, asked of the one that tests use and of one that computes."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fake_engine import FakeEngine
from shared.errors import EngineError
from support import wait_until
from worker.engines import Engine, Job, JobCancelled, Pending
from worker.engines.transformers_engine import TransformersEngine
from worker.tools.make_model import make_model


@dataclass
class Subject:
    """An engine whose next job stands still between `hold` and `let_go`."""

    engine: Engine
    hold: Callable[[], None]
    let_go: Callable[[], None]

    def begin(self, job: Job) -> Pending:
        """Submit `job` and wait until the device has begun it; it ends after `let_go`."""
        self.hold()
        pending: Any = self.engine.submit(job)
        wait_until(lambda: pending._future.running(), description="the job to begin")
        return pending

    def close(self) -> None:
        """Close the engine under a job that is held."""
        engine: Any = self.engine
        closing = threading.Thread(target=engine.close)
        closing.start()
        assert engine._closing.wait(timeout=30)
        self.let_go()
        closing.join(timeout=30)
        assert not closing.is_alive()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that computes in no time."""
    return make_model(
        tmp_path_factory.mktemp("contract") / "model",
        vocab_size=160,
        hidden_size=32,
        intermediate_size=48,
        max_seq_len=64,
    )


@pytest.fixture(params=["fake", "transformers"])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """Each of the engines, one nonce in a forward."""
    gate = threading.Event()
    gate.set()
    engine: Engine
    if request.param == "fake":
        fake = FakeEngine(max_seq_len=64)
        engine, gate = fake, fake.gate
    else:
        directory: Path = request.getfixturevalue("model")
        real = TransformersEngine(str(directory), device="cpu", tile=1)
        real._model.lm_head.register_forward_hook(lambda *_: gate.wait() and None)
        engine = real
    yield Subject(engine, hold=gate.clear, let_go=gate.set)
    gate.set()
    engine.close()


@pytest.fixture
def engine(subject: Subject) -> Engine:
    return subject.engine


def job(*nonces: int, **changes: Any) -> Job:
    return Job(**{"block_hash": "b", "public_key": "k", "seq_len": 8, "nonces": nonces} | changes)


def test_it_says_what_was_loaded(engine: Engine) -> None:
    """What the worker registers, and what is recorded with rounds and verdicts."""
    info = engine.info
    assert info.model
    assert info.device
    assert info.fingerprint
    assert info.profile["engine"]
    assert min(info.vocab_size, info.hidden_size, info.max_seq_len) >= 1


def test_distances_stand_in_the_order_of_the_nonces(engine: Engine) -> None:
    """Whatever else is in the job, a nonce has its own distance."""
    alone = [engine.submit(job(nonce)).result() for nonce in (7, 0, 2**62, 3)]
    together = engine.submit(job(7, 0, 2**62, 3)).result()
    assert together == [distance for (distance,) in alone]
    assert len(set(together)) == 4


def test_distances_are_plain_numbers_between_0_and_2(engine: Engine) -> None:
    """They go into JSON as they are."""
    distances = engine.submit(job(*range(20))).result()
    assert {type(distance) for distance in distances} == {float}
    assert all(0 <= distance <= 2 for distance in distances)
    assert not any(math.isnan(distance) for distance in distances)


@pytest.mark.parametrize("change", [{"block_hash": "c"}, {"public_key": "other"}])
def test_block_and_key_move_every_distance(engine: Engine, change: dict[str, str]) -> None:
    """Nobody can use what was computed for another."""
    ours = engine.submit(job(1, 2, 3)).result()
    theirs = engine.submit(job(1, 2, 3, **change)).result()
    assert not set(ours) & set(theirs)


def test_no_nonces_have_no_distances(engine: Engine) -> None:
    """An empty batch has a verdict as well."""
    assert engine.submit(job()).result() == []


def test_a_result_may_be_asked_for_again(engine: Engine) -> None:
    """Redis may have been away when the first one should have been committed."""
    pending = engine.submit(job(1, 2))
    assert pending.result() == pending.result()


def test_jobs_are_computed_in_their_order(subject: Subject) -> None:
    """Given one that runs and two behind it, then the first of these ends first."""
    running = subject.begin(job(1))
    ended: list[str] = []
    queued: list[Any] = [subject.engine.submit(job(2)), subject.engine.submit(job(3))]
    for name, pending in zip(("first", "second"), queued, strict=True):
        pending._future.add_done_callback(lambda _, name=name: ended.append(name))
    subject.let_go()
    assert all(pending.result() for pending in (running, *queued))
    wait_until(lambda: len(ended) == 2, description="both to have ended")
    assert ended == ["first", "second"]


def test_submit_returns_while_a_job_runs(subject: Subject) -> None:
    """The next batch is queued before the last one is collected: the device never waits."""
    running = subject.begin(job(1))
    queued: Any = subject.engine.submit(job(2))
    assert not queued._future.done()
    subject.let_go()
    assert (len(running.result()), len(queued.result())) == (1, 1)


def test_a_job_that_waits_can_be_cancelled(subject: Subject) -> None:
    """It says so each time it is asked, and the jobs around it are computed."""
    running = subject.begin(job(1))
    dropped, kept = subject.engine.submit(job(2)), subject.engine.submit(job(3))
    assert dropped.cancel()
    assert dropped.cancel()
    subject.let_go()
    for _ in range(2):
        with pytest.raises(JobCancelled):
            dropped.result()
    assert (len(running.result()), len(kept.result())) == (1, 1)


def test_a_job_that_has_begun_cannot_be_cancelled(subject: Subject) -> None:
    """It is computed to its end, and has its distances."""
    running = subject.begin(job(1, 2))
    assert not running.cancel()
    subject.let_go()
    assert len(running.result()) == 2
    assert not running.cancel()


def test_close_fails_the_running_job_and_cancels_the_queued(subject: Subject) -> None:
    """Nobody waits for a job of an engine that is gone."""
    running, queued = subject.begin(job(1, 2, 3)), subject.engine.submit(job(4))
    subject.close()
    with pytest.raises(EngineError, match="closed"):
        running.result()
    with pytest.raises(JobCancelled):
        queued.result()


def test_a_closed_engine_takes_no_job(engine: Engine) -> None:
    """Closing it twice is closing it once."""
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.submit(job(1))


def test_an_engine_that_works_is_alive(engine: Engine) -> None:
    """It says so at once, whatever it does."""
    engine.ensure_alive()
    engine.submit(job(1))
    engine.ensure_alive()


def test_an_exact_engine_gives_the_same_bits_each_time(engine: Engine) -> None:
    """However the nonce is asked for; the functional check relies on it."""
    assert engine.info.exact
    first = engine.submit(job(1, 2, 3)).result()
    for _ in range(5):
        assert engine.submit(job(3)).result() == first[2:]
        assert engine.submit(job(0, 1, 2, 3, 4)).result()[1:4] == first


def test_a_result_outlives_the_engine(engine: Engine) -> None:
    """What was computed before the end can still be committed."""
    pending = engine.submit(job(1))
    distances = pending.result()
    engine.close()
    assert pending.result() == distances


def test_a_sequence_that_is_too_long_is_refused(engine: Engine) -> None:
    """Nothing is computed, and the next job is none the worse for it."""
    longest = engine.info.max_seq_len
    assert len(engine.submit(job(1, seq_len=longest)).result()) == 1
    with pytest.raises(EngineError, match=f"seq_len={longest + 1}: "):
        engine.submit(job(1, seq_len=longest + 1))
    assert len(engine.submit(job(1)).result()) == 1


def test_busy_seconds_grow_with_work_only(engine: Engine) -> None:
    """From nothing on; they are what the worker's load is made of."""
    assert engine.busy_seconds == 0
    engine.submit(job(1)).result()
    first = engine.busy_seconds
    assert first > 0
    assert engine.busy_seconds == first
    engine.submit(job(2)).result()
    assert engine.busy_seconds > first
