"""The clerk: verdicts, and what callers are told of their tickets."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from chunks import claim_chunk
from shared.config import PoCConfig, PoCState
from shared.data import ProofBatch, ValidatedBatch
from shared.errors import CouldNotCompute, PoCError, RoundFailed, StoreUnavailable
from shared.evidence import Evidence
from shared.requests import GenerateRequest, ValidateRequest
from shared.status import RoundStatus
from shared.store import Computed, Store
from shared.store.connection import Client
from shared.store.keys import Keys
from ticket_sink import KeptTickets
from worker.node import clerk
from worker.node.clerk import Clerk

Away = Callable[[], AbstractContextManager[None]]

PROFILE = {"engine": "fake"}


class Silence:
    """A bell that nobody rings, for a clerk that does not wait."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def wait(self, timeout: float) -> bool:
        self.waits.append(timeout)
        return False


@pytest.fixture
def sink() -> KeptTickets:
    return KeptTickets()


@pytest.fixture
def new_clerk(store: Store, sink: KeptTickets) -> Callable[..., Clerk]:
    """Makes the clerk of one more worker."""

    def new(sink: KeptTickets = sink, store: Store = store) -> Clerk:
        bell: Any = Silence()
        return Clerk(store, sink, bell)

    return new


@pytest.fixture
def config(config: PoCConfig) -> PoCConfig:
    """Somebody wants to be called back."""
    return config.model_copy(update={"callback_url": "http://c"})


def computed(
    store: Store,
    config: PoCConfig,
    dist: list[float | None],
    job: str = "v",
    profile: str = json.dumps(PROFILE),
    received: float = 0.5,
) -> ProofBatch:
    """A validation, recomputed as `dist`; all its distances were received as `received`."""
    batch = ProofBatch.of(config, range(len(dist)), [received] * len(dist))
    store.validations.open(
        job, ValidateRequest(batch=batch, config=config.model_copy(update={"batch_size": 4096}))
    )
    if dist:
        chunk = claim_chunk(store, "w", f"token-{job}")
        assert chunk
        store.validations.commit(chunk, dist, profile=profile)
    return batch


def told_back(store: Store) -> list[dict[str, Any]]:
    """The callbacks that wait, as they go over the wire."""
    return [json.loads(store.outbox.body(e.id) or "null") for e in store.outbox.take("s", 100)]


def error_of(sink: KeptTickets) -> tuple[str, type[PoCError], str]:
    """The only task that failed, with what."""
    ((task, error),) = sink.errors
    return task, type(error), str(error)


class TestVerdicts:
    """Each validation ends once, with a verdict or without."""

    def test_a_computed_validation_is_judged(
        self, new_clerk: Callable[..., Clerk], store: Store, sink: KeptTickets, config: PoCConfig
    ) -> None:
        """Its ticket and its callback get the same verdict, with what computed it."""
        batch = computed(store, config, [0.5, 0.6, 0.7])
        new_clerk().turn()
        verdict = ValidatedBatch.judge(batch, [0.5, 0.6, 0.7], config, PROFILE)
        assert (verdict.n_invalid, verdict.fraud_detected) == (0, False)
        ((task, result),) = sink.results
        assert task == "v"
        assert ValidatedBatch.model_validate(result) == verdict
        (body,) = told_back(store)
        assert ValidatedBatch.model_validate(body) == verdict
        assert store.validations.next_computed() is None
        assert store.validations.progress() == {}

    def test_of_an_honest_batch_no_evidence_is_kept(
        self, new_clerk: Callable[..., Clerk], store: Store, config: PoCConfig
    ) -> None:
        """Its verdict is all that anybody asks for."""
        computed(store, config, [0.5, 0.6, 0.7])
        new_clerk().turn()
        assert store.validations.evidence("v") is None

    def test_of_fraud_all_is_kept(
        self, new_clerk: Callable[..., Clerk], store: Store, config: PoCConfig
    ) -> None:
        """Both sides' distances, what it was judged by, and what came of it; not who was told."""
        batch = computed(store, config, [1.5] * 8)
        new_clerk().turn()
        kept = Evidence.model_validate_json(store.validations.evidence("v") or "")
        assert (kept.validation, kept.batch, kept.proofs) == ("v", batch, [1.5] * 8)
        assert (kept.config.r_target, kept.config.callback_url) == (config.r_target, None)
        assert (kept.n_invalid, kept.fraud_detected, kept.error) == (8, True, "")
        assert kept.opened_at is not None
        assert kept.judged_at >= kept.opened_at - 60

    def test_of_what_could_not_be_computed_all_is_kept(
        self, new_clerk: Callable[..., Clerk], store: Store, config: PoCConfig
    ) -> None:
        """What was computed stays, where nothing was there is nothing, and why."""
        computed(store, config, [0.5, None, 0.7])
        new_clerk().turn()
        kept = Evidence.model_validate_json(store.validations.evidence("v") or "")
        assert kept.proofs == [0.5, None, 0.7]
        assert kept.fraud_detected is None
        assert kept.error.startswith("no finite numbers for 1 of 3 nonces: 1")

    def test_fraud_is_a_verdict_as_well(
        self, new_clerk: Callable[..., Clerk], store: Store, sink: KeptTickets, config: PoCConfig
    ) -> None:
        """Given distances that were invented, then nobody fails but the submitter."""
        computed(store, config, [1.5] * 8)
        new_clerk().turn()
        ((_, result),) = sink.results
        assert (result["n_invalid"], result["fraud_detected"]) == (8, True)
        assert sink.errors == []

    def test_an_empty_batch_is_no_fraud(
        self, new_clerk: Callable[..., Clerk], store: Store, sink: KeptTickets, config: PoCConfig
    ) -> None:
        """Nothing computed it, and nothing is recorded of what did."""
        computed(store, config, [])
        new_clerk().turn()
        ((_, result),) = sink.results
        assert (result["nonces"], result["fraud_detected"], result["profile"]) == ([], False, {})

    def test_all_that_wait_are_judged_in_one_turn(
        self, new_clerk: Callable[..., Clerk], store: Store, sink: KeptTickets, config: PoCConfig
    ) -> None:
        """In the order in which they were ready."""
        for job in ("v1", "v2", "v3"):
            computed(store, config, [0.5], job)
        new_clerk().turn()
        assert sink.ended == ["v1", "v2", "v3"]

    def test_a_validation_without_all_distances_accuses_nobody(
        self, new_clerk: Callable[..., Clerk], store: Store, sink: KeptTickets, config: PoCConfig
    ) -> None:
        """Given two of three, then the error names the one, and the callback lists it."""
        computed(store, config, [0.5, None, 0.5])
        new_clerk().turn()
        task, kind, message = error_of(sink)
        assert (task, kind) == ("v", CouldNotCompute)
        assert message == (
            "no finite numbers for 1 of 3 nonces: 1; this accuses nobody: look at the workers, "
            "then send it again; all there is of it: poc evidence v"
        )
        assert sink.results == []
        (body,) = told_back(store)
        assert (body["error"], body["message"]) == ("CouldNotCompute", message)
        assert (body["nonces"], body["not_computed"]) == ([0, 1, 2], [1])
        assert "fraud_detected" not in body

    def test_an_error_stays_short_and_its_callback_is_complete(
        self, new_clerk: Callable[..., Clerk], store: Store, sink: KeptTickets, config: PoCConfig
    ) -> None:
        """Given twelve nonces without a distance, then ten are named."""
        computed(store, config, [None] * 12)
        new_clerk().turn()
        assert "for 12 of 12 nonces: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...; this" in error_of(sink)[2]
        (body,) = told_back(store)
        assert body["not_computed"] == list(range(12))

    def test_ten_are_all_named(
        self, new_clerk: Callable[..., Clerk], store: Store, sink: KeptTickets, config: PoCConfig
    ) -> None:
        computed(store, config, [None] * 10)
        new_clerk().turn()
        assert "nonces: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9; this" in error_of(sink)[2]

    def test_what_the_engine_said_is_passed_on(
        self, new_clerk: Callable[..., Clerk], store: Store, sink: KeptTickets, config: PoCConfig
    ) -> None:
        """Given a chunk that was given up."""
        store.validations.open(
            "v", ValidateRequest(batch=ProofBatch.of(config, [1, 2], [0.5, 0.5]), config=config)
        )
        chunk = claim_chunk(store, "w", "t")
        assert chunk
        store.validations.commit(chunk, [], error="out of memory")
        new_clerk().turn()
        assert "for 2 of 2 nonces: 1, 2: out of memory; this" in error_of(sink)[2]

    def test_a_defect_in_one_keeps_no_other_waiting(
        self,
        new_clerk: Callable[..., Clerk],
        store: Store,
        sink: KeptTickets,
        config: PoCConfig,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Given one that can't be judged, then it fails, visibly, and the next is judged."""
        computed(store, config, [0.5, 0.5], "bad", profile='{"tile": 8}')  # a number is no text
        computed(store, config, [0.5], "good")
        new_clerk().turn()
        assert sink.ended == ["good"]
        task, kind, message = error_of(sink)
        assert (task, kind) == ("bad", CouldNotCompute)
        assert message.startswith("a worker failed to judge it: 1 validation error")
        bodies = {body.get("error"): body for body in told_back(store)}
        assert bodies["CouldNotCompute"]["not_computed"] == [0, 1]
        (record,) = (each for each in caplog.records if each.exc_info)
        assert record.getMessage() == "validation bad has no verdict"

    def test_two_clerks_give_one_verdict(
        self, new_clerk: Callable[..., Clerk], store: Store, sink: KeptTickets, config: PoCConfig
    ) -> None:
        """Given one that judged and was killed before the end, then the other repeats nothing."""
        computed(store, config, [0.5])
        job = store.validations.next_computed()
        assert job
        new_clerk()._judge(job)
        new_clerk()._judge(job)
        new_clerk().turn()
        assert sink.ended == ["v"]
        assert len(told_back(store)) == 1


class TestEndings:
    """Whoever waits for a ticket hears of its end."""

    def test_a_round_ends_with_its_final_status(
        self, new_clerk: Callable[..., Clerk], store: Store, sink: KeptTickets, config: PoCConfig
    ) -> None:
        """With its valid nonces, for every task that generated in it."""
        store.rounds.generate("g1", GenerateRequest(config=config))
        store.rounds.generate("g2")
        claim = store.rounds.claim("w", "t")
        assert claim
        store.rounds.commit(claim, Computed(4, [(0, "0.25"), (2, "0.5")]))
        stopped = store.rounds.stop("s")
        new_clerk().turn()
        assert sorted(sink.ended) == ["g1", "g2"]
        for _, result in sink.results:
            ended = RoundStatus.model_validate(result)
            assert (ended.state, ended.total_checked) == (PoCState.STOPPED, 4)
            assert ended.round_id == stopped.round_id
            assert (ended.valid_nonces, ended.valid_distances) == ([0, 2], [0.25, 0.5])
        assert store.endings.next() is None

    def test_of_many_nonces_the_newest_are_told(
        self,
        new_clerk: Callable[..., Clerk],
        store: Store,
        sink: KeptTickets,
        config: PoCConfig,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Pages have the rest."""
        monkeypatch.setattr(clerk, "NEWEST", 2)
        store.rounds.generate("g", GenerateRequest(config=config))
        claim = store.rounds.claim("w", "t")
        assert claim
        store.rounds.commit(claim, Computed(4, [(n, "0.5") for n in range(4)]))
        store.rounds.stop("s")
        new_clerk().turn()
        ((_, result),) = sink.results
        assert (result["total_valid"], result["valid_nonces"]) == (4, [2, 3])

    @pytest.mark.parametrize(
        "end",
        [
            {"result": "no JSON"},
            {"result": 7},
            {"status": "text"},
            {"status": {"total_valid": "many"}},
            {"status": {"state": "DANCING"}},
        ],
    )
    def test_an_end_that_cannot_be_told_keeps_no_other_waiting(
        self,
        end: dict[str, Any],
        new_clerk: Callable[..., Clerk],
        store: Store,
        sink: KeptTickets,
        config: PoCConfig,
        redis: Client,
        keys: Keys,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Given one of another version, its caller hears that it ended, and the next is told."""
        item = json.dumps({"task": "strange", **end})
        redis.rpush(keys("endings"), item)
        store.rounds.generate("g", GenerateRequest(config=config))
        store.rounds.stop("s")
        new_clerk().turn()
        assert sink.ended == ["g"]
        task, _, message = error_of(sink)
        assert task == "strange"
        assert message.startswith("it ended, and a worker failed to say how: ")
        assert redis.lrange(keys("dead_letters"), 0, -1) == [item]
        assert "the end of ticket strange can't be told" in caplog.text

    def test_a_round_may_end_with_an_error(
        self,
        new_clerk: Callable[..., Clerk],
        new_store: Callable[..., Store],
        sink: KeptTickets,
        config: PoCConfig,
    ) -> None:
        """Given one that holds too much, then its ticket fails with the reason."""
        store = new_store(max_valid=1)
        store.rounds.generate("g", GenerateRequest(config=config))
        claim = store.rounds.claim("w", "t")
        assert claim
        store.rounds.commit(claim, Computed(4, [(0, "0.25"), (2, "0.5")]))
        new_clerk().turn()
        task, kind, message = error_of(sink)
        assert (task, kind) == ("g", RoundFailed)
        assert "POC_MAX_VALID" in message

    def test_an_end_is_told_again_after_a_crash(
        self,
        new_clerk: Callable[..., Clerk],
        store: Store,
        config: PoCConfig,
        away: Away,
    ) -> None:
        """Given a worker that told it and could not drop it, then the next one tells it, once."""
        trouble = away()

        class Severing(KeptTickets):
            """Redis goes away with the first end that it is told."""

            def succeeded(self, task: str, result: dict[str, Any]) -> None:
                super().succeeded(task, result)
                trouble.__enter__()

        store.rounds.generate("g", GenerateRequest(config=config))
        store.rounds.stop("s")
        crashed, healthy = Severing(), KeptTickets()
        with pytest.raises(StoreUnavailable):
            new_clerk(crashed).turn()
        trouble.__exit__(None, None, None)
        assert crashed.ended == ["g"]
        new_clerk(healthy).turn()
        new_clerk(healthy).turn()
        assert healthy.ended == ["g"]

    def test_a_sink_that_cannot_tell_leaves_the_end_in_its_queue(
        self, new_clerk: Callable[..., Clerk], store: Store, sink: KeptTickets, config: PoCConfig
    ) -> None:
        """Whatever it raises."""

        class Broken(KeptTickets):
            def succeeded(self, task: str, result: dict[str, Any]) -> None:
                raise StoreUnavailable("the result backend is away")

        store.rounds.generate("g", GenerateRequest(config=config))
        store.rounds.stop("s")
        with pytest.raises(StoreUnavailable):
            new_clerk(Broken()).turn()
        new_clerk().turn()
        assert sink.ended == ["g"]


class TestProgress:
    """Those who wait see that it goes on."""

    @pytest.fixture
    def a_second_later(self, redis: Client, keys: Keys) -> Callable[[], Any]:
        """The interval between two reports is over."""
        return lambda: redis.delete(keys("reporter"))

    def test_a_round_shows_its_counters(
        self, new_clerk: Callable[..., Clerk], store: Store, sink: KeptTickets, config: PoCConfig
    ) -> None:
        """To every task that generates in it."""
        store.rounds.generate("g1", GenerateRequest(config=config, round_id="r1"))
        store.rounds.generate("g2")
        claim = store.rounds.claim("w", "t")
        assert claim
        store.rounds.commit(claim, Computed(4, [(0, "0.25")]))
        new_clerk().turn()
        assert [task for task, _ in sink.reports] == ["g1", "g2"]
        for _, state in sink.reports:
            assert (state["round_id"], state["total_checked"], state["total_valid"]) == ("r1", 4, 1)
            assert {"rate_per_second", "recent_rate_per_second", "elapsed_seconds"} < set(state)

    def test_a_validation_shows_how_far_it_is(
        self, new_clerk: Callable[..., Clerk], store: Store, sink: KeptTickets, config: PoCConfig
    ) -> None:
        store.validations.open(
            "v", ValidateRequest(batch=ProofBatch.of(config, range(6), [0.5] * 6), config=config)
        )
        chunk = claim_chunk(store, "w", "t")
        assert chunk
        store.validations.commit(chunk, [0.5] * 4)
        new_clerk().turn()
        assert sink.reports == [("v", {"done": 4, "total": 6})]

    def test_only_what_changed_is_reported(
        self,
        new_clerk: Callable[..., Clerk],
        store: Store,
        sink: KeptTickets,
        config: PoCConfig,
        a_second_later: Callable[[], Any],
    ) -> None:
        """Given two validations of which one goes on, then only that one is reported again."""
        for job in ("v1", "v2"):
            store.validations.open(
                job,
                ValidateRequest(batch=ProofBatch.of(config, range(6), [0.5] * 6), config=config),
            )
        reporting = new_clerk()
        reporting.turn()
        assert [task for task, _ in sink.reports] == ["v1", "v2"]
        a_second_later()
        reporting.turn()
        assert len(sink.reports) == 2
        chunk = claim_chunk(store, "w", "t")
        assert chunk
        store.validations.commit(chunk, [0.5] * 4)
        a_second_later()
        reporting.turn()
        assert sink.reports[2:] == [("v1", {"done": 4, "total": 6})]

    def test_one_worker_reports_at_a_time(
        self,
        new_clerk: Callable[..., Clerk],
        store: Store,
        config: PoCConfig,
        a_second_later: Callable[[], Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Given three in one interval, then the first of them does."""
        monkeypatch.setattr(clerk, "REPORT_EVERY_S", 60.0)
        store.rounds.generate("g", GenerateRequest(config=config))
        sinks = [KeptTickets() for _ in range(3)]
        for each in sinks:
            new_clerk(each).turn()
        assert [len(each.reports) for each in sinks] == [1, 0, 0]
        a_second_later()
        new_clerk(sinks[2]).turn()
        assert [len(each.reports) for each in sinks] == [1, 0, 1]

    def test_what_has_ended_is_reported_no_more(
        self, new_clerk: Callable[..., Clerk], store: Store, sink: KeptTickets, config: PoCConfig
    ) -> None:
        store.rounds.generate("g", GenerateRequest(config=config))
        store.rounds.stop("s")
        computed(store, config, [0.5])
        new_clerk().turn()
        assert sink.reports == []
        assert sorted(sink.ended) == ["g", "v"]

    def test_a_report_that_failed_is_made_again(
        self,
        new_clerk: Callable[..., Clerk],
        store: Store,
        config: PoCConfig,
        a_second_later: Callable[[], Any],
    ) -> None:
        """Given a result backend that went away in the middle, then nobody is left out."""

        class Once(KeptTickets):
            """Fails with the second report."""

            def progress(self, task: str, state: dict[str, Any], among: str) -> None:
                super().progress(task, state, among)
                if len(self.reports) == 2:
                    raise StoreUnavailable("away")

        for job in ("v1", "v2", "v3"):
            store.validations.open(
                job, ValidateRequest(batch=ProofBatch.of(config, [1], [0.5]), config=config)
            )
        sink = Once()
        reporting = new_clerk(sink)
        with pytest.raises(StoreUnavailable):
            reporting.turn()
        a_second_later()
        reporting.turn()
        assert [task for task, _ in sink.reports[2:]] == ["v1", "v2", "v3"]


def test_it_waits_for_news(store: Store, sink: KeptTickets) -> None:
    """When all is done, and not for longer than until the next report."""
    bell: Any = Silence()
    Clerk(store, sink, bell).turn()
    assert bell.waits == [clerk.REPORT_EVERY_S]


def test_a_redis_that_is_away_passes(new_clerk: Callable[..., Clerk], away: Away) -> None:
    """The thread that repeats the turn knows what to do."""
    with away(), pytest.raises(StoreUnavailable):
        new_clerk().turn()
