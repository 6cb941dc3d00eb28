"""All that can be seen of a node at a glance."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import pytest

from chunks import claim_chunk
from shared.config import PoCConfig
from shared.data import ProofBatch, ValidatedBatch
from shared.errors import CouldNotCompute
from shared.histogram import edge
from shared.overview import Bin, Sample, Totals
from shared.requests import GenerateRequest, StopRequest, ValidateRequest
from shared.status import Incident, RoundStatus
from shared.store import Computed, Message, Store, fresh_id
from shared.store.connection import Client
from shared.store.keys import Keys
from shared.store.overview import OUTCOMES
from shared.store.validations import KEEP_OUTCOMES
from support import changed

VOCAB = 1024


def generate(store: Store, config: PoCConfig) -> str:
    request = GenerateRequest(config=config, replace=True)
    return store.rounds.generate(fresh_id(), request).round_id


def commit(store: Store, worker: str = "w", message: Message | None = None) -> None:
    """A batch of two nonces, one of them valid."""
    claim = store.rounds.claim(worker, fresh_id())
    assert claim
    valid = [(claim.nonces[0], "0.5")]
    assert store.rounds.commit(claim, Computed(2, valid, message=message)) is None


def beat(store: Store, counted: tuple[str, dict[int, int]] | None = None) -> None:
    model = {"fingerprint": "f", "model": "m"}
    store.workers.heartbeat("w", model, {"vocab_size": str(VOCAB)}, [], counted=counted)


@pytest.fixture
def config(config: PoCConfig) -> PoCConfig:
    return config.model_copy(update={"batch_size": 2, "callback_url": "http://c"})


def test_a_node_where_nothing_ever_happened_has_an_overview(store: Store) -> None:
    seen = store.overview()
    assert (seen.namespace, seen.node.round_id) == ("test", "")
    assert seen.at > 0
    assert (seen.history, seen.histogram, seen.outcomes) == ([], [], [])
    assert seen.totals == Totals()
    assert (seen.queue_length, seen.outbox_length, seen.outbox_oldest_seconds) == (0, 0, 0)


def test_ages_are_right_after_the_clock_went_back(
    store: Store, config: PoCConfig, redis: Client, keys: Keys
) -> None:
    """Given an hour, then all times are of the scripts' clock, which did not."""
    generate(store, config)
    last = int(redis.hget(keys("clock"), "last") or 0)
    redis.hset(keys("clock"), "last", last + 3_600_000)
    beat(store)
    seen = store.overview()
    (worker,) = seen.node.workers
    assert 0 <= seen.at - worker.heartbeat_at < 60
    assert store.course(seen.node.round_id).at == pytest.approx(seen.at, abs=60)


@pytest.mark.parametrize("name", ["history", "histogram", "totals", "outcomes", "callbacks"])
def test_a_spoilt_key_that_only_viewers_need_ends_no_worker(
    store: Store, config: PoCConfig, redis: Client, keys: Keys, name: str
) -> None:
    """Given one that somebody else wrote, then rounds go on and end as ever."""
    round_id = generate(store, config)
    key = keys(name, round_id) if name in ("history", "histogram") else keys(name)
    redis.delete(key)
    redis.set(key, "by a stray hand")
    beat(store, (round_id, {0: 1}))
    commit(store)
    ended = store.rounds.stop(fresh_id(), StopRequest())
    assert (ended.state, ended.total_checked) == ("STOPPED", 2)
    assert store.endings.next() is not None
    beat(store)
    redis.delete(key)


def test_it_holds_the_status(store: Store, config: PoCConfig) -> None:
    round_id = generate(store, config)
    commit(store)
    beat(store)
    seen = store.overview(newest=5)
    assert seen.node == store.status(newest=5)
    assert seen.node.round_id == round_id
    assert seen.node.valid_nonces == [config.node_id]


class TestHistory:
    """The course of a round."""

    def test_heartbeats_take_a_sample_now_and_then(
        self, store: Store, config: PoCConfig, advance: Callable[[float], None]
    ) -> None:
        """Every two seconds at most."""
        generate(store, config)
        for checked in (2, 4, 6):
            commit(store)
            advance(1)
            beat(store)
            beat(store)
            assert store.rounds.status().total_checked == checked  # type: ignore[union-attr]
        advance(1)
        beat(store)
        found = store.overview().history
        assert [(each.checked, each.valid) for each in found] == [(4, 2), (6, 3)]
        assert found[1].at - found[0].at == pytest.approx(2, abs=0.5)

    def test_samples_become_rarer(
        self, store: Store, config: PoCConfig, advance: Callable[[float], None]
    ) -> None:
        """Given a day of heartbeats, a minute apart, then there are hundreds at most."""
        generate(store, config)
        for _ in range(24 * 60):
            advance(60)
            beat(store)
        found = store.overview().history
        assert 100 < len(found) < 500
        assert found[-1].at - found[-2].at > 600

    def test_the_end_is_in_it(
        self, store: Store, config: PoCConfig, advance: Callable[[float], None]
    ) -> None:
        """Once."""
        generate(store, config)
        advance(3)
        beat(store)
        commit(store)
        store.rounds.stop(fresh_id(), StopRequest())
        for _ in range(3):
            advance(3)
            beat(store)
        assert [each.checked for each in store.overview().history] == [0, 2]

    def test_a_new_round_begins_its_own(
        self, store: Store, config: PoCConfig, advance: Callable[[float], None]
    ) -> None:
        generate(store, config)
        commit(store)
        advance(3)
        beat(store)
        generate(store, config)
        assert store.overview().history == []
        commit(store)
        advance(3)
        beat(store)
        (sample,) = store.overview().history
        assert isinstance(sample, Sample)
        assert sample.checked == 2


class TestHistogram:
    """The distances of a round."""

    def test_bins_of_all_workers_add_up(self, store: Store, config: PoCConfig) -> None:
        """From the first that has some to the last."""
        round_id = generate(store, config)
        beat(store, (round_id, {-2: 3}))
        beat(store, (round_id, {-2: 1, 0: 5}))
        edges = [edge(number, VOCAB) for number in (-2, -1, 0, 1)]
        assert edges[2] == sqrt(2)
        assert store.overview().histogram == [
            Bin(low=edges[0], high=edges[1], nonces=4),
            Bin(low=edges[1], high=edges[2], nonces=0),
            Bin(low=edges[2], high=edges[3], nonces=5),
        ]

    def test_what_comes_late_of_an_earlier_round_is_left_out(
        self, store: Store, config: PoCConfig
    ) -> None:
        earlier = generate(store, config)
        generate(store, config)
        beat(store, (earlier, {0: 3}))
        assert store.overview().histogram == []


class TestTotals:
    """Counts that never shrink."""

    def test_nonces_of_all_rounds_are_in_them(self, store: Store, config: PoCConfig) -> None:
        """Those of the current round, too."""
        for rounds in range(3):
            generate(store, config)
            assert store.overview().totals.checked == 2 * rounds
            commit(store)
            totals = store.overview().totals
            assert (totals.checked, totals.valid) == (2 * rounds + 2, rounds + 1)
        assert totals.rounds == 2  # that ended

    def test_claims_of_the_dead_are_counted(
        self, store: Store, config: PoCConfig, advance: Callable[[float], None]
    ) -> None:
        """Not those that a live worker gave back."""
        generate(store, config)
        claim = store.rounds.claim("dead", fresh_id())
        assert claim
        advance(60)
        again = store.rounds.claim("w", fresh_id())
        assert again
        assert again.start == claim.start
        store.rounds.give_back(again)
        assert store.rounds.claim("w", fresh_id())
        assert store.overview().totals.taken_over == 1

    def test_deliveries_are_counted_and_refusals_by_their_reason(
        self, store: Store, config: PoCConfig
    ) -> None:
        round_id = generate(store, config)
        for _ in range(4):
            commit(store, message=Message("http://c", "{}", fresh_id(), round_id, 60))
        first, second, third, fourth = store.outbox.take("s", 10)
        store.outbox.settle(first)
        store.outbox.settle(second, "it answered 404", "status_404")
        store.outbox.settle(third, "it answered 404", "status_404")
        store.outbox.settle(fourth, "too late", "deadline")
        totals = store.overview().totals
        assert totals.delivered == 1
        assert totals.refused == {"status_404": 2, "deadline": 1}
        assert (store.rounds.status() or RoundStatus()).refusals == totals.refused

    def test_incidents_are_counted(self, store: Store) -> None:
        for _ in range(2):
            store.workers.report(Incident(worker="w", at=1.0, reason="it hung"))
        assert store.overview().totals.incidents == 2


class TestOutbox:
    """Callbacks that wait."""

    def test_it_says_how_many_wait_and_since_when(
        self, store: Store, config: PoCConfig, redis: Client, keys: Keys
    ) -> None:
        """As the last heartbeat saw it."""
        round_id = generate(store, config)
        redis.xadd(keys("outbox"), {"url": "http://c", "body": "", "key": "k"}, id="1000-0")
        commit(store, message=Message("http://c", "{}", fresh_id(), round_id, 60))
        beat(store)
        seen = store.overview()
        assert seen.outbox_length == store.callbacks().waiting == 2
        assert seen.outbox_oldest_seconds == pytest.approx(seen.at - 1)

    def test_why_it_waits_outlives_the_round(self, store: Store, config: PoCConfig) -> None:
        """The queue is the node's: a new round hides nothing. The next delivery ends it."""
        round_id = generate(store, config)
        for _ in range(2):
            commit(store, message=Message("http://c", "{}", fresh_id(), round_id, 60))
        first, second = store.outbox.take("s", 2)
        store.outbox.defer(first, "it answered 503")
        generate(store, config)
        assert store.overview().outbox_error == "tried again: it answered 503"
        store.outbox.settle(first)
        assert store.overview().outbox_error == ""
        store.outbox.settle(second, "it answered 404")
        assert store.overview().outbox_error == "it answered 404"

    def test_an_empty_one_has_no_age(self, store: Store, config: PoCConfig) -> None:
        round_id = generate(store, config)
        commit(store, message=Message("http://c", "{}", fresh_id(), round_id, 60))
        beat(store)
        (entry,) = store.outbox.take("s", 1)
        store.outbox.settle(entry)
        assert store.overview().outbox_oldest_seconds == 0


def test_commands_that_wait_are_counted(store: Store, redis: Client, keys: Keys) -> None:
    redis.lpush(keys("queue", "test"), "a", "b")
    assert store.overview().queue_length == 2


class TestOutcomes:
    """How validations ended."""

    def finish(
        self, store: Store, config: PoCConfig, task: str, dist: list[float] | None
    ) -> ValidatedBatch | None:
        """One of two nonces, with recomputed `dist` or none."""
        batch = ProofBatch.of(config, [1, 2], [0.5, 0.5])
        store.validations.open(task, ValidateRequest(batch=batch, config=config))
        chunk = claim_chunk(store, "w", fresh_id())
        assert chunk
        store.validations.commit(chunk, dist or [])
        done = store.validations.next_computed()
        assert done
        if dist is None:
            store.validations.finish(done, error=CouldNotCompute("2 of 2 nonces"))
            return None
        verdict = ValidatedBatch.judge(batch, dist, config)
        store.validations.finish(done, verdict)
        return verdict

    def test_they_are_shown_newest_first(self, store: Store, config: PoCConfig) -> None:
        """With their p-value, or with what stood in the way."""
        config = changed(config, r_target=1.0)
        self.finish(store, config, "honest", [0.5, 0.5])
        verdict = self.finish(store, config, "fraud", [1.9, 1.9])
        self.finish(store, config, "error", None)
        seen = store.overview()
        error, fraud, honest = seen.outcomes
        assert verdict
        assert [each.id for each in seen.outcomes] == ["error", "fraud", "honest"]
        assert (honest.n_invalid, honest.fraud_detected, honest.error) == (0, False, "")
        assert (fraud.n_invalid, fraud.nonces, fraud.fraud_detected) == (2, 2, True)
        assert fraud.probability_honest == verdict.probability_honest
        assert (error.probability_honest, error.error) == (None, "2 of 2 nonces")
        assert (fraud.public_key, fraud.block_hash) == (config.public_key, config.block_hash)
        assert 0 < honest.at <= fraud.at <= error.at <= seen.at + 1
        assert seen.totals.validations == {"honest": 1, "fraud": 1, "error": 1}

    def test_the_newest_are_kept(
        self, store: Store, config: PoCConfig, redis: Client, keys: Keys
    ) -> None:
        """Given more than are kept, then no more are shown, and all are counted."""
        for number in range(KEEP_OUTCOMES + 5):
            self.finish(store, config, f"j{number}", [0.5, 0.5])
        assert redis.xlen(keys("outcomes")) == KEEP_OUTCOMES
        seen = store.overview()
        assert seen.outcomes[0].id == f"j{KEEP_OUTCOMES + 4}"
        assert len(seen.outcomes) == OUTCOMES
        assert seen.totals.validations == {"honest": KEEP_OUTCOMES + 5}

    def test_one_that_nobody_can_read_hides_no_other(
        self, store: Store, config: PoCConfig, redis: Client, keys: Keys
    ) -> None:
        redis.xadd(keys("outcomes"), {"summary": "no JSON"}, id="1-0")
        self.finish(store, config, "j", [0.5, 0.5])
        assert [each.id for each in store.overview().outcomes] == ["j"]
