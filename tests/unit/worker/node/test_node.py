"""A worker without Celery: it registers, takes part, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis

from exactness import ALL_VALID, counted, without_gap
from fake_engine import FakeEngine, fake_distance
from shared.config import PoCConfig
from shared.data import ProofBatch, ValidatedBatch
from shared.errors import (
    EngineDied,
    EngineError,
    Hung,
    ModelMismatch,
    Quarantined,
    StoreUnavailable,
)
from shared.requests import GenerateRequest, ValidateRequest
from shared.settings import Settings, load_settings
from shared.store import Store
from shared.store.keys import Keys
from support import wait_until
from ticket_sink import KeptTickets
from worker.engines import Job
from worker.node import clerk, loop
from worker.node import node as module
from worker.node.functional_check import BLOCK_HASH
from worker.node.node import Node
from worker.tools.embedded import EmbeddedRedis

pytestmark = pytest.mark.functional

NO_PROGRESS = "no progress for 1 s (POC_BATCH_DEADLINE)"
HELPERS = ["poc-clerk", "poc-heartbeat", "poc-listener"]


@dataclass
class Running:
    """One node, with the engine that it loaded."""

    node: Node
    name: str
    engine: FakeEngine
    sink: KeptTickets = field(default_factory=KeptTickets)
    failures: list[Exception] = field(default_factory=list)

    def start(self) -> None:
        self.node.start(self.name, self.sink)


@pytest.fixture
def settings(redis_url: str) -> Settings:
    """Leases that no test waits for."""
    return load_settings({}, redis_url=redis_url, namespace="test", heartbeat_s="0.1")


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks for itself now and then does so often: threads end when they look."""
    monkeypatch.setattr(loop, "LOOK_S", 0.05)
    monkeypatch.setattr(loop, "REST_S", 0.05)
    monkeypatch.setattr(clerk, "REPORT_EVERY_S", 0.05)


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    with contextlib.closing(Store(settings)) as store:
        yield store


@pytest.fixture
def config() -> PoCConfig:
    return ALL_VALID


@pytest.fixture
def make(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Running]]:
    """Makes nodes that are stopped after the test: `make("w0", seconds=0.01)`."""
    made: list[Running] = []

    def load(settings: Settings) -> FakeEngine:
        return next(each.engine for each in made if each.node.settings is settings)

    monkeypatch.setattr(module, "load_engine", load)

    def make(
        name: str = "w0",
        kind: type[FakeEngine] = FakeEngine,
        changes: dict[str, Any] | None = None,
        **knobs: Any,
    ) -> Running:
        failures: list[Exception] = []
        own = settings.model_copy(update=changes or {})
        node = Node(own, on_failure=failures.append)
        made.append(Running(node, name, kind(**knobs), failures=failures))
        return made[-1]

    yield make
    for each in made:
        each.engine.close()
        each.node.stop()


def threads() -> list[str]:
    """What runs beside the test."""
    names = [thread.name for thread in threading.enumerate()]
    return sorted(name for name in names if name.startswith("poc-"))


def usual(names: list[str]) -> list[str]:
    """Without the pool of the sender, which grows when it likes."""
    return [name for name in names if not name.startswith("poc-sender_")]


def listed(store: Store) -> list[str]:
    return [worker.name for worker in store.workers.listing()]


def checked(store: Store, nonces: int) -> None:
    """Wait until the round has counted so many."""
    wait_until(lambda: store.status().total_checked >= nonces, description=f"{nonces} nonces")


class Dying(FakeEngine):
    """Is gone for good with its first batch."""

    def submit(self, job: Job) -> Any:
        if job.block_hash == BLOCK_HASH:
            return super().submit(job)
        raise EngineDied("the device fell off the bus")


def _defect(*_: Any) -> None:
    raise TypeError("a defect")


def two_batches(running: Running) -> bool:
    """One batch computes and one waits. Before the device has begun it, a stop would cancel it."""
    return len(running.node.pipeline.tokens) == 2 and bool(running.engine.jobs)


class TestStart:
    """Everything is there when it returns, or nothing is."""

    def test_it_is_listed_before_it_works(self, make: Callable[..., Running], store: Store) -> None:
        """With its model, so that another one is refused from then on."""
        make("w0").start()
        (worker,) = store.workers.listing()
        assert (worker.name, worker.state) == ("w0", "idle")
        assert worker.fingerprint == "fingerprint-of-fake"

    def test_it_takes_part_at_once(
        self, make: Callable[..., Running], store: Store, config: PoCConfig
    ) -> None:
        """Given a round that runs already, then it needs no command."""
        store.rounds.generate("g", GenerateRequest(config=config))
        make().start()
        checked(store, 8)

    def test_it_does_all_that_a_worker_does(
        self, make: Callable[..., Running], store: Store, config: PoCConfig
    ) -> None:
        """Batches, verdicts, ends, reports: nothing else is needed."""
        running = make(seconds=0.01)
        running.start()
        store.rounds.generate("g", GenerateRequest(config=config))
        dist = [fake_distance("b", "k", nonce) for nonce in range(8)]
        store.validations.open("v", ValidateRequest(batch=ProofBatch.of(config, range(8), dist)))
        wait_until(lambda: running.sink.ended == ["v"], description="the verdict")
        wait_until(lambda: "g" in dict(running.sink.reports), description="a report")
        stopped = store.rounds.stop("s")
        wait_until(lambda: running.sink.ended == ["v", "g"], description="the end of the round")
        results = dict(running.sink.results)
        assert ValidatedBatch.model_validate(results["v"]).dist == dist
        assert results["g"]["total_checked"] == stopped.total_checked
        without_gap(counted(store, stopped))

    def test_one_thread_each(self, make: Callable[..., Running]) -> None:
        """As the diagram shows them."""
        make().start()
        assert usual(threads()) == [*HELPERS, "poc-loop", "poc-sender", "poc-watchdog"]

    def test_callbacks_may_be_left_to_others(self, make: Callable[..., Running]) -> None:
        """POC_RUN_CALLBACKS=false."""
        make(changes={"run_callbacks": False}).start()
        assert threads() == [*HELPERS, "poc-loop", "poc-watchdog"]

    def test_a_model_that_does_not_load(
        self, settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The reason passes, nothing is listed, no thread runs, and stopping does no harm."""

        def load(settings: Settings) -> FakeEngine:
            raise EngineError("no such model")

        monkeypatch.setattr(module, "load_engine", load)
        node = Node(settings, on_failure=lambda _: pytest.fail("it never ran"))
        with pytest.raises(EngineError, match="no such model"):
            node.start("w0", KeptTickets())
        node.stop()
        assert listed(store) == []
        assert threads() == []

    def test_another_model_than_the_namespaces(
        self, make: Callable[..., Running], store: Store
    ) -> None:
        """It is refused, its engine is closed, and the others are left alone."""
        make("w0").start()
        stranger = make("w1", weights="other")
        with pytest.raises(ModelMismatch, match="fingerprint-of-other"):
            stranger.start()
        stranger.node.stop()
        assert listed(store) == ["w0"]
        with pytest.raises(EngineError, match="closed"):
            stranger.engine.submit(Job("b", "k", (1,), 8))
        again = make("w2")
        again.start()
        assert listed(store) == ["w0", "w2"]

    def test_it_waits_for_redis(
        self, make: Callable[..., Running], caplog: pytest.LogCaptureFixture
    ) -> None:
        """And gives up when it is told to end."""
        waiting = make(changes={"redis_url": "redis://127.0.0.1:1/0"})
        trouble: list[Exception] = []

        def start() -> None:
            try:
                waiting.start()
            except StoreUnavailable as error:
                trouble.append(error)

        starting = threading.Thread(target=start)
        starting.start()
        wait_until(lambda: "trying again until it answers" in caplog.text, description="it")
        wait_until(lambda: hasattr(waiting.node, "pipeline"), description="the engine meanwhile")
        assert starting.is_alive()
        waiting.node.closing.set()
        starting.join(10)
        assert trouble
        waiting.node.stop()
        assert "this worker is listed until it is missed" in caplog.text

    def test_a_device_with_wrong_numbers(
        self, make: Callable[..., Running], store: Store, tmp_path: Path
    ) -> None:
        """It is refused before it takes part, against what another gave, and leaves no thread."""
        fault = tmp_path / "fault"
        make("w0").start()
        before = usual(threads())
        wrong = make("w1", fault=fault)
        fault.write_text("wrong")
        with pytest.raises(Quarantined, match="w0, the first worker with this model, gave"):
            wrong.start()
        wrong.node.stop()
        assert usual(threads()) == before
        assert listed(store) == ["w0"]


class TestStop:
    """What is computed counts, the rest is free, and nobody takes the worker for alive."""

    def test_nothing_is_left(
        self, make: Callable[..., Running], store: Store, config: PoCConfig
    ) -> None:
        """Neither in the listing nor in the process."""
        running = make(seconds=0.01)
        running.start()
        store.rounds.generate("g", GenerateRequest(config=config))
        checked(store, 8)
        running.node.stop()
        assert listed(store) == []
        # The sender's pool may be with a Redis or a name server, and is not waited for.
        wait_until(lambda: threads() == [], 10, "the end of all threads")
        assert running.node.pipeline.tokens == []
        with pytest.raises(EngineError, match="closed"):
            running.engine.submit(Job("b", "k", (1,), 8))

    def test_it_is_not_listed_again(
        self, make: Callable[..., Running], store: Store, config: PoCConfig
    ) -> None:
        """Given a heartbeat as fast as can be, then none comes behind the goodbye."""
        for number in range(5):
            running = make(f"w{number}", changes={"heartbeat_s": 0.001})
            running.start()
            running.node.stop()
            assert listed(store) == []

    def test_what_it_holds_is_given_back_at_once(
        self,
        make: Callable[..., Running],
        store: Store,
        config: PoCConfig,
        redis_url: str,
    ) -> None:
        """Given one batch that runs and one that waits, then the first counts, once."""
        running = make()
        running.engine.gate.clear()
        running.start()
        store.rounds.generate("g", GenerateRequest(config=config))
        wait_until(lambda: two_batches(running), description="two batches")
        stopping = threading.Thread(target=running.node.stop)
        stopping.start()
        assert running.node.closing.wait(10)
        wait_until(
            lambda: running.node.pipeline._in_flight[1].pending._future.cancelled(),  # type: ignore[attr-defined]
            description="the waiting batch to be dropped",
        )
        running.engine.gate.set()
        stopping.join(30)
        assert counted(store, store.status()) == [0, 1, 2, 3]
        assert [job.nonces for job in running.engine.jobs] == [(0, 1, 2, 3)]
        keys = Keys("test")
        with contextlib.closing(redis.Redis.from_url(redis_url)) as direct:
            leases = direct.zrange(keys("leases", store.status().round_id), 0, -1, withscores=True)
        assert [score for _, score in leases] == [0]
        claim = store.rounds.claim("other", "t")
        assert claim
        assert (claim.start, claim.attempts) == (4, 0)

    def test_a_long_last_batch_is_kept_alive(
        self, make: Callable[..., Running], store: Store, config: PoCConfig
    ) -> None:
        """Given one that outlasts a lease while the worker ends, then nobody takes it over."""
        running = make(changes={"lease_s": 3.0, "heartbeat_s": 0.1})
        running.engine.gate.clear()
        running.start()
        store.rounds.generate("g", GenerateRequest(config=config))
        wait_until(lambda: two_batches(running), description="two batches")
        stopping = threading.Thread(target=running.node.stop)
        stopping.start()
        time.sleep(4)
        other = store.rounds.claim("other", "t")
        assert other
        assert other.start > 0
        running.engine.gate.set()
        stopping.join(30)
        assert store.status().total_checked == 4

    def test_ends_are_told_until_the_last_batch_has_landed(
        self, make: Callable[..., Running], store: Store, config: PoCConfig
    ) -> None:
        """Given a round that is stopped while its worker ends, then its ticket ends."""
        running = make()
        running.engine.gate.clear()
        running.start()
        store.rounds.generate("g", GenerateRequest(config=config))
        wait_until(lambda: running.engine.jobs, description="a batch")
        stopping = threading.Thread(target=running.node.stop)
        stopping.start()
        store.rounds.stop("s")
        wait_until(lambda: running.sink.ended == ["g"], description="the end to be told")
        running.engine.gate.set()
        stopping.join(30)

    def test_a_device_that_hangs_holds_nobody_up(
        self, make: Callable[..., Running], store: Store, config: PoCConfig
    ) -> None:
        """Given a worker that ends over a batch past POC_BATCH_DEADLINE, then it goes without."""
        running = make(changes={"batch_deadline": 1.0})
        running.engine.gate.clear()
        running.start()
        store.rounds.generate("g", GenerateRequest(config=config))
        # On a busy machine the deadline may pass before this thread sees the batches: then they are
        # given back, and will not be seen any more.
        wait_until(
            lambda: two_batches(running) or running.failures,
            description="two batches, or the end of their deadline",
        )
        running.node.stop()
        assert listed(store) == []
        assert [str(each) for each in running.failures] == [NO_PROGRESS]
        wait_until(lambda: threads() == ["poc-loop"], description="the others to end")
        running.engine.gate.set()
        wait_until(lambda: threads() == [], description="the loop to end")

    def test_a_redis_that_is_away_holds_nobody_up(
        self, make: Callable[..., Running], config: PoCConfig, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Given one that died, then it says when the others will notice."""
        with EmbeddedRedis() as server:
            running = make(changes={"redis_url": server.url})
            running.start()
            running.engine.gate.clear()
            running.node.store.rounds.generate("g", GenerateRequest(config=config))
            wait_until(lambda: two_batches(running), description="two batches")
            server.kill()
            running.engine.gate.set()
            running.node.stop()
        assert "what this worker holds is free when its lease ends" in caplog.text
        # Asked once in vain is enough: a Redis that hangs costs some seconds each time.
        assert "this worker is listed until it is missed" not in caplog.text
        assert usual(threads()) == []

    def test_an_idle_worker_whose_redis_is_away_says_so(
        self, make: Callable[..., Running], caplog: pytest.LogCaptureFixture
    ) -> None:
        """It holds nothing, and only its place in the list stays."""
        with EmbeddedRedis() as server:
            running = make(changes={"redis_url": server.url})
            running.start()
            server.kill()
            running.node.stop()
        assert "this worker is listed until it is missed" in caplog.text
        assert usual(threads()) == []

    def test_it_may_be_stopped_before_it_was_started(self, make: Callable[..., Running]) -> None:
        """And twice."""
        running = make()
        running.node.stop()
        running.node.stop()

    def test_twice_is_once(self, make: Callable[..., Running], store: Store) -> None:
        """Celery may stop what ended itself."""
        running = make()
        running.start()
        running.node.stop()
        running.node.stop()
        assert listed(store) == []


class TestFailure:
    """What can't go on ends the process, through `on_failure`."""

    def test_a_device_that_died(
        self, make: Callable[..., Running], store: Store, config: PoCConfig
    ) -> None:
        """Its batch is free for others."""
        running = make(kind=Dying)
        running.start()
        store.rounds.generate("g", GenerateRequest(config=config))
        wait_until(lambda: running.failures, description="the failure")
        running.node.stop()
        claims = [store.rounds.claim("other", f"t{i}") for i in range(2)]
        assert sorted(claim.start for claim in claims if claim) == [0, 4]

    def test_a_device_that_hangs(
        self, make: Callable[..., Running], store: Store, config: PoCConfig
    ) -> None:
        """It is told when all it held was given back and nobody takes the worker for alive."""
        running = make(changes={"batch_deadline": 1.0})
        running.engine.gate.clear()
        running.start()
        store.rounds.generate("g", GenerateRequest(config=config))
        wait_until(lambda: running.failures, description="the failure")
        assert [type(each) for each in running.failures] == [Hung]
        assert listed(store) == []
        (incident,) = store.workers.incidents()
        assert (incident.worker, incident.reason) == ("w0", NO_PROGRESS)
        claims = [store.rounds.claim("other", f"t{i}") for i in range(2)]
        assert sorted((c.start, c.attempts) for c in claims if c) == [(0, 1), (4, 0)]
        running.engine.gate.set()

    def test_a_device_that_hangs_and_a_goodbye_that_fails(
        self, make: Callable[..., Running], store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A defect in giving back does not keep the process from its end."""
        running = make(changes={"batch_deadline": 1.0})
        running.engine.gate.clear()
        running.start()
        monkeypatch.setattr(running.node.pipeline, "abandon", _defect)
        store.rounds.generate("g", GenerateRequest(config=ALL_VALID))
        wait_until(lambda: running.failures, description="the failure")
        assert [type(each) for each in running.failures] == [Hung]
        running.engine.gate.set()

    def test_a_device_that_died_and_a_report_that_fails(
        self, make: Callable[..., Running], store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither does one in saying why."""
        running = make(kind=Dying)
        running.start()
        monkeypatch.setattr(running.node.store.workers, "report", _defect)
        store.rounds.generate("g", GenerateRequest(config=ALL_VALID))
        wait_until(lambda: running.failures, description="the failure")
        assert [type(each) for each in running.failures] == [EngineDied]

    def test_a_device_with_wrong_numbers(
        self, make: Callable[..., Running], store: Store, config: PoCConfig, tmp_path: Path
    ) -> None:
        """It is told with what is in doubt, and what it held is free."""
        fault = tmp_path / "fault"
        running = make(changes={"check_every_s": 0.3}, fault=fault, seconds=0.02)
        running.start()
        store.rounds.generate("g", GenerateRequest(config=config))
        checked(store, 8)
        fault.write_text("wrong")
        wait_until(lambda: running.failures, description="the failure")
        assert [type(each) for each in running.failures] == [Quarantined]
        assert running.node.pipeline.tokens == []
        (incident,) = store.workers.incidents()
        assert incident.reason == str(running.failures[0])
        assert incident.in_doubt == sum(each.count for each in incident.commits) > 0
        assert 0 < incident.sound_until < incident.at
        running.node.stop()
        assert listed(store) == []

    def test_wrong_numbers_while_it_ends(
        self, make: Callable[..., Running], store: Store, config: PoCConfig, tmp_path: Path
    ) -> None:
        """Given a last batch without distances, then it does not count and is told as well."""
        fault = tmp_path / "fault"
        running = make(fault=fault)
        running.engine.gate.clear()
        running.start()
        store.rounds.generate("g", GenerateRequest(config=config))
        wait_until(lambda: running.engine.jobs, description="a batch")
        running.node.closing.set()
        fault.write_text("nan")
        running.engine.gate.set()
        running.node.stop()
        assert [type(each) for each in running.failures] == [Quarantined]
        assert len(store.workers.incidents()) == 1
        assert store.status().total_failed == 0

    def test_a_redis_that_is_away_keeps_no_word(
        self,
        make: Callable[..., Running],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        tmp_path: Path,
    ) -> None:
        """Given an engine that dies meanwhile, then the worker ends all the same."""
        monkeypatch.setattr(module, "REPORT_FOR_S", 0.1)
        fault = tmp_path / "fault"
        with EmbeddedRedis() as server:
            running = make(changes={"redis_url": server.url}, fault=fault)
            running.start()
            server.kill()
            fault.write_text("die")
            wait_until(lambda: running.failures, description="the failure")
        assert "only this log says why the worker ends" in caplog.text

    def test_a_batch_that_fails_is_none(
        self, make: Callable[..., Running], store: Store, config: PoCConfig
    ) -> None:
        """The worker rests and goes on."""
        running = make(fail=3)
        running.start()
        store.rounds.generate("g", GenerateRequest(config=config))
        checked(store, 12)
        assert running.failures == []

    def test_a_model_that_others_have_replaced(
        self, make: Callable[..., Running], store: Store
    ) -> None:
        """Given a worker that was missed meanwhile, then it ends: the namespace is another's."""
        running = make()
        running.start()

        def replaced() -> bool:
            store.workers.leave("w0")
            try:
                store.workers.heartbeat("other", {"fingerprint": "other"}, {}, [])
            except ModelMismatch:  # our heartbeat was faster
                return False
            return True

        wait_until(replaced, description="the other to be there")
        wait_until(lambda: running.failures, description="the failure")
        assert listed(store) == ["other"]
