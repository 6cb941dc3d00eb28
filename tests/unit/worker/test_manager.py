"""The published face of a worker: commands, one batch at a time, and what there is to see."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from math import isnan

import pytest

from fake_engine import FakeEngine
from fake_round import distances, free, status, theirs
from shared.config import PoCConfig, PoCState
from shared.data import ProofBatch
from shared.errors import (
    EngineError,
    InvalidRequest,
    RoundInProgress,
    RoundMismatch,
    RoundNotInitialized,
    StoreUnavailable,
)
from shared.receivers import Receivers
from shared.requests import GenerateRequest, InitRequest, StopRequest, ValidateRequest
from shared.status import NodeStatus
from shared.store import Store
from support import changed, wait_until
from worker.engines import Job
from worker.manager import PoCManager, PoCStats

Away = Callable[[], AbstractContextManager[None]]


REQUESTS = {
    "init_round": InitRequest,
    "start_generate": GenerateRequest,
    "start_validate": ValidateRequest,
}


class TestCommands:
    """They check what the engine can do, and leave the rest to the store."""

    def test_a_round_from_its_begin_to_its_end(
        self, manager: PoCManager, config: PoCConfig
    ) -> None:
        """Each command gives the status after it."""
        assert manager.init_round(InitRequest(config=config, round_id="r1")).state is PoCState.IDLE
        assert manager.start_generate(GenerateRequest(round_id="r1")).state is PoCState.GENERATING
        assert manager.start_validate(ValidateRequest(round_id="r1")).state is PoCState.VALIDATING
        stopped = manager.stop_round(StopRequest(round_id="r1"))
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
            getattr(manager, verb)(REQUESTS[verb](config=too_long, replace=True))
        assert store.rounds.current()[1] == longest

    def test_what_the_model_cannot_compute_is_not_validated(
        self, manager: PoCManager, store: Store, config: PoCConfig
    ) -> None:
        """No worker would ever end it."""
        too_long = config.model_copy(update={"seq_len": 1025})
        with pytest.raises(InvalidRequest, match="seq_len=1025"):
            manager.open_validation(
                ValidateRequest(batch=theirs(config, 1), config=too_long), command="v"
            )
        assert store.validations.progress() == {}

    @pytest.mark.parametrize("verb", ["start_generate", "start_validate"])
    def test_nothing_starts_before_an_init(self, manager: PoCManager, verb: str) -> None:
        with pytest.raises(RoundNotInitialized, match=r"^Round not initialized$"):
            getattr(manager, verb)()

    def test_a_running_round_is_only_replaced_on_demand(
        self, manager: PoCManager, config: PoCConfig
    ) -> None:
        manager.start_generate(GenerateRequest(config=config, round_id="r1"))
        with pytest.raises(RoundInProgress, match=r"^Round already in progress$"):
            manager.init_round(config)
        assert manager.init_round(InitRequest(config=config, replace=True)).round_id != "r1"

    @pytest.mark.parametrize("verb", ["init_round", "start_generate", "start_validate"])
    def test_a_receiver_that_is_not_allowed_is_refused(
        self, engine: FakeEngine, store: Store, config: PoCConfig, verb: str
    ) -> None:
        """Before anything is opened."""
        manager = PoCManager(engine, store, receivers=Receivers.of("chain.example"))
        theirs = config.model_copy(update={"callback_url": "http://elsewhere.example"})
        with pytest.raises(
            InvalidRequest, match=r"^callback_url: elsewhere\.example is not in POC_"
        ):
            getattr(manager, verb)(theirs)
        assert store.status().round_id == ""

    @pytest.mark.parametrize("verb", ["start_generate", "start_validate"])
    def test_a_command_for_another_round_is_refused(
        self, manager: PoCManager, config: PoCConfig, verb: str
    ) -> None:
        manager.init_round(InitRequest(config=config, round_id="r2"))
        with pytest.raises(RoundMismatch):
            getattr(manager, verb)(REQUESTS[verb](round_id="r1"))

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
            manager.open_validation(ValidateRequest(batch=theirs(config, 1, 2)), command="v0")
        manager.open_validation(
            ValidateRequest(batch=theirs(config, 1, 2), config=config), command="v1"
        )
        manager.init_round(config)
        manager.open_validation(ValidateRequest(batch=theirs(config, 3)), command="v2")
        assert store.validations.progress() == {
            "v1": {"done": 0, "total": 2},
            "v2": {"done": 0, "total": 1},
        }


class TestShowing:
    """What others see of it."""

    def test_the_status_is_plain_json(self, manager: PoCManager, config: PoCConfig) -> None:
        """As the API shows it, with as many of the newest valid nonces as are asked for."""
        config = changed(config, r_target=2.0)
        manager.start_generate(GenerateRequest(config=config, round_id="r1"))
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
        assert manager.pipeline.state is PoCState.IDLE
        engine.gate.clear()
        manager.start_generate(config)
        manager.pipeline.step()
        assert manager.pipeline.state is PoCState.GENERATING
        engine.gate.set()
        manager.stop_round()
        manager.pipeline.drain()
        assert manager.pipeline.state is PoCState.IDLE
        manager.open_validation(ValidateRequest(batch=theirs(config, 1), config=config))
        manager.pipeline.step()
        assert manager.pipeline.state is PoCState.VALIDATING

    def test_the_claims_that_it_holds(
        self, manager: PoCManager, engine: FakeEngine, store: Store, config: PoCConfig
    ) -> None:
        """Those that wait for `run_batch` count as well: the heartbeat keeps them all."""
        assert manager.pipeline.tokens == []
        manager.start_generate(config)
        manager.get_next_nonces()
        (first,) = manager.pipeline.tokens
        manager.pipeline.step()
        assert len(set(manager.pipeline.tokens)) == 2
        assert first in manager.pipeline.tokens
        manager.pipeline.drain()
        assert manager.pipeline.tokens == [first]
        manager.run_batch()
        assert manager.pipeline.tokens == []


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
        unheard = store.rounds.claim("w", manager.pipeline._token)
        assert unheard
        assert manager.get_next_nonces() == unheard.nonces
        assert manager.get_next_nonces() == (4, 5, 6, 7)

    def test_a_batch_whose_answer_was_lost_is_not_forgotten_over_a_chunk(
        self, manager: PoCManager, store: Store, config: PoCConfig
    ) -> None:
        """Given a validation that comes in between, then the same positions come before it."""
        manager.start_generate(config)
        unheard = store.rounds.claim("w", manager.pipeline._token)
        assert unheard
        manager.open_validation(
            ValidateRequest(batch=ProofBatch.of(config, [9], [0.5]), config=config)
        )
        manager.pipeline.step()
        assert manager.pipeline.tokens == [unheard.token]

    def test_a_batch_is_computed_and_counted(
        self, manager: PoCManager, store: Store, config: PoCConfig
    ) -> None:
        """All of it is given, what is valid is kept."""
        config = changed(config, r_target=1.5, submit_margin=0.5)
        manager.start_generate(config)
        batch = manager.run_batch()
        assert batch == ProofBatch.of(config, [0, 1, 2, 3], distances(0, 1, 2, 3))
        now = status(store)
        assert now.total_checked == 4
        kept = [n for n in range(4) if distances(n)[0] < 1.0]
        assert 0 < len(kept) < 4
        assert now.valid_nonces == kept
        assert now.profile == {"engine": "fake", "fingerprint": "fingerprint-of-fake"}

    def test_what_it_finds_is_told(
        self, manager: PoCManager, store: Store, config: PoCConfig
    ) -> None:
        """In the commit itself, so that neither is there without the other."""
        told = changed(config, r_target=2.0, callback_url="http://c")
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
        assert manager.pipeline.tokens == []
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
        assert manager.pipeline.step()
        with pytest.raises(MemoryError):
            manager.pipeline.step()
        manager.pipeline.drain()
        assert manager.pipeline.tokens == []
        assert min(free(store, 2)) == 0

    def test_a_defect_in_one_batch_holds_up_no_other(
        self, new_engine: Callable[..., FakeEngine], store: Store, config: PoCConfig
    ) -> None:
        """It is given back and raised, as by the loop."""
        manager = PoCManager(new_engine(memory=1), store)
        manager.start_generate(config)
        with pytest.raises(MemoryError):
            manager.run_batch()
        assert manager.pipeline.tokens == []
        assert manager.run_batch().nonces == [0, 1, 2, 3]
        assert manager.stats.total_checked == 4

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
        self, new_engine: Callable[..., FakeEngine], store: Store, config: PoCConfig, away: Away
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
        manager.start_generate(changed(config, r_target=2.0))
        assert manager.run_batch().nonces == [1, 2]
        now = status(store)
        assert (now.total_checked, now.total_failed, now.valid_nonces) == (2, 2, [1, 2])
        assert now.error == "no finite numbers for 2 nonces, the first is 0"
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
        config = changed(config, r_target=sorted(dist)[4])
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
