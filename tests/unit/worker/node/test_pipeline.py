"""The pipeline joins engine and store: what is computed counts once, or is given back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.client import Monitor

from chunks import claim_chunk
from fake_engine import FakeEngine
from fake_round import computed, distances, free, status, theirs, two_in_the_engine
from shared.config import PoCConfig, PoCState
from shared.errors import EngineDied, EngineError, Quarantined, StoreUnavailable
from shared.requests import ValidateRequest
from shared.settings import load_settings
from shared.store import Store, fresh_id
from shared.store.connection import Client
from support import changed, wait_until
from worker.engines import Job, Pending
from worker.manager import PoCManager
from worker.node.functional_check import FunctionalCheck
from worker.node.pipeline import DEPTH, Pipeline

Away = Callable[[], AbstractContextManager[None]]


def _calls(monitor: Monitor) -> Iterator[str]:
    """What clients asked for until the echo, without what scripts did."""
    while (seen := monitor.next_command())["command"] != "ECHO the end":
        if seen["client_type"] != "lua":
            yield seen["command"].split()[0]


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
        assert not manager.pipeline.step()
        assert engine.jobs == []

    def test_a_batch_computes_while_the_one_before_is_committed(
        self, new_engine: Callable[..., FakeEngine], store: Store, config: PoCConfig
    ) -> None:
        """Given five steps, then each batch was submitted with only the last uncommitted.

        One more than was stepped for: what follows is claimed with a commit.
        """
        engine = new_engine(Observed)
        assert isinstance(engine, Observed)
        engine.look = lambda: status(store).total_checked
        manager = PoCManager(engine, store)
        manager.start_generate(config)
        assert all(manager.pipeline.step() for _ in range(5))
        assert engine.counted == [0, 0, 4, 8, 12, 16]
        assert status(store).total_checked == 16
        assert engine.most == DEPTH
        assert computed(engine)[:4] == [
            (0, 1, 2, 3),
            (4, 5, 6, 7),
            (8, 9, 10, 11),
            (12, 13, 14, 15),
        ]

    def test_a_batch_is_one_round_trip(
        self, manager: PoCManager, store: Store, redis: Client, config: PoCConfig
    ) -> None:
        """Given a round that runs, then its commit and the next claim are one call of Redis."""
        manager.start_generate(config)
        manager.pipeline.step()
        manager.pipeline.step()
        with redis.monitor() as monitor:
            for _ in range(10):
                manager.pipeline.step()
            redis.echo("the end")
            calls = [each for each in _calls(monitor) if each not in ("PING", "HELLO", "CLIENT")]
        assert calls == ["EVALSHA"] * 10
        assert status(store).total_checked == 44

    def test_an_engine_with_large_tiles_gets_as_many_batches_as_fill_two(
        self, new_engine: Callable[..., FakeEngine], store: Store, config: PoCConfig
    ) -> None:
        """Given tiles of 13 nonces, and batches of 4."""
        engine = new_engine(Observed)
        assert isinstance(engine, Observed)
        engine.info = replace(engine.info, tile=13, joins_jobs=True)
        manager = PoCManager(engine, store)
        manager.start_generate(config)
        assert all(manager.pipeline.step() for _ in range(9))
        assert engine.most == 6
        assert status(store).total_checked == (9 - 5) * 4

    def test_what_failed_before_is_computed_alone(
        self, manager: PoCManager, engine: FakeEngine, store: Store, config: PoCConfig
    ) -> None:
        """In a tile with others it would fail them, too."""
        manager.start_generate(config)
        engine.fail = 1
        manager.pipeline.step()
        with pytest.raises(EngineError):
            manager.pipeline.step()
        engine.fail = 0
        for _ in range(5):
            with suppress(EngineError):  # the one behind it has failed as well
                manager.pipeline.step()
        tries = [(job.nonces[0], job.alone) for job in engine.jobs]
        assert tries.count((0, False)) == tries.count((0, True)) == 1
        assert [nonce for nonce, alone in tries if alone] in ([0], [0, 4])

    @pytest.mark.parametrize("lost", ["request", "answer"])
    def test_a_commit_whose_answer_was_lost(
        self,
        lost: str,
        manager: PoCManager,
        engine: FakeEngine,
        store: Store,
        config: PoCConfig,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It counted once, and what was claimed with it comes again under its token."""
        manager.start_generate(config)
        manager.pipeline.step()
        call = store.work.commit_and_claim

        def lose(*args: Any, **named: Any) -> Any:
            monkeypatch.undo()
            if lost == "answer":
                call(*args, **named)
            raise StoreUnavailable("the connection broke")

        monkeypatch.setattr(store.work, "commit_and_claim", lose)
        with pytest.raises(StoreUnavailable):
            manager.pipeline.step()
        for _ in range(3):
            manager.pipeline.step()
        assert status(store).total_checked == 12
        manager.pipeline.drain()
        assert computed(engine) == sorted(set(computed(engine)))

    def test_nothing_is_claimed_with_the_last_commit(
        self, manager: PoCManager, engine: FakeEngine, store: Store, config: PoCConfig
    ) -> None:
        """Given a worker that is to end, then it ends with what its device computes now."""
        manager.start_generate(config)
        with two_in_the_engine(manager.pipeline, engine):
            manager.pipeline.cancel_waiting()
        assert len(manager.pipeline.tokens) == 1  # what waited
        assert status(store).total_checked == 4
        assert computed(engine) == [(0, 1, 2, 3)]

    def test_a_commit_that_is_refused_claims_all_the_same(
        self, manager: PoCManager, engine: FakeEngine, store: Store, config: PoCConfig
    ) -> None:
        """Given a round that went on meanwhile, then its positions come again."""
        manager.start_generate(config)
        with two_in_the_engine(manager.pipeline, engine):
            manager.stop_round()
            manager.start_generate()
        assert len(manager.pipeline.tokens) == 2
        assert status(store).total_checked == 0
        for _ in range(2):
            manager.pipeline.step()
        assert status(store).total_checked == 4
        # The engine has both; it may not have begun the second yet.
        wait_until(lambda: (0, 1, 2, 3) in computed(engine)[2:], 10, "the same positions")

    def test_a_chunk_comes_with_the_commit_of_a_batch(
        self, manager: PoCManager, engine: FakeEngine, config: PoCConfig
    ) -> None:
        """A validation waits for no idle device."""
        manager.start_generate(config)
        with two_in_the_engine(manager.pipeline, engine):
            asked = ValidateRequest(batch=theirs(config, 1, 2), config=config)
            manager.open_validation(asked)
        manager.pipeline.step()
        manager.pipeline.step()
        assert computed(engine)[:3] == [(0, 1, 2, 3), (4, 5, 6, 7), (1, 2)]

    def test_the_last_batches_land_when_nothing_follows(
        self, manager: PoCManager, store: Store, config: PoCConfig
    ) -> None:
        """A validation ends with its last chunk, not with the work after it."""
        manager.open_validation(
            ValidateRequest(batch=theirs(config, *range(10)), config=config), command="v"
        )
        while manager.pipeline.step():
            pass
        job = store.validations.next_computed()
        assert job
        assert job.proofs == distances(*range(10), key="them")
        assert json.loads(job.profile)["fingerprint"] == "fingerprint-of-fake"
        assert (manager.pipeline.computed, manager.pipeline.tokens) == (10, [])

    def test_validations_go_first_in_turns_with_the_round(
        self, manager: PoCManager, engine: FakeEngine, config: PoCConfig
    ) -> None:
        """Given a round and three chunks, then a chunk is first and every second batch is one."""
        manager.start_generate(config)
        manager.open_validation(ValidateRequest(batch=theirs(config, *range(12)), config=config))
        for _ in range(8):
            manager.pipeline.step()
        manager.pipeline.drain()
        keys = [job.public_key for job in engine.jobs[:7]]
        assert keys == ["them", "node", "them", "node", "them", "node", "node"]

    def test_validations_wait_for_nobody_without_a_round(
        self, manager: PoCManager, engine: FakeEngine, config: PoCConfig
    ) -> None:
        """One chunk follows another."""
        manager.open_validation(ValidateRequest(batch=theirs(config, *range(12)), config=config))
        while manager.pipeline.step():
            pass
        assert computed(engine) == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]

    def test_a_chunk_is_computed_by_its_own_config(
        self, manager: PoCManager, engine: FakeEngine, config: PoCConfig
    ) -> None:
        """With the submitter's key."""
        own = config.model_copy(update={"seq_len": 12, "strong_rng": True})
        manager.open_validation(ValidateRequest(batch=theirs(config, 5), config=own))
        manager.pipeline.step()
        manager.pipeline.drain()
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
        manager.open_validation(ValidateRequest(batch=theirs(config, 1, 2), config=config))
        manager.pipeline.step()
        with pytest.raises(EngineError):
            manager.pipeline.step()
        while manager.pipeline.step():
            pass
        job = store.validations.next_computed()
        assert job
        assert job.proofs == [None, None]
        assert job.error == "the fake engine was asked to fail"
        assert len(engine.jobs) == 1
        assert manager.pipeline.computed == 0

    def test_a_batch_that_fails_is_given_back_and_raised(
        self, new_engine: Callable[..., FakeEngine], store: Store, config: PoCConfig
    ) -> None:
        """The one behind it goes on, and the failed positions come next."""
        engine = new_engine(fail=2)
        manager = PoCManager(engine, store)
        manager.start_generate(config)
        assert manager.pipeline.step()
        assert manager.pipeline.step()
        with pytest.raises(EngineError, match="asked to fail"):
            manager.pipeline.step()
        assert status(store).total_checked == 4
        assert len(manager.pipeline.tokens) == 1
        assert manager.pipeline.step()
        wait_until(lambda: len(engine.jobs) >= 4, description="the repeat to begin")
        assert computed(engine)[3] == (4, 5, 6, 7)
        assert status(store).total_checked == 8

    def test_a_job_that_the_engine_does_not_take_fails_like_any_other(
        self, manager: PoCManager, engine: FakeEngine, store: Store, config: PoCConfig
    ) -> None:
        """Given a closed engine, then what was claimed for it is given back."""
        manager.start_generate(config)
        engine.close()
        manager.pipeline.step()
        for _ in range(2):
            with pytest.raises(EngineError, match="closed"):
                manager.pipeline.step()
        assert status(store).total_checked == 0
        manager.pipeline.drain()
        assert free(store, 2) == [0, 4]

    @pytest.mark.parametrize("seen_by", ["ensure_alive", "submit"])
    def test_what_a_dead_engine_does_not_take_is_not_to_blame(
        self,
        seen_by: str,
        engine: FakeEngine,
        store: Store,
        config: PoCConfig,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Given an engine that dies before it has the batch, then that counts as no attempt."""

        def die(*_: Any) -> None:
            raise EngineDied("it has ended")

        monkeypatch.setattr(engine, seen_by, die)
        manager = PoCManager(engine, store)
        manager.start_generate(config)
        with pytest.raises(EngineDied):
            manager.pipeline.step()
        manager.pipeline.drain()
        claim = store.rounds.claim("another", fresh_id())
        assert claim
        assert (claim.start, claim.attempts) == (0, 0)

    @pytest.mark.parametrize("job", ["batch", "chunk"])
    @pytest.mark.parametrize(("how", "gave"), [("one short", 3), ("one over", 5)])
    def test_an_engine_that_gives_too_few_or_too_many_proofs(
        self, how: str, gave: int, job: str, store: Store, config: PoCConfig, fault: Path
    ) -> None:
        """It is a defect: nothing of the batch counts, and the batch is free for others."""
        manager = PoCManager(FakeEngine(fault=fault), store)
        fault.write_text(how)
        if job == "batch":
            manager.start_generate(config)
        else:
            manager.open_validation(ValidateRequest(batch=theirs(config, *range(4)), config=config))
        manager.pipeline.step()
        with pytest.raises(ValueError, match=f"the engine gave {gave} proofs for 4 nonces"):
            manager.pipeline.step()
        manager.pipeline.drain()
        assert (manager.pipeline.tokens, manager.pipeline.computed) == ([], 0)
        if job == "batch":
            assert status(store).total_checked == 0
            assert free(store, 2) == [0, 4]
        else:
            assert claim_chunk(store, "other", "t")

    def test_a_redis_that_goes_away_costs_no_batch(
        self, manager: PoCManager, engine: FakeEngine, store: Store, config: PoCConfig, away: Away
    ) -> None:
        """Given none to commit to, then both batches stay, and count when it is there again."""
        manager.start_generate(config)
        with ExitStack() as trouble, two_in_the_engine(manager.pipeline, engine):
            trouble.enter_context(away())
        assert len(manager.pipeline.tokens) == 2
        assert status(store).total_checked == 0
        held = manager.pipeline.tokens
        manager.pipeline.step()
        assert manager.pipeline.tokens[0] == held[1]
        manager.pipeline.step()
        assert status(store).total_checked == 8
        assert computed(engine)[:2] == [(0, 1, 2, 3), (4, 5, 6, 7)]

    def test_without_redis_nothing_is_claimed(
        self, manager: PoCManager, engine: FakeEngine, config: PoCConfig, away: Away
    ) -> None:
        manager.start_generate(config)
        with away(), pytest.raises(StoreUnavailable):
            manager.pipeline.step()
        assert manager.pipeline.tokens == []
        manager.pipeline.step()
        manager.pipeline.drain()
        assert computed(engine) == [(0, 1, 2, 3)]

    def test_what_is_refused_is_said(
        self, manager: PoCManager, store: Store, config: PoCConfig, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It was computed all the same, and the device was busy with it."""
        caplog.set_level("INFO")
        manager.start_generate(config)
        manager.pipeline.step()
        manager.stop_round()
        assert not manager.pipeline.step()
        assert "4 nonces do not count: the round is STOPPED" in caplog.text
        assert (manager.pipeline.computed, status(store).total_checked) == (4, 0)

    def test_a_distance_that_is_the_limit_is_not_valid(
        self, manager: PoCManager, store: Store, config: PoCConfig
    ) -> None:
        """Strictly below."""
        limit = distances(1)[0]
        manager.start_generate(changed(config, r_target=limit))
        while status(store).total_checked == 0:
            manager.pipeline.step()
        below = [n for n in range(4) if distances(n)[0] < limit]
        assert status(store).valid_nonces == below

    def test_it_counts_what_it_computed(self, manager: PoCManager, config: PoCConfig) -> None:
        """Since the start, in any round and none."""
        manager.start_generate(config)
        manager.pipeline.step()
        manager.pipeline.drain()
        manager.stop_round()
        manager.open_validation(ValidateRequest(batch=theirs(config, 1, 2), config=config))
        while manager.pipeline.step():
            pass
        assert manager.pipeline.computed == 6


class TestDropping:
    """A device is freed of what nobody wants, and emptied before the end."""

    def test_what_a_change_made_worthless_is_not_begun(
        self, manager: PoCManager, engine: FakeEngine, store: Store, config: PoCConfig
    ) -> None:
        """Given a stop, then the running batch ends in vain and the waiting one never begins."""
        manager.start_generate(config)
        with two_in_the_engine(manager.pipeline, engine):
            manager.stop_round()
            manager.pipeline.cancel_unwanted()
        while manager.pipeline.step():
            pass
        assert computed(engine) == [(0, 1, 2, 3)]
        assert manager.pipeline.computed == 4
        assert status(store).total_checked == 0

    def test_a_round_that_goes_on_at_once_begins_anew(
        self, manager: PoCManager, engine: FakeEngine, store: Store, config: PoCConfig
    ) -> None:
        """Given stop and generate in one breath, then old claims are as worthless as after one."""
        manager.start_generate(config)
        with two_in_the_engine(manager.pipeline, engine):
            manager.stop_round()
            manager.start_generate()
            manager.pipeline.cancel_unwanted()
        for _ in range(3):
            manager.pipeline.step()
        assert status(store).total_checked == 8
        assert sorted(computed(engine)[:3]) == [(0, 1, 2, 3), (0, 1, 2, 3), (4, 5, 6, 7)]

    def test_what_is_wanted_stays(
        self, manager: PoCManager, engine: FakeEngine, store: Store, config: PoCConfig
    ) -> None:
        """News may be of something else."""
        manager.start_generate(config)
        with two_in_the_engine(manager.pipeline, engine):
            manager.pipeline.cancel_unwanted()
        manager.pipeline.step()
        assert status(store).total_checked == 8

    def test_validations_are_no_rounds_business(
        self, manager: PoCManager, engine: FakeEngine, store: Store, config: PoCConfig
    ) -> None:
        """Whatever becomes of the round, they are computed."""
        manager.init_round(config)
        manager.open_validation(ValidateRequest(batch=theirs(config, *range(8))))
        with two_in_the_engine(manager.pipeline, engine):
            manager.stop_round()
            manager.pipeline.cancel_unwanted()
        while manager.pipeline.step():
            pass
        job = store.validations.next_computed()
        assert job
        assert job.proofs == distances(*range(8), key="them")

    def test_what_waits_is_dropped_before_the_end(
        self, manager: PoCManager, engine: FakeEngine, store: Store, config: PoCConfig
    ) -> None:
        """What the device computes now is committed, the rest is free for others at once."""
        manager.start_generate(config)
        with two_in_the_engine(manager.pipeline, engine):
            manager.pipeline.cancel_waiting()
        manager.pipeline.drain()
        assert status(store).total_checked == 4
        assert computed(engine) == [(0, 1, 2, 3)]
        assert manager.pipeline.tokens == []
        assert free(store, 2) == [4, 8]

    def test_draining_leaves_nothing_in_flight(
        self, manager: PoCManager, engine: FakeEngine, store: Store, config: PoCConfig
    ) -> None:
        """Also of a validation."""
        manager.open_validation(ValidateRequest(batch=theirs(config, *range(8)), config=config))
        manager.pipeline.step()
        manager.pipeline.drain()
        assert manager.pipeline.tokens == []
        assert manager.pipeline.state is PoCState.IDLE
        manager.pipeline.drain()
        left = claim_chunk(store, "other", "t")
        assert left
        assert left.attempts == 0

    def test_a_batch_that_fails_keeps_no_other_from_draining(
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
        with ExitStack() as trouble, two_in_the_engine(manager.pipeline, engine):
            trouble.enter_context(away())
            manager.pipeline.cancel_waiting()
        assert len(manager.pipeline.tokens) == 2
        manager.pipeline.drain()
        assert "a batch was given back: the fake engine was asked to fail" in caplog.text
        assert manager.pipeline.tokens == []
        assert free(store, 3) == [0, 4, 8]
        assert computed(engine) == [(0, 1, 2, 3)]

    def test_draining_goes_on_when_redis_is_there_again(
        self, manager: PoCManager, engine: FakeEngine, store: Store, config: PoCConfig, away: Away
    ) -> None:
        """Given none, then it raises and holds on to all of it."""
        manager.start_generate(config)
        manager.pipeline.step()
        held = manager.pipeline.tokens
        with away(), pytest.raises(StoreUnavailable):
            manager.pipeline.drain()
        assert manager.pipeline.tokens == held
        manager.pipeline.drain()
        assert (manager.pipeline.tokens, len(engine.jobs)) == ([], 1)
        assert status(store).total_checked == 4

    def test_a_defect_does_not_keep_it_from_draining(
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

        manager.pipeline.step()
        monkeypatch.setattr(store.rounds, "commit", fail)
        manager.pipeline.drain()
        assert "a batch was given back: TypeError('a defect')" in caplog.text
        assert manager.pipeline.tokens == []
        assert free(store, 1) == [0]

        manager.pipeline.step()
        monkeypatch.setattr(store.rounds, "give_back", fail)
        manager.pipeline.drain()


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
        return PoCManager(engine, store, pipeline=Pipeline(engine, store, "w", check))

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
        manager.pipeline.step()
        assert engine.checks == []
        self.now(check)
        manager.pipeline.step()
        assert len(engine.checks) == 1
        manager.start_generate(config)
        for _ in range(3):
            manager.pipeline.step()
        self.now(check)
        manager.pipeline.step()
        assert len(engine.checks) == 2
        assert status(store).total_checked == 12

    def test_what_it_commits_is_in_doubt_until_the_next(
        self, manager: PoCManager, config: PoCConfig, check: FunctionalCheck
    ) -> None:
        """Rounds and validations; what was refused is not."""
        round_id = manager.start_generate(config).round_id
        for _ in range(3):
            manager.pipeline.step()
        (generated,) = check.commits
        assert (generated.round_id, generated.count) == (round_id, 8)
        assert (generated.first_nonce, generated.last_nonce) == (0, 7)
        manager.stop_round()
        manager.pipeline.drain()
        assert check.in_doubt == 8
        manager.open_validation(
            ValidateRequest(batch=theirs(config, 90, 91), config=config), command="v"
        )
        manager.pipeline.step()
        manager.pipeline.step()
        validated = check.commits[-1]
        assert (validated.validation, validated.first_nonce, validated.last_nonce) == ("v", 90, 91)
        self.now(check)
        manager.pipeline.step()
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
        manager.pipeline.step()
        fault.write_text("wrong")
        self.now(check)
        with pytest.raises(Quarantined):
            manager.pipeline.step()
        assert manager.pipeline.tokens == []
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
                manager.pipeline.step()
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
        manager.pipeline.step()
        fault.write_text("wrong")
        self.now(check)
        with away(), pytest.raises(StoreUnavailable):
            manager.pipeline.step()
        fault.unlink()
        if ends:
            manager.pipeline.drain()
        else:
            with pytest.raises(Quarantined):
                manager.pipeline.step()
        assert free(store, 1) == [0]
        assert status(store).total_checked == 0

    def test_a_batch_without_distances_is_checked_before_it_counts(
        self, manager: PoCManager, store: Store, config: PoCConfig, fault: Path
    ) -> None:
        """Given a device that has none at all any more, then no nonce is failed."""
        manager.start_generate(config)
        fault.write_text("nan")
        manager.pipeline.step()
        with pytest.raises(Quarantined):
            manager.pipeline.step()
        assert free(store, 2) == [0, 4]
        assert status(store).total_failed == 0

    def test_a_worker_that_ends_checks_its_last_batch_as_well(
        self, manager: PoCManager, engine: FakeEngine, store: Store, config: PoCConfig, fault: Path
    ) -> None:
        engine.gate.clear()
        manager.start_generate(config)
        manager.pipeline.step()
        wait_until(lambda: engine.jobs, description="the batch to begin")
        fault.write_text("nan")
        engine.gate.set()
        with pytest.raises(Quarantined):
            manager.pipeline.drain()
        assert manager.pipeline.tokens == []
        assert status(store).total_failed == 0

    def test_nonces_without_a_distance_of_a_device_that_is_well(
        self, engine: FakeEngine, manager: PoCManager, store: Store, config: PoCConfig
    ) -> None:
        """It was checked for each such batch, and they are failed."""
        engine.nan = 2
        manager.start_generate(config)
        for _ in range(3):
            manager.pipeline.step()
        assert len(engine.checks) == 2
        assert status(store).total_failed == 4

    def test_a_batch_that_fails_on_a_device_that_is_well(
        self, engine: FakeEngine, manager: PoCManager, config: PoCConfig
    ) -> None:
        """The failure is the batch's own."""
        engine.fail = 1
        manager.start_generate(config)
        manager.pipeline.step()
        with pytest.raises(EngineError, match=r"^the fake engine was asked to fail$"):
            manager.pipeline.step()
        assert len(engine.checks) == 1

    def test_a_batch_that_fails_on_a_device_that_computes_nothing(
        self, manager: PoCManager, store: Store, config: PoCConfig, fault: Path
    ) -> None:
        """The batch is given back, with its reason, and the device is gone."""
        manager.start_generate(config)
        fault.write_text("fail")
        manager.pipeline.step()
        with pytest.raises(EngineDied, match="not even the functional check"):
            manager.pipeline.step()
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
        with two_in_the_engine(manager.pipeline, engine):
            manager.pipeline.abandon("it hangs")
            claims = [store.rounds.claim("other", f"t{i}") for i in range(2)]
        assert sorted((c.start, c.attempts) for c in claims if c) == [(0, 1), (4, 0)]
        assert manager.pipeline.tokens == []
