"""The heartbeat: what a worker says of itself, how fast it says it is, what it keeps."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from fake_engine import FakeEngine
from shared.config import PoCConfig
from shared.data import ProofBatch
from shared.errors import ModelMismatch
from shared.requests import GenerateRequest, ValidateRequest
from shared.settings import load_settings
from shared.status import RoundStatus, WorkerStatus
from shared.store import Reference, Store
from shared.store.connection import Client
from shared.store.keys import Keys
from support import Clock, wait_until
from worker.node import heartbeat
from worker.node.functional_check import FunctionalCheck
from worker.node.heartbeat import Heartbeat
from worker.node.pipeline import Pipeline


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(heartbeat, "time", clock)
    return clock


def beating(pipeline: Pipeline, **settings: Any) -> Heartbeat:
    return Heartbeat(pipeline, load_settings({}, namespace="test", **settings), threading.Event())


def shown(store: Store) -> WorkerStatus:
    """The only worker."""
    (worker,) = store.workers.listing()
    return worker


class TestFields:
    """What everybody can see."""

    def test_a_worker_shows_what_it_is(
        self, pipeline: Pipeline, store: Store, clock: Clock
    ) -> None:
        """Its device, its model, its process, and since when."""
        heart = beating(pipeline)
        clock.now += 5
        heart.beat()
        worker = shown(store)
        assert (worker.name, worker.state, worker.device) == ("w", "idle", "none")
        assert (worker.model, worker.fingerprint) == ("fake", "fingerprint-of-fake")
        assert (worker.pid, worker.host) == (os.getpid(), socket.gethostname())
        assert worker.started_at == 1_001_000
        assert abs(worker.heartbeat_at - time.time()) < 60

    def test_a_worker_shows_what_it_does(
        self, pipeline: Pipeline, engine: FakeEngine, store: Store, config: PoCConfig
    ) -> None:
        """As its device does it, not as the round is."""
        heart = beating(pipeline)
        store.rounds.generate("g", GenerateRequest(config=config))
        heart.beat()
        assert shown(store).state == "idle"
        engine.gate.clear()
        pipeline.step()
        heart.beat()
        assert shown(store).state == "generating"
        engine.gate.set()
        pipeline.drain()
        store.rounds.stop("s")
        store.validations.open(
            "v", ValidateRequest(batch=ProofBatch.of(config, [1], [0.5]), config=config)
        )
        pipeline.step()
        heart.beat()
        worker = shown(store)
        assert (worker.state, worker.computed) == ("validating", 4)

    def test_a_worker_shows_how_far_it_is(
        self, engine: FakeEngine, store: Store, config: PoCConfig
    ) -> None:
        """Batches and the device's seconds for them, and checks that passed."""
        check = FunctionalCheck(engine, load_settings({}, check_every_s=86_400))
        check.begin()
        pipeline = Pipeline(engine, store, "w", check)
        store.rounds.generate("g", GenerateRequest(config=config))
        for _ in range(3):
            pipeline.step()
        pipeline.drain()
        beating(pipeline).beat()
        worker = shown(store)
        assert worker.tile == engine.info.tile
        assert worker.batches * config.batch_size == worker.computed == pipeline.computed > 0
        assert worker.busy_seconds == pytest.approx(engine.busy_seconds, abs=1e-3)
        assert worker.checks == 1
        assert worker.checked_at == pytest.approx(check.passed_at, abs=1e-3)
        assert worker.gpus == []

    def test_what_it_committed_is_in_the_rounds_histogram(
        self, pipeline: Pipeline, store: Store, config: PoCConfig
    ) -> None:
        """After each beat; not what a validation computed."""
        heart = beating(pipeline)
        store.rounds.generate("g", GenerateRequest(config=config))
        counted = []
        for _ in range(2):
            pipeline.step()
            heart.beat()
            checked = (store.rounds.status() or RoundStatus()).total_checked
            counted.append((checked, sum(each.nonces for each in store.overview().histogram)))
        pipeline.drain()
        heart.beat()
        histogram = store.overview().histogram
        assert all(checked == binned for checked, binned in counted)
        assert sum(each.nonces for each in histogram) == pipeline.computed

    def test_the_model_is_registered_with_its_bounds(
        self, pipeline: Pipeline, redis: Client, keys: Keys
    ) -> None:
        """For those who want to know what they may ask for."""
        beating(pipeline).beat()
        assert redis.hgetall(keys("model")) == {
            "fingerprint": "fingerprint-of-fake",
            "model": "fake",
            "max_seq_len": "1024",
            "vocab_size": "1",
        }

    def test_the_first_check_of_its_model_is_the_reference(
        self, pipeline: Pipeline, engine: FakeEngine, store: Store
    ) -> None:
        """Each beat gives it, to compare with; without a check there is none."""
        assert beating(pipeline).beat() is None
        for name in ("first", "other"):
            check = FunctionalCheck(engine, load_settings({}))
            check.begin()
            checked = Pipeline(engine, store, name, check)
            assert beating(checked).beat() == Reference(check.distances, "first")

    def test_another_model_is_refused_with_what_to_do(
        self, pipeline: Pipeline, new_engine: Callable[..., FakeEngine], store: Store
    ) -> None:
        """Both fingerprints are named, and the settings that could be wrong."""
        beating(pipeline).beat()
        stranger = Pipeline(new_engine(weights="other"), store, "stranger")
        with pytest.raises(ModelMismatch) as refused:
            beating(stranger).beat()
        assert str(refused.value) == (
            "namespace 'test' runs the model with fingerprint fingerprint-of-fake, and fake has "
            "fingerprint-of-other: load the same model, or choose another POC_NAMESPACE or "
            "POC_MODEL_FINGERPRINT"
        )
        assert shown(store).name == "w"

    def test_a_turn_waits_for_the_next_beat(self, pipeline: Pipeline, store: Store) -> None:
        """Or for the end, which ends the wait at once."""
        closing = threading.Event()
        settings = load_settings({}, heartbeat_s=60, lease_s=120)
        turning = threading.Thread(target=Heartbeat(pipeline, settings, closing).turn)
        turning.start()
        wait_until(store.workers.listing, description="the beat")
        assert turning.is_alive()
        closing.set()
        turning.join(10)
        assert not turning.is_alive()


class TestRates:
    """Over the last two beats, or the last two batches where those take longer."""

    @pytest.fixture
    def beat(
        self, pipeline: Pipeline, engine: FakeEngine, store: Store, clock: Clock
    ) -> Callable[..., WorkerStatus]:
        """Beats after `seconds` in which so many nonces ended; what is shown then.

        The device was busy for `busy` of these seconds.
        """
        heart = beating(pipeline)

        def beat(seconds: float, nonces: int = 0, busy: float | None = None) -> WorkerStatus:
            clock.now += seconds
            pipeline.computed += nonces
            engine.busy_seconds += seconds if busy is None else busy
            heart.beat()
            return shown(store)

        return beat

    @pytest.fixture
    def at_work(
        self, pipeline: Pipeline, engine: FakeEngine, store: Store, config: PoCConfig
    ) -> None:
        """The device has a batch that does not end by itself."""
        engine.gate.clear()
        store.rounds.generate("g", GenerateRequest(config=config))
        pipeline.step()
        wait_until(lambda: engine.jobs, description="the batch to begin")

    def test_the_first_beat_has_no_rate(self, beat: Callable[..., WorkerStatus]) -> None:
        """And does not divide by nothing."""
        worker = beat(0)
        assert (worker.rate_per_second, worker.busy) == (0, 0)

    @pytest.mark.usefixtures("at_work")
    def test_short_batches(self, beat: Callable[..., WorkerStatus]) -> None:
        """Several end between two beats: nonces by seconds."""
        for nonces in (64, 60, 68, 64):
            worker = beat(2, nonces)
        assert worker.rate_per_second == pytest.approx(33)
        assert worker.busy == 1

    @pytest.mark.usefixtures("at_work")
    def test_the_share_of_the_time_that_the_device_computed(
        self, beat: Callable[..., WorkerStatus]
    ) -> None:
        for _ in range(4):
            worker = beat(2, 10, busy=1.5)
        assert worker.busy == pytest.approx(0.75)

    @pytest.mark.usefixtures("at_work")
    def test_more_than_always_is_always(self, beat: Callable[..., WorkerStatus]) -> None:
        """Clocks are read one after the other."""
        for _ in range(4):
            worker = beat(2, 10, busy=2.01)
        assert worker.busy == 1

    @pytest.mark.usefixtures("at_work")
    def test_long_batches(self, beat: Callable[..., WorkerStatus]) -> None:
        """Given one every twenty seconds, then the rate holds still between two ends."""
        beats = [False] * 9 + [True]  # whether a batch has ended since the last
        shown = [beat(2, 32 * ended, busy=20 * ended) for ended in beats * 5]
        later = shown[29:]
        assert [worker.rate_per_second for worker in later] == pytest.approx([1.6] * len(later))
        assert {worker.busy for worker in later} == {1}

    @pytest.mark.usefixtures("at_work")
    def test_a_batch_that_does_not_end_makes_the_rate_sink(
        self, beat: Callable[..., WorkerStatus]
    ) -> None:
        """Given a device that hangs, then it is not shown at full speed for ever."""
        for _ in range(4):
            worker = beat(2, 64)
        assert worker.rate_per_second == pytest.approx(32)
        for _ in range(20):
            worker = beat(2, 0, busy=0)
        assert 0 < worker.rate_per_second < 8

    def test_an_idle_worker_sinks_to_zero(self, beat: Callable[..., WorkerStatus]) -> None:
        """Within three beats."""
        assert beat(2, 64).rate_per_second > 0
        for _ in range(3):
            worker = beat(2, 0, busy=0)
        assert (worker.rate_per_second, worker.busy) == (0, 0)
        assert worker.computed == 64

    @pytest.mark.usefixtures("at_work")
    def test_work_after_a_long_rest_has_its_own_rate(
        self, beat: Callable[..., WorkerStatus], pipeline: Pipeline, engine: FakeEngine
    ) -> None:
        """The hours before it don't count."""
        in_flight, pipeline._in_flight = pipeline._in_flight, ()
        for _ in range(100):
            beat(2, 0, busy=0)
        pipeline._in_flight = in_flight
        for _ in range(3):
            worker = beat(2, 64)
        assert worker.rate_per_second == pytest.approx(32)


class TestLeases:
    """A batch may take longer than a lease, but not for ever."""

    def test_what_is_computed_is_kept(
        self,
        pipeline: Pipeline,
        engine: FakeEngine,
        store: Store,
        config: PoCConfig,
        advance: Callable[[float], None],
    ) -> None:
        """Given a batch of two leases, then nobody takes it over, and it counts."""
        heart = beating(pipeline)
        engine.gate.clear()
        store.rounds.generate("g", GenerateRequest(config=config))
        pipeline.step()
        for _ in range(3):
            advance(20)
            heart.beat()
        other = store.rounds.claim("other", "t")
        assert other
        assert other.start == 4
        engine.gate.set()
        pipeline.drain()
        now = store.rounds.status()
        assert now
        assert now.total_checked == 4

    def test_without_a_beat_it_is_taken_over(
        self,
        pipeline: Pipeline,
        store: Store,
        config: PoCConfig,
        advance: Callable[[float], None],
    ) -> None:
        beating(pipeline).beat()
        store.rounds.generate("g", GenerateRequest(config=config))
        pipeline.step()
        advance(31)
        other = store.rounds.claim("other", "t")
        assert other
        assert other.start == 0

    def test_a_device_that_hangs_keeps_nothing(
        self,
        pipeline: Pipeline,
        engine: FakeEngine,
        store: Store,
        config: PoCConfig,
        advance: Callable[[float], None],
    ) -> None:
        """Given beats past POC_BATCH_DEADLINE, then the positions go to another, once."""
        heart = beating(pipeline)
        engine.gate.clear()
        store.rounds.generate("g", GenerateRequest(config=config))
        pipeline.step()
        for _ in range(16):
            advance(20)
            heart.beat()
        advance(20)
        other = store.rounds.claim("other", "t")
        assert other
        assert (other.start, other.attempts) == (0, 1)
        engine.gate.set()
        pipeline.drain()
        now = store.rounds.status()
        assert now
        assert now.total_checked == 0

    def test_a_batch_behind_a_device_that_hangs_is_not_kept(
        self,
        pipeline: Pipeline,
        engine: FakeEngine,
        store: Store,
        config: PoCConfig,
        advance: Callable[[float], None],
    ) -> None:
        """Given one that waits behind it for ever, then its positions go to another as well."""
        heart = beating(pipeline)
        engine.gate.clear()
        store.rounds.generate("g", GenerateRequest(config=config))
        pipeline.step()
        pipeline.reserve()
        for _ in range(35):  # its own deadline begins when the one before it is over
            advance(20)
            heart.beat()
        claims = [store.rounds.claim("other", f"t{i}") for i in range(2)]
        assert sorted(claim.start for claim in claims if claim) == [0, 4]

    def test_claims_that_wait_for_run_batch_are_kept_as_well(
        self,
        pipeline: Pipeline,
        store: Store,
        config: PoCConfig,
        advance: Callable[[float], None],
    ) -> None:
        heart = beating(pipeline)
        store.rounds.generate("g", GenerateRequest(config=config))
        pipeline.reserve()
        for _ in range(3):
            advance(20)
            heart.beat()
        assert pipeline.run_reserved() is not None


class TestProgress:
    """A worker's log shows now and then how it goes."""

    def test_a_line_each_minute_while_it_validates(
        self,
        pipeline: Pipeline,
        store: Store,
        config: PoCConfig,
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Not more often, and with the validation."""
        caplog.set_level("INFO")
        heart = beating(pipeline, heartbeat_s=0.1)
        batch = ProofBatch.of(config, range(8), [0.5] * 8)
        store.validations.open("v", ValidateRequest(batch=batch, config=config))
        pipeline.step()
        said = []
        for _ in range(4):
            clock.now += heartbeat.REPORT_EVERY_S / 2
            heart._report_validation()
            said.append(caplog.text.count("validation v: "))
        assert said == [0, 1, 1, 2]
        assert "0.0 nonces/s here" in caplog.text

    def test_a_turn_looks_at_the_round(
        self,
        pipeline: Pipeline,
        store: Store,
        config: PoCConfig,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Also when this worker has no work of it."""
        caplog.set_level("INFO")
        store.rounds.generate("g", GenerateRequest(config=config, round_id="r1"))
        beating(pipeline, heartbeat_s=0.1).turn()
        assert "round r1 is generating" in caplog.text

    def test_an_idle_worker_is_silent(
        self, pipeline: Pipeline, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO")
        heart = beating(pipeline, heartbeat_s=0.1)
        clock.now += 10 * heartbeat.REPORT_EVERY_S
        heart.turn()
        assert caplog.text == ""
