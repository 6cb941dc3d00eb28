"""The manager joins engine and store: what is computed counts once, what is not is given back."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from math import isnan
from pathlib import Path
from typing import Any

import pytest

from fake_engine import FakeEngine, fake_distance
from shared.config import PoCConfig, PoCState
from shared.data import ProofBatch
from shared.errors import (
    EngineDied,
    EngineError,
    InvalidRequest,
    Quarantined,
    RoundInProgress,
    RoundMismatch,
    RoundNotInitialized,
    StoreUnavailable,
)
from shared.settings import load_settings
from shared.status import NodeStatus, RoundStatus
from shared.store import Store
from support import wait_until
from worker.engines import Job, Pending
from worker.manager import DEPTH, PoCManager, PoCStats
from worker.node.functional_check import FunctionalCheck

Away = Callable[[], AbstractContextManager[None]]


def distances(*nonces: int, key: str = "node") -> list[float]:
    """What the engine gives for nonces of the tests' block."""
    return [fake_distance("b10c", key, nonce) for nonce in nonces]


def theirs(config: PoCConfig, *nonces: int) -> ProofBatch:
    """What another node submits."""
    them = config.model_copy(update={"public_key": "them"})
    return ProofBatch.of(them, nonces, distances(*nonces, key="them"))


def status(store: Store) -> RoundStatus:
    """The round with every nonce."""
    found = store.rounds.status(newest=1000)
    assert found
    return found


def computed(engine: FakeEngine) -> list[tuple[int, ...]]:
    """The nonces of each job that the engine began."""
    return [job.nonces for job in engine.jobs]


def free(store: Store, count: int) -> list[int]:
    """The first nonces of the batches that another worker gets next, in order."""
    claims = [store.rounds.claim("other", f"free-{i}") for i in range(count)]
    return sorted(claim.nonces[0] for claim in claims if claim)


@contextmanager
def two_in_the_engine(manager: PoCManager, engine: FakeEngine) -> Iterator[None]:
    """One batch is computed for as long as the block takes, another one waits behind it.

    With the block ends the thread that steps: the first one has landed, or could not.
    """
    engine.gate.clear()
    assert manager.step()

    def step() -> None:
        with suppress(StoreUnavailable):
            manager.step()

    stepping = threading.Thread(target=step)
    stepping.start()
    try:
        wait_until(lambda: len(manager.tokens) == 2 and engine.jobs, description="two batches")
        yield
    finally:
        engine.gate.set()
        stepping.join(30)
    assert not stepping.is_alive()


class TestCommands:
    """They check what the engine can do, and leave the rest to the store."""

    def test_a_round_from_its_begin_to_its_end(
        self, manager: PoCManager, config: PoCConfig
    ) -> None:
        """Each command gives the status after it."""
        assert manager.init_round(config, round_id="r1").state is PoCState.IDLE
        assert manager.start_generate(round_id="r1").state is PoCState.GENERATING
        assert manager.start_validate(round_id="r1").state is PoCState.VALIDATING
        stopped = manager.stop_round(round_id="r1")
        assert (stopped.state, stopped.round_id) == (PoCState.STOPPED, "r1")

    @pytest.mark.parametrize("verb", ["init_round", "start_generate", "start_validate"])
    def test_what_the_model_cannot_compute_opens_no_round(
        self, manager: PoCManager, store: Store, config: PoCConfig, verb: str
    ) -> None:
        """The caller learns how long a sequence may be."""
        longest = config.model_copy(update={"seq_len": 1024})
        getattr(manager, verb)(longest)
        too_long = config.model_copy(update={"seq_len": 1025})
        with pytest.raises(InvalidRequest, match=r"^seq_len=1025: the model .*at most 1024 pos"):
            getattr(manager, verb)(too_long, replace=True)
        assert store.rounds.current()[1] == longest

    def test_what_the_model_cannot_compute_is_not_validated(
        self, manager: PoCManager, store: Store, config: PoCConfig
    ) -> None:
        """No worker would ever end it."""
        too_long = config.model_copy(update={"seq_len": 1025})
        with pytest.raises(InvalidRequest, match="seq_len=1025"):
            manager.start_validation(theirs(config, 1), too_long, command="v")
        assert store.jobs.progress() == {}

    @pytest.mark.parametrize("verb", ["start_generate", "start_validate"])
    def test_nothing_starts_before_an_init(self, manager: PoCManager, verb: str) -> None:
        with pytest.raises(RoundNotInitialized, match=r"^Round not initialized$"):
            getattr(manager, verb)()

    def test_a_running_round_is_only_replaced_on_demand(
        self, manager: PoCManager, config: PoCConfig
    ) -> None:
        manager.start_generate(config, round_id="r1")
        with pytest.raises(RoundInProgress, match=r"^Round already in progress$"):
            manager.init_round(config)
        assert manager.init_round(config, replace=True).round_id != "r1"

    @pytest.mark.parametrize("verb", ["start_generate", "start_validate"])
    def test_a_command_for_another_round_is_refused(
        self, manager: PoCManager, config: PoCConfig, verb: str
    ) -> None:
        manager.init_round(config, round_id="r2")
        with pytest.raises(RoundMismatch):
            getattr(manager, verb)(round_id="r1")

    def test_a_command_that_comes_twice_is_carried_out_once(
        self, manager: PoCManager, config: PoCConfig
    ) -> None:
        """Its answer is the same; without an id each call is a command of its own."""
        first = manager.init_round(config, command="c")
        assert manager.init_round(config, command="c") == first
        assert manager.init_round(config).round_id != first.round_id

    def test_a_validation_is_opened_under_its_task(
        self, manager: PoCManager, store: Store, config: PoCConfig
    ) -> None:
        """By the round's config, or by one beside it."""
        with pytest.raises(RoundNotInitialized):
            manager.start_validation(theirs(config, 1, 2), command="v0")
        manager.start_validation(theirs(config, 1, 2), config, command="v1")
        manager.init_round(config)
        manager.start_validation(theirs(config, 3), command="v2")
        assert store.jobs.progress() == {
            "v1": {"done": 0, "total": 2},
            "v2": {"done": 0, "total": 1},
        }


class TestShowing:
    """What others see of it."""

    def test_the_status_is_plain_json(self, manager: PoCManager, config: PoCConfig) -> None:
        """As the API shows it, with as many of the newest valid nonces as are asked for."""
        config = config.model_copy(update={"r_target": 2.0})
        manager.start_generate(config, round_id="r1")
        manager.run_batch()
        shown = manager.get_status(newest=3)
        assert json.loads(json.dumps(shown)) == shown
        assert NodeStatus.model_validate(shown).round_id == "r1"
        assert (shown["state"], shown["total_checked"]) == ("GENERATING", 4)
        assert shown["valid_nonces"] == [1, 2, 3]
        assert shown["valid_distances"] == distances(1, 2, 3)

    def test_the_status_before_the_first_round(self, manager: PoCManager) -> None:
        """An idle node with zeros."""
        shown = manager.get_status()
        assert (shown["state"], shown["total_checked"], shown["valid_nonces"]) == ("IDLE", 0, [])
        assert manager.stats == PoCStats()

    def test_the_counters_of_the_round(
        self, manager: PoCManager, config: PoCConfig, advance: Callable[[float], None]
    ) -> None:
        """Rate is what was checked in the time since the init."""
        manager.start_generate(config)
        advance(10)
        manager.run_batch()
        stats = manager.stats
        assert (stats.total_checked, stats.total_valid) == (
            4,
            sum(d < config.r_target for d in distances(0, 1, 2, 3)),
        )
        assert 10 <= stats.elapsed < 20
        assert stats.rate == 4 / stats.elapsed

    def test_no_time_has_no_rate(self) -> None:
        assert PoCStats(total_checked=4).rate == 0

    def test_what_the_device_does(
        self, manager: PoCManager, engine: FakeEngine, config: PoCConfig
    ) -> None:
        """Idle, then what the batch is for that it computes."""
        assert manager.state is PoCState.IDLE
        engine.gate.clear()
        manager.start_generate(config)
        manager.step()
        assert manager.state is PoCState.GENERATING
        engine.gate.set()
        manager.stop_round()
        manager.land()
        assert manager.state is PoCState.IDLE
        manager.start_validation(theirs(config, 1), config)
        manager.step()
        assert manager.state is PoCState.VALIDATING

    def test_the_claims_that_it_holds(
        self, manager: PoCManager, engine: FakeEngine, store: Store, config: PoCConfig
    ) -> None:
        """Those that wait for `run_batch` count as well: the heartbeat keeps them all."""
        assert manager.tokens == []
        manager.start_generate(config)
        manager.get_next_nonces()
        (first,) = manager.tokens
        manager.step()
        assert len(set(manager.tokens)) == 2
        assert first in manager.tokens
        manager.land()
        assert manager.tokens == [first]
        manager.run_batch()
        assert manager.tokens == []


class TestRunBatch:
    """One batch at a time, without a loop."""

    def test_the_next_nonces_are_claimed_one_batch_after_another(
        self, manager: PoCManager, config: PoCConfig
    ) -> None:
        """Of this node, for `run_batch` to compute."""
        config = config.model_copy(update={"node_id": 1, "node_count": 3})
        manager.start_generate(config)
        assert manager.get_next_nonces() == (1, 4, 7, 10)
        assert manager.get_next_nonces() == (13, 16, 19, 22)
        assert manager.run_batch().nonces == [1, 4, 7, 10]
        assert manager.run_batch().nonces == [13, 16, 19, 22]
        assert manager.run_batch().nonces == [25, 28, 31, 34]

    def test_a_claim_whose_answer_was_lost_is_asked_for_again(
        self, manager: PoCManager, store: Store, config: PoCConfig, away: Away
    ) -> None:
        """Given a script that ran unheard, then the same positions come, and none are skipped."""
        manager.start_generate(config)
        unheard = store.rounds.claim("w", manager._batch_token)
        assert unheard
        assert manager.get_next_nonces() == unheard.nonces
        assert manager.get_next_nonces() == (4, 5, 6, 7)

    def test_a_batch_whose_answer_was_lost_is_not_forgotten_over_a_chunk(
        self, manager: PoCManager, store: Store, config: PoCConfig
    ) -> None:
        """Given a validation that comes in between, the same positions are asked for after it."""
        manager.start_generate(config)
        unheard = store.rounds.claim("w", manager._batch_token)
        assert unheard
        manager.start_validation(ProofBatch.of(config, [9], [0.5]), config)
        manager.step()
        manager.step()
        assert unheard.token in manager.tokens

    def test_a_batch_is_computed_and_counted(
        self, manager: PoCManager, store: Store, config: PoCConfig
    ) -> None:
        """All of it is given, what is valid is kept."""
        config = config.model_copy(update={"r_target": 1.5, "submit_margin": 0.5})
        manager.start_generate(config)
        batch = manager.run_batch()
        assert batch == ProofBatch.of(config, [0, 1, 2, 3], distances(0, 1, 2, 3))
        now = status(store)
        assert now.total_checked == 4
        kept = [n for n in range(4) if fake_distance("b10c", "node", n) < 1.0]
        assert 0 < len(kept) < 4
        assert now.valid_nonces == kept
        assert now.profile == {"engine": "fake", "fingerprint": "fingerprint-of-fake"}

    def test_what_it_finds_is_told(
        self, manager: PoCManager, store: Store, config: PoCConfig
    ) -> None:
        """In the commit itself, so that neither is there without the other."""
        told = config.model_copy(update={"r_target": 2.0, "callback_url": "http://c"})
        manager.start_generate(told)
        manager.run_batch()
        (entry,) = store.outbox.take("s", 10)
        assert entry.url == "http://c/generated"
        body = ProofBatch.model_validate_json(store.outbox.body(entry.id) or "")
        assert body == ProofBatch.of(told, [0, 1, 2, 3], distances(0, 1, 2, 3))
        assert status(store).callbacks_pending == 1

    @pytest.mark.parametrize("verb", ["init_round", "start_validate", "stop_round"])
    def test_outside_generating_there_is_nothing_to_run(
        self, manager: PoCManager, engine: FakeEngine, config: PoCConfig, verb: str
    ) -> None:
        """Nor before the first round."""
        assert manager.run_batch() == ProofBatch.empty()
        manager.init_round(config)
        getattr(manager, verb)(*([config] if verb == "init_round" else []))
        assert manager.get_next_nonces() == ()
        assert len(manager.run_batch()) == 0
        assert engine.jobs == []

    def test_a_batch_of_a_round_that_stopped_counts_nothing(
        self, manager: PoCManager, store: Store, config: PoCConfig
    ) -> None:
        """Its positions come first when the round goes on."""
        manager.start_generate(config)
        manager.get_next_nonces()
        manager.stop_round()
        assert len(manager.run_batch()) == 0
        assert status(store).total_checked == 0
        manager.start_generate()
        assert manager.run_batch().nonces == [0, 1, 2, 3]

    def test_a_batch_that_was_taken_over_counts_once(
        self,
        manager: PoCManager,
        engine: FakeEngine,
        store: Store,
        config: PoCConfig,
        advance: Callable[[float], None],
    ) -> None:
        """Given another worker that took it for dead, then what the late one gives is empty."""
        manager.start_generate(config)
        manager.get_next_nonces()
        advance(31)
        other = PoCManager(engine, store, "other")
        assert other.run_batch().nonces == [0, 1, 2, 3]
        assert len(manager.run_batch()) == 0
        assert status(store).total_checked == 4

    def test_a_batch_that_fails_is_given_back(
        self, new_engine: Callable[..., FakeEngine], store: Store, config: PoCConfig
    ) -> None:
        """And raised; the next call computes the same positions."""
        manager = PoCManager(new_engine(fail=2), store)
        manager.start_generate(config)
        assert manager.run_batch().nonces == [0, 1, 2, 3]
        with pytest.raises(EngineError, match="asked to fail"):
            manager.run_batch()
        assert manager.tokens == []
        assert manager.run_batch().nonces == [4, 5, 6, 7]
        assert status(store).total_failed == 0

    def test_a_batch_that_always_fails_is_given_up(
        self, new_engine: Callable[..., FakeEngine], store: Store, config: PoCConfig
    ) -> None:
        """After three attempts its nonces are failed, with the engine's reason."""
        manager = PoCManager(new_engine(fail=1), store)
        manager.start_generate(config)
        for _ in range(3):
            with pytest.raises(EngineError):
                manager.run_batch()
        assert manager.get_next_nonces() == (4, 5, 6, 7)
        now = status(store)
        assert (now.total_failed, now.total_checked) == (4, 0)
        assert now.error == "positions 0 to 3 failed 3 times: the fake engine was asked to fail"

    def test_a_defect_of_the_engine_costs_no_batch_either(
        self, new_engine: Callable[..., FakeEngine], store: Store, config: PoCConfig
    ) -> None:
        """It ends the loop; what is in flight is given back, so that the worker can leave."""
        manager = PoCManager(new_engine(memory=1), store, "w")
        manager.start_generate(config)
        assert manager.step()
        with pytest.raises(MemoryError):
            manager.step()
        manager.land()
        assert manager.tokens == []
        assert min(free(store, 2)) == 0

    def test_a_redis_that_goes_away_costs_no_batch(
        self, manager: PoCManager, store: Store, config: PoCConfig, away: Away
    ) -> None:
        """Given none to commit to, then the claim is kept, and the next call goes on with it."""
        manager.start_generate(config)
        assert manager.get_next_nonces() == (0, 1, 2, 3)
        with away(), pytest.raises(StoreUnavailable):
            manager.run_batch()
        assert manager.run_batch().nonces == [0, 1, 2, 3]
        assert manager.run_batch().nonces == [4, 5, 6, 7]
        assert status(store).total_checked == 8

    def test_a_failed_batch_is_given_back_when_redis_is_there_again(
        self,
        new_engine: Callable[..., FakeEngine],
        store: Store,
        config: PoCConfig,
        away: Away,
    ) -> None:
        """It is not lost between two troubles."""
        manager = PoCManager(new_engine(fail=1), store)
        manager.start_generate(config)
        manager.get_next_nonces()
        with away(), pytest.raises(StoreUnavailable):
            manager.run_batch()
        with pytest.raises(EngineError):
            manager.run_batch()
        assert free(store, 2) == [0, 4]

    def test_without_redis_nothing_is_claimed(
        self, manager: PoCManager, config: PoCConfig, away: Away
    ) -> None:
        manager.start_generate(config)
        with away(), pytest.raises(StoreUnavailable):
            manager.run_batch()
        assert manager.run_batch().nonces == [0, 1, 2, 3]

    def test_nonces_without_a_distance_count_as_failed(
        self,
        new_engine: Callable[..., FakeEngine],
        store: Store,
        config: PoCConfig,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Not as checked, never as valid; the status and the log name the first."""
        manager = PoCManager(new_engine(nan=3), store)
        manager.start_generate(config.model_copy(update={"r_target": 2.0}))
        assert manager.run_batch().nonces == [1, 2]
        now = status(store)
        assert (now.total_checked, now.total_failed, now.valid_nonces) == (2, 2, [1, 2])
        assert now.error == "no finite distance for 2 nonces, the first is 0"
        assert f"{now.error}: they count as failed" in caplog.text

    def test_beside_an_event_loop(
        self, manager: PoCManager, engine: FakeEngine, config: PoCConfig
    ) -> None:
        """Given a batch that is computed, then the loop runs on until it is there."""
        manager.start_generate(config)

        async def run() -> ProofBatch:
            engine.gate.clear()
            batch = asyncio.create_task(manager.run_batch_async())
            await asyncio.to_thread(wait_until, lambda: engine.jobs)
            engine.gate.set()
            return await batch

        assert asyncio.run(run()).nonces == [0, 1, 2, 3]


class TestValidate:
    """Distances of anybody's nonces, now."""

    def test_distances_and_which_are_valid(self, manager: PoCManager, config: PoCConfig) -> None:
        """In the round's block, with the submitter's key, strictly below r_target."""
        dist = distances(*range(8), key="them")
        config = config.model_copy(update={"r_target": sorted(dist)[4]})
        manager.init_round(config)
        assert manager.validate(range(8), "them") == (dist, [d < config.r_target for d in dist])
        assert sum(manager.validate(range(8), "them")[1]) == 4

    def test_without_a_round_there_is_no_block(
        self, manager: PoCManager, engine: FakeEngine
    ) -> None:
        with pytest.raises(RoundNotInitialized, match=r"^Round not initialized$"):
            manager.validate([1], "them")
        assert engine.jobs == []

    def test_a_nonce_without_a_distance_is_not_valid(
        self, new_engine: Callable[..., FakeEngine], store: Store, config: PoCConfig
    ) -> None:
        manager = PoCManager(new_engine(nan=1), store)
        manager.init_round(config)
        (distance,), valid = manager.validate([1], "them")
        assert isnan(distance)
        assert valid == [False]

    def test_the_job_is_as_the_round_says(
        self, manager: PoCManager, engine: FakeEngine, config: PoCConfig
    ) -> None:
        """Also how long the sequence is, and where its inputs come from."""
        manager.init_round(config.model_copy(update={"seq_len": 12, "strong_rng": True}))
        manager.validate([5], "them")
        assert engine.jobs == [Job("b10c", "them", (5,), 12, True)]

    def test_the_round_does_not_notice(
        self, manager: PoCManager, store: Store, config: PoCConfig
    ) -> None:
        before = manager.start_generate(config)
        manager.validate([1, 2], "them")
        assert status(store) == before


class Observed(FakeEngine):
    """Notes what the store has counted whenever a job comes, and how many are not collected."""

    def __init__(self) -> None:
        super().__init__()
        self.look: Callable[[], int] = lambda: 0
        self.counted: list[int] = []
        self.most = self.out = 0

    def submit(self, job: Job) -> Any:
        self.counted.append(self.look())
        self.out += 1
        self.most = max(self.most, self.out)
        return _Collected(self, super().submit(job))


class _Collected:
    def __init__(self, engine: Observed, pending: Pending) -> None:
        self._engine, self._pending = engine, pending

    def result(self) -> list[float]:
        self._engine.out -= 1
        return self._pending.result()

    def cancel(self) -> bool:
        return self._pending.cancel()


class TestStep:
    """Claim, submit, collect, commit."""

    def test_there_is_nothing_to_do(self, manager: PoCManager, engine: FakeEngine) -> None:
        """Before the first round and after the last."""
        assert not manager.step()
        assert engine.jobs == []

    def test_a_batch_computes_while_the_one_before_is_committed(
        self, new_engine: Callable[..., FakeEngine], store: Store, config: PoCConfig
    ) -> None:
        """Given five steps, then each batch was submitted with only the last uncommitted."""
        engine = new_engine(Observed)
        assert isinstance(engine, Observed)
        engine.look = lambda: status(store).total_checked
        manager = PoCManager(engine, store)
        manager.start_generate(config)
        assert all(manager.step() for _ in range(5))
        assert engine.counted == [0, 0, 4, 8, 12]
        assert status(store).total_checked == 16
        assert engine.most == DEPTH
        assert computed(engine)[:4] == [
            (0, 1, 2, 3),
            (4, 5, 6, 7),
            (8, 9, 10, 11),
            (12, 13, 14, 15),
        ]

    def test_the_last_batches_land_when_nothing_follows(
        self, manager: PoCManager, store: Store, config: PoCConfig
    ) -> None:
        """A validation ends with its last chunk, not with the work after it."""
        manager.start_validation(theirs(config, *range(10)), config, command="v")
        while manager.step():
            pass
        job = store.jobs.next_computed()
        assert job
        assert job.dist == distances(*range(10), key="them")
        assert json.loads(job.profile)["fingerprint"] == "fingerprint-of-fake"
        assert (manager.computed, manager.tokens) == (10, [])

    def test_validations_go_first_in_turns_with_the_round(
        self, manager: PoCManager, engine: FakeEngine, config: PoCConfig
    ) -> None:
        """Given a round and three chunks, then a chunk is first and every second batch is one."""
        manager.start_generate(config)
        manager.start_validation(theirs(config, *range(12)), config)
        for _ in range(8):
            manager.step()
        manager.land()
        keys = [job.public_key for job in engine.jobs[:7]]
        assert keys == ["them", "node", "them", "node", "them", "node", "node"]

    def test_validations_wait_for_nobody_without_a_round(
        self, manager: PoCManager, engine: FakeEngine, config: PoCConfig
    ) -> None:
        """One chunk follows another."""
        manager.start_validation(theirs(config, *range(12)), config)
        while manager.step():
            pass
        assert computed(engine) == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]

    def test_a_chunk_is_computed_by_its_own_config(
        self, manager: PoCManager, engine: FakeEngine, config: PoCConfig
    ) -> None:
        """With the submitter's key."""
        own = config.model_copy(update={"seq_len": 12, "strong_rng": True})
        manager.start_validation(theirs(config, 5), own)
        manager.step()
        manager.land()
        assert engine.jobs == [Job("b10c", "them", (5,), 12, True)]

    def test_a_chunk_that_was_given_up_is_not_computed(
        self,
        new_store: Callable[..., Store],
        new_engine: Callable[..., FakeEngine],
        config: PoCConfig,
    ) -> None:
        """It only ends the validation, with the reason, and counts for no rate."""
        store, engine = new_store(max_attempts=1), new_engine(fail=1)
        manager = PoCManager(engine, store)
        manager.start_validation(theirs(config, 1, 2), config)
        manager.step()
        with pytest.raises(EngineError):
            manager.step()
        while manager.step():
            pass
        job = store.jobs.next_computed()
        assert job
        assert all(isnan(distance) for distance in job.dist)
        assert job.error == "the fake engine was asked to fail"
        assert len(engine.jobs) == 1
        assert manager.computed == 0

    def test_a_batch_that_fails_is_given_back_and_raised(
        self, new_engine: Callable[..., FakeEngine], store: Store, config: PoCConfig
    ) -> None:
        """The one behind it goes on, and the failed positions come next."""
        engine = new_engine(fail=2)
        manager = PoCManager(engine, store)
        manager.start_generate(config)
        assert manager.step()
        assert manager.step()
        with pytest.raises(EngineError, match="asked to fail"):
            manager.step()
        assert status(store).total_checked == 4
        assert len(manager.tokens) == 1
        assert manager.step()
        wait_until(lambda: len(engine.jobs) == 4, description="the repeat to begin")
        assert computed(engine)[3] == (4, 5, 6, 7)
        assert status(store).total_checked == 8

    def test_a_job_that_the_engine_does_not_take_fails_like_any_other(
        self, manager: PoCManager, engine: FakeEngine, store: Store, config: PoCConfig
    ) -> None:
        """Given a closed engine, then what was claimed for it is given back."""
        manager.start_generate(config)
        engine.close()
        manager.step()
        for _ in range(2):
            with pytest.raises(EngineError, match="closed"):
                manager.step()
        assert status(store).total_checked == 0
        manager.land()
        assert free(store, 2) == [0, 4]

    @pytest.mark.parametrize("job", ["batch", "chunk"])
    def test_an_engine_that_gives_too_few_distances(
        self, job: str, store: Store, config: PoCConfig, fault: Path
    ) -> None:
        """It is a defect: nothing of the batch counts, and the batch is free for others."""
        manager = PoCManager(FakeEngine(fault=fault), store)
        fault.write_text("one short")
        if job == "batch":
            manager.start_generate(config)
        else:
            manager.start_validation(theirs(config, *range(4)), config)
        manager.step()
        with pytest.raises(ValueError, match="the engine gave 3 distances for 4 nonces"):
            manager.step()
        manager.land()
        assert (manager.tokens, manager.computed) == ([], 0)
        if job == "batch":
            assert status(store).total_checked == 0
            assert free(store, 2) == [0, 4]
        else:
            assert store.jobs.claim("other", "t")

    def test_a_redis_that_goes_away_costs_no_batch(
        self, manager: PoCManager, engine: FakeEngine, store: Store, config: PoCConfig, away: Away
    ) -> None:
        """Given none to commit to, then both batches stay, and count when it is there again."""
        manager.start_generate(config)
        with ExitStack() as trouble, two_in_the_engine(manager, engine):
            trouble.enter_context(away())
        assert len(manager.tokens) == 2
        assert status(store).total_checked == 0
        manager.step()
        manager.land()
        assert status(store).total_checked == 8
        assert computed(engine) == [(0, 1, 2, 3), (4, 5, 6, 7)]

    def test_without_redis_nothing_is_claimed(
        self, manager: PoCManager, engine: FakeEngine, config: PoCConfig, away: Away
    ) -> None:
        manager.start_generate(config)
        with away(), pytest.raises(StoreUnavailable):
            manager.step()
        assert manager.tokens == []
        manager.step()
        manager.land()
        assert computed(engine) == [(0, 1, 2, 3)]

    def test_what_is_refused_is_said(
        self,
        manager: PoCManager,
        store: Store,
        config: PoCConfig,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """It was computed all the same, and the device was busy with it."""
        caplog.set_level("INFO")
        manager.start_generate(config)
        manager.step()
        manager.stop_round()
        assert not manager.step()
        assert "4 nonces were computed in vain: the round is STOPPED" in caplog.text
        assert (manager.computed, status(store).total_checked) == (4, 0)

    def test_it_counts_what_it_computed(self, manager: PoCManager, config: PoCConfig) -> None:
        """Since the start, in any round and none."""
        manager.start_generate(config)
        manager.step()
        manager.land()
        manager.stop_round()
        manager.start_validation(theirs(config, 1, 2), config)
        while manager.step():
            pass
        assert manager.computed == 6


class TestDropping:
    """A device is freed of what nobody wants, and emptied before the end."""

    def test_what_a_change_made_worthless_is_not_begun(
        self, manager: PoCManager, engine: FakeEngine, store: Store, config: PoCConfig
    ) -> None:
        """Given a stop, then the running batch ends in vain and the waiting one never begins."""
        manager.start_generate(config)
        with two_in_the_engine(manager, engine):
            manager.stop_round()
            manager.drop_unwanted()
        while manager.step():
            pass
        assert computed(engine) == [(0, 1, 2, 3)]
        assert manager.computed == 4
        assert status(store).total_checked == 0

    def test_a_round_that_goes_on_at_once_begins_anew(
        self, manager: PoCManager, engine: FakeEngine, store: Store, config: PoCConfig
    ) -> None:
        """Given stop and generate in one breath, then old claims are as worthless as after one."""
        manager.start_generate(config)
        with two_in_the_engine(manager, engine):
            manager.stop_round()
            manager.start_generate()
            manager.drop_unwanted()
        for _ in range(3):
            manager.step()
        assert status(store).total_checked == 8
        assert sorted(computed(engine)[:3]) == [(0, 1, 2, 3), (0, 1, 2, 3), (4, 5, 6, 7)]

    def test_what_is_wanted_stays(
        self, manager: PoCManager, engine: FakeEngine, store: Store, config: PoCConfig
    ) -> None:
        """A ring may be for something else."""
        manager.start_generate(config)
        with two_in_the_engine(manager, engine):
            manager.drop_unwanted()
        manager.step()
        assert status(store).total_checked == 8

    def test_validations_are_no_rounds_business(
        self, manager: PoCManager, engine: FakeEngine, store: Store, config: PoCConfig
    ) -> None:
        """Whatever becomes of the round, they are computed."""
        manager.init_round(config)
        manager.start_validation(theirs(config, *range(8)))
        with two_in_the_engine(manager, engine):
            manager.stop_round()
            manager.drop_unwanted()
        while manager.step():
            pass
        job = store.jobs.next_computed()
        assert job
        assert job.dist == distances(*range(8), key="them")

    def test_what_waits_is_dropped_before_the_end(
        self, manager: PoCManager, engine: FakeEngine, store: Store, config: PoCConfig
    ) -> None:
        """What the device computes now is committed, the rest is free for others at once."""
        manager.start_generate(config)
        with two_in_the_engine(manager, engine):
            manager.drop_waiting()
        manager.land()
        assert status(store).total_checked == 4
        assert computed(engine) == [(0, 1, 2, 3)]
        assert manager.tokens == []
        assert free(store, 2) == [4, 8]

    def test_landing_leaves_nothing_in_flight(
        self, manager: PoCManager, engine: FakeEngine, store: Store, config: PoCConfig
    ) -> None:
        """Also of a validation."""
        manager.start_validation(theirs(config, *range(8)), config)
        manager.step()
        manager.land()
        assert manager.tokens == []
        assert manager.state is PoCState.IDLE
        manager.land()
        left = store.jobs.claim("other", "t")
        assert left
        assert left.attempts == 0

    def test_a_batch_that_fails_keeps_no_other_from_landing(
        self,
        new_engine: Callable[..., FakeEngine],
        store: Store,
        config: PoCConfig,
        away: Away,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Given one that fails and one that waits behind it, then both are given back."""
        engine = new_engine(fail=1)
        manager = PoCManager(engine, store)
        manager.start_generate(config)
        with ExitStack() as trouble, two_in_the_engine(manager, engine):
            trouble.enter_context(away())
            manager.drop_waiting()
        assert len(manager.tokens) == 2
        manager.land()
        assert "a batch was given back: the fake engine was asked to fail" in caplog.text
        assert manager.tokens == []
        assert free(store, 3) == [0, 4, 8]
        assert computed(engine) == [(0, 1, 2, 3)]

    def test_landing_goes_on_when_redis_is_there_again(
        self, manager: PoCManager, engine: FakeEngine, store: Store, config: PoCConfig, away: Away
    ) -> None:
        """Given none, then it raises and holds on to all of it."""
        manager.start_generate(config)
        manager.step()
        held = manager.tokens
        with away(), pytest.raises(StoreUnavailable):
            manager.land()
        assert manager.tokens == held
        manager.land()
        assert (manager.tokens, len(engine.jobs)) == ([], 1)
        assert status(store).total_checked == 4

    def test_a_defect_does_not_keep_it_from_landing(
        self,
        manager: PoCManager,
        store: Store,
        config: PoCConfig,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Neither one of the commit, nor one of giving back: it ends, whatever is left."""
        manager.start_generate(config)

        def fail(*_: Any, **__: Any) -> None:
            raise TypeError("a defect")

        manager.step()
        monkeypatch.setattr(store.rounds, "commit", fail)
        manager.land()
        assert "a batch was given back: TypeError('a defect')" in caplog.text
        assert manager.tokens == []
        assert free(store, 1) == [0]

        manager.step()
        monkeypatch.setattr(store.rounds, "give_back", fail)
        manager.land()


class TestFunctionalCheck:
    """A device whose numbers are wrong commits nothing more, and keeps nothing."""

    @pytest.fixture
    def engine(self, new_engine: Callable[..., FakeEngine], fault: Path) -> FakeEngine:
        return new_engine(fault=fault)

    @pytest.fixture
    def check(self, engine: FakeEngine) -> FunctionalCheck:
        """Passed, and due in an hour; `now` makes it due."""
        check = FunctionalCheck(engine, load_settings({}, check_every_s=3600))
        check.begin()
        engine.checks.clear()
        return check

    @pytest.fixture
    def manager(self, engine: FakeEngine, store: Store, check: FunctionalCheck) -> PoCManager:
        return PoCManager(engine, store, "w", check)

    @staticmethod
    def now(check: FunctionalCheck) -> None:
        check._due_at = 0.0

    def test_it_runs_when_it_is_due(
        self,
        manager: PoCManager,
        engine: FakeEngine,
        store: Store,
        config: PoCConfig,
        check: FunctionalCheck,
    ) -> None:
        """Between two batches, which both count; or while there is no work."""
        manager.step()
        assert engine.checks == []
        self.now(check)
        manager.step()
        assert len(engine.checks) == 1
        manager.start_generate(config)
        for _ in range(3):
            manager.step()
        self.now(check)
        manager.step()
        assert len(engine.checks) == 2
        assert status(store).total_checked == 12

    def test_what_it_commits_is_in_doubt_until_the_next(
        self, manager: PoCManager, config: PoCConfig, check: FunctionalCheck
    ) -> None:
        """Rounds and validations; what was refused is not."""
        round_id = manager.start_generate(config).round_id
        for _ in range(3):
            manager.step()
        (generated,) = check.commits
        assert (generated.round_id, generated.first_nonce, generated.count) == (round_id, 0, 8)
        manager.stop_round()
        manager.land()
        assert check.in_doubt == 8
        manager.start_validation(theirs(config, 90, 91), config, command="v")
        manager.step()
        manager.step()
        validated = check.commits[-1]
        assert (validated.validation, validated.first_nonce, validated.last_nonce) == ("v", 90, 91)
        self.now(check)
        manager.step()
        assert check.in_doubt == 0

    def test_wrong_numbers(
        self,
        manager: PoCManager,
        store: Store,
        config: PoCConfig,
        check: FunctionalCheck,
        fault: Path,
    ) -> None:
        """What was computed and not committed is free as well, and is held against nobody."""
        manager.start_generate(config)
        manager.step()
        fault.write_text("wrong")
        self.now(check)
        with pytest.raises(Quarantined):
            manager.step()
        assert manager.tokens == []
        claim = store.rounds.claim("other", "t")
        assert claim
        assert (claim.start, claim.attempts) == (0, 0)
        assert status(store).total_checked == 0

    def test_it_gets_nothing_any_more(
        self,
        manager: PoCManager,
        engine: FakeEngine,
        config: PoCConfig,
        check: FunctionalCheck,
        fault: Path,
    ) -> None:
        """Also when its device is right again."""
        manager.start_generate(config)
        fault.write_text("wrong")
        self.now(check)
        for _ in range(2):
            with pytest.raises(Quarantined):
                manager.step()
            fault.unlink(missing_ok=True)
        assert engine.jobs == []

    @pytest.mark.parametrize("ends", [False, True])
    def test_a_redis_that_is_away_saves_nothing(
        self,
        ends: bool,
        manager: PoCManager,
        store: Store,
        config: PoCConfig,
        check: FunctionalCheck,
        fault: Path,
        away: Away,
    ) -> None:
        """Given one that comes back, then what it held is given back, whoever asks for it."""
        manager.start_generate(config)
        manager.step()
        fault.write_text("wrong")
        self.now(check)
        with away(), pytest.raises(StoreUnavailable):
            manager.step()
        fault.unlink()
        if ends:
            manager.land()
        else:
            with pytest.raises(Quarantined):
                manager.step()
        assert free(store, 1) == [0]
        assert status(store).total_checked == 0

    def test_a_batch_without_distances_is_checked_before_it_counts(
        self, manager: PoCManager, store: Store, config: PoCConfig, fault: Path
    ) -> None:
        """Given a device that has none at all any more, then no nonce is failed."""
        manager.start_generate(config)
        fault.write_text("nan")
        manager.step()
        with pytest.raises(Quarantined):
            manager.step()
        assert free(store, 2) == [0, 4]
        assert status(store).total_failed == 0

    def test_a_worker_that_ends_checks_its_last_batch_as_well(
        self,
        manager: PoCManager,
        engine: FakeEngine,
        store: Store,
        config: PoCConfig,
        fault: Path,
    ) -> None:
        engine.gate.clear()
        manager.start_generate(config)
        manager.step()
        wait_until(lambda: engine.jobs, description="the batch to begin")
        fault.write_text("nan")
        engine.gate.set()
        with pytest.raises(Quarantined):
            manager.land()
        assert manager.tokens == []
        assert status(store).total_failed == 0

    def test_nonces_without_a_distance_of_a_device_that_is_well(
        self, engine: FakeEngine, manager: PoCManager, store: Store, config: PoCConfig
    ) -> None:
        """It was checked for each such batch, and they are failed."""
        engine.nan = 2
        manager.start_generate(config)
        for _ in range(3):
            manager.step()
        assert len(engine.checks) == 2
        assert status(store).total_failed == 4

    def test_a_batch_that_fails_on_a_device_that_is_well(
        self, engine: FakeEngine, manager: PoCManager, config: PoCConfig
    ) -> None:
        """The failure is the batch's own."""
        engine.fail = 1
        manager.start_generate(config)
        manager.step()
        with pytest.raises(EngineError, match=r"^the fake engine was asked to fail$"):
            manager.step()
        assert len(engine.checks) == 1

    def test_a_batch_that_fails_on_a_device_that_computes_nothing(
        self, manager: PoCManager, store: Store, config: PoCConfig, fault: Path
    ) -> None:
        """The batch is given back, with its reason, and the device is gone."""
        manager.start_generate(config)
        fault.write_text("fail")
        manager.step()
        with pytest.raises(EngineDied, match="not even the functional check"):
            manager.step()
        claim = store.rounds.claim("other", "t")
        assert claim
        assert (claim.start, claim.attempts) == (0, 1)


class TestAbandon:
    """For a worker that must go without its device."""

    def test_what_is_computed_is_to_blame(
        self, manager: PoCManager, engine: FakeEngine, store: Store, config: PoCConfig
    ) -> None:
        """Given one batch that runs and one that waits, then one attempt failed."""
        manager.start_generate(config)
        with two_in_the_engine(manager, engine):
            manager.abandon("it hangs")
            claims = [store.rounds.claim("other", f"t{i}") for i in range(2)]
        assert sorted((c.start, c.attempts) for c in claims if c) == [(0, 1), (4, 0)]
        assert manager.tokens == []
