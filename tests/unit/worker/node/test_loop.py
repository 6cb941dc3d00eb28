"""The loop keeps the device at work, and rests when it is broken."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fake_engine import FakeEngine
from shared.config import PoCConfig
from shared.errors import EngineDied, Quarantined, StoreUnavailable
from shared.requests import GenerateRequest
from shared.settings import load_settings
from shared.store import Store, Subscription
from support import wait_until
from worker.engines import Job
from worker.node import loop
from worker.node.functional_check import FunctionalCheck
from worker.node.loop import GpuLoop
from worker.node.pipeline import Pipeline
from worker.node.watchdog import Watchdog

#: Longer than any test needs, shorter than what ends one.
LONG = 20.0
#: Never started.
UNWATCHED = Watchdog(LONG, "POC_BATCH_DEADLINE", lambda error: pytest.fail(str(error)))


class Closing(threading.Event):
    """Notes how long it was waited for; nobody really waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout)
        return self.is_set()


@pytest.fixture
def closing() -> Closing:
    return Closing()


@pytest.fixture
def subscription(store: Store) -> Iterator[Subscription]:
    """A subscription that is connected: the first wait returns at once."""
    subscription = store.subscribe("work")
    subscription.wait(LONG)
    yield subscription
    subscription.close()


@pytest.fixture
def new_loop(
    store: Store, subscription: Subscription, closing: Closing
) -> Callable[[FakeEngine], GpuLoop]:
    """Makes the loop of an engine."""
    return lambda engine: GpuLoop(Pipeline(engine, store), subscription, closing, UNWATCHED)


class Dying(FakeEngine):
    """Is gone for good with its first job."""

    def submit(self, job: Job) -> Any:
        raise EngineDied("the device fell off the bus")


def test_a_turn_is_a_step(
    new_loop: Callable[[FakeEngine], GpuLoop], engine: FakeEngine, store: Store, config: PoCConfig
) -> None:
    """Without a pause while there is work."""
    store.rounds.generate("g", GenerateRequest(config=config))
    turning = new_loop(engine)
    for _ in range(3):
        turning.turn()
    now = store.rounds.status()
    assert now
    assert now.total_checked == 8


def test_an_idle_turn_looks_for_itself_after_a_while(
    new_loop: Callable[[FakeEngine], GpuLoop], engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ring may have been missed while Redis was away."""
    monkeypatch.setattr(loop, "LOOK_S", 0.01)
    new_loop(engine).turn()
    assert engine.jobs == []


@pytest.mark.parametrize("by", ["news", "wake"])
def test_an_idle_turn_ends_with_news(
    by: str,
    new_loop: Callable[[FakeEngine], GpuLoop],
    engine: FakeEngine,
    store: Store,
    config: PoCConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given a loop that waits, when work comes or the worker closes, then it looks at once."""
    monkeypatch.setattr(loop, "LOOK_S", LONG)
    turning = new_loop(engine)
    waiting = threading.Thread(target=turning.turn)
    waiting.start()
    if by == "news":
        store.rounds.generate("g", GenerateRequest(config=config))
        turning.listen()
    else:
        wait_until(lambda: not turning._news.is_set(), description="the turn to begin")
        while waiting.is_alive():  # one before the turn began would be no news
            turning.wake()
            waiting.join(0.01)
    waiting.join(LONG / 2)
    assert not waiting.is_alive()


def test_news_that_came_during_a_step_are_not_missed(
    new_loop: Callable[[FakeEngine], GpuLoop], engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a ring between the look and the wait, then there is no wait."""
    monkeypatch.setattr(loop, "LOOK_S", LONG)
    turning = new_loop(engine)
    pipeline = turning._pipeline
    step = pipeline.step

    def step_and_ring() -> bool:
        busy = step()
        turning.wake()
        return busy

    monkeypatch.setattr(pipeline, "step", step_and_ring)
    waiting = threading.Thread(target=turning.turn)
    waiting.start()
    waiting.join(LONG / 2)
    assert not waiting.is_alive()


def test_news_free_the_device_of_what_nobody_wants(
    new_loop: Callable[[FakeEngine], GpuLoop], engine: FakeEngine, store: Store, config: PoCConfig
) -> None:
    """Given a stop, then the batch that has not begun never does."""
    engine.gate.clear()
    engine.submit(Job("b", "k", (0,), 8))  # what keeps the device busy
    store.rounds.generate("g", GenerateRequest(config=config))
    turning = new_loop(engine)
    turning.turn()
    store.rounds.stop("s")
    turning.listen()
    engine.gate.set()
    turning._pipeline.drain()
    assert [job.nonces for job in engine.jobs] == [(0,)]


def test_pauses_grow_while_batches_fail(
    new_loop: Callable[[FakeEngine], GpuLoop],
    new_engine: Callable[..., FakeEngine],
    store: Store,
    config: PoCConfig,
    closing: Closing,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A broken device must not burn through the nonces at full speed."""
    store.rounds.generate("g", GenerateRequest(config=config))
    turning = new_loop(new_engine(fail=1))
    for _ in range(10):
        turning.turn()
    assert closing.waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert "a batch failed: the fake engine was asked to fail; the next one in 0.5 s" in caplog.text
    assert "the next one in 30.0 s" in caplog.text
    assert not any(record.exc_info for record in caplog.records)


def test_a_batch_that_succeeds_ends_the_growth(
    new_loop: Callable[[FakeEngine], GpuLoop],
    new_engine: Callable[..., FakeEngine],
    store: Store,
    config: PoCConfig,
    closing: Closing,
) -> None:
    """Given an engine that fails every second job, then each pause is a first one."""
    store.rounds.generate("g", GenerateRequest(config=config))
    turning = new_loop(new_engine(fail=2))
    for _ in range(9):
        turning.turn()
    assert closing.waits == [0.5] * 4


def test_a_pause_ends_with_the_worker(
    subscription: Subscription,
    store: Store,
    new_engine: Callable[..., FakeEngine],
    config: PoCConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody waits for a loop that rests."""
    monkeypatch.setattr(loop, "REST_S", LONG)
    store.rounds.generate("g", GenerateRequest(config=config))
    closing = threading.Event()
    turning = GpuLoop(Pipeline(new_engine(fail=1), store), subscription, closing, UNWATCHED)
    turning.turn()
    resting = threading.Thread(target=turning.turn)
    resting.start()
    closing.set()
    resting.join(LONG / 2)
    assert not resting.is_alive()


def test_a_device_that_died_is_the_workers_end(
    new_loop: Callable[[FakeEngine], GpuLoop],
    new_engine: Callable[..., FakeEngine],
    store: Store,
    config: PoCConfig,
    closing: Closing,
) -> None:
    """It passes at once, after what it had was given back; the batch is not to blame."""
    store.rounds.generate("g", GenerateRequest(config=config))
    turning = new_loop(new_engine(Dying))
    with pytest.raises(EngineDied, match="fell off the bus"):
        turning.turn()
    assert closing.waits == []
    again = store.rounds.claim("other", "t")
    assert again
    assert (again.start, again.attempts) == (0, 0)


def test_a_redis_that_is_away_is_not_the_devices_fault(
    new_loop: Callable[[FakeEngine], GpuLoop],
    engine: FakeEngine,
    closing: Closing,
    away: Callable[[], AbstractContextManager[None]],
) -> None:
    """The thread that repeats the turn knows what to do."""
    with away(), pytest.raises(StoreUnavailable):
        new_loop(engine).turn()
    assert closing.waits == []


def test_an_engine_that_dies_idle_is_the_workers_end(
    new_loop: Callable[[FakeEngine], GpuLoop],
    new_engine: Callable[..., FakeEngine],
    tmp_path: Path,
    away: Callable[[], AbstractContextManager[None]],
) -> None:
    """Nobody has to send work first, and Redis need not be there."""
    fault = tmp_path / "fault"
    turning = new_loop(new_engine(fault=fault))
    fault.write_text("die")
    with away(), pytest.raises(EngineDied, match="asked to die"):
        turning.turn()


def test_a_device_with_wrong_numbers_is_the_workers_end(
    subscription: Subscription,
    store: Store,
    new_engine: Callable[..., FakeEngine],
    closing: Closing,
    tmp_path: Path,
) -> None:
    """It passes at once."""
    fault = tmp_path / "fault"
    engine = new_engine(fault=fault)
    check = FunctionalCheck(engine, load_settings({}, check_every_s=0.1))
    check.begin()
    fault.write_text("wrong")
    turning = GpuLoop(Pipeline(engine, store, "w", check), subscription, closing, UNWATCHED)
    check._due_at = 0.0
    with pytest.raises(Quarantined):
        turning.turn()
    assert closing.waits == []


def test_only_what_is_no_wait_is_watched(
    store: Store,
    subscription: Subscription,
    closing: Closing,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step is; the wait for news after it is not."""
    watched: list[bool] = []

    class Watching(Watchdog):
        @contextmanager
        def watching(self) -> Iterator[None]:
            watched.append(True)
            yield
            watched.append(False)

    turning = GpuLoop(
        Pipeline(engine, store), subscription, closing, Watching(LONG, "", lambda _: None)
    )
    monkeypatch.setattr(turning._news, "wait", lambda _: watched.append(watched[-1]))
    turning.turn()
    assert watched == [True, False, False]
