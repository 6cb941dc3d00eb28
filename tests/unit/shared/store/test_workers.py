"""The workers that live, and the one model that they may have."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shared.errors import ModelMismatch, NameTaken
from shared.status import Commit, Incident
from shared.store import Reference, Store
from shared.store.connection import Client
from shared.store.keys import Keys


def beat(store: Store, worker: str = "w", fingerprint: str = "f", **fields: str) -> None:
    """A heartbeat of a worker that computes nothing."""
    store.workers.heartbeat(worker, {"fingerprint": fingerprint, "model": "m"}, fields, [])


def names(store: Store) -> list[str]:
    return [worker.name for worker in store.workers.listing()]


def test_nobody_lives_before_the_first_heartbeat(store: Store, redis: Client, keys: Keys) -> None:
    assert store.workers.listing() == []
    assert redis.hgetall(keys("model")) == {}


def test_a_heartbeat_shows_a_worker(store: Store) -> None:
    """As it describes itself, with the time by Redis' clock."""
    beat(store, state="idle", device="cpu", pid="12", busy="0.5")
    (worker,) = store.workers.listing()
    assert (worker.name, worker.state, worker.device) == ("w", "idle", "cpu")
    assert (worker.pid, worker.busy) == (12, 0.5)
    assert worker.heartbeat_at > 0


def test_workers_are_listed_by_name(store: Store) -> None:
    for name in ("b", "c", "a"):
        beat(store, name)
    assert names(store) == ["a", "b", "c"]


def test_a_silent_worker_is_shown_no_more(
    store: Store, redis: Client, keys: Keys, advance: Callable[[float], None]
) -> None:
    """Its key expires, and the next heartbeat of another forgets its name."""
    beat(store, "dead")
    redis.delete(keys("worker", "dead"))  # as after 30 s
    assert names(store) == []
    advance(31)
    beat(store, "live")
    assert redis.zrange(keys("workers"), 0, -1) == ["live"]


def test_a_silent_worker_leaves_a_trace(
    store: Store, redis: Client, keys: Keys, advance: Callable[[float], None]
) -> None:
    """Once, with the time of its last heartbeat; one that left in order leaves none."""
    for name in ("dead", "left"):
        beat(store, name)
    (dead, _) = store.workers.listing()
    store.workers.leave("left")
    advance(31)
    for _ in range(2):
        beat(store, "live")
    (incident,) = store.workers.incidents()
    assert (incident.worker, incident.at) == ("dead", pytest.approx(dead.heartbeat_at, abs=0.01))
    assert "killed, or is cut off" in incident.reason
    assert redis.hget(keys("totals"), "incidents") == "1"


def test_an_outage_of_redis_is_told_of_nobody(
    store: Store, advance: Callable[[float], None]
) -> None:
    """All were silent; who does not come back before the next heartbeat is told of then."""
    for name in ("first", "second", "dead"):
        beat(store, name)
    advance(60)
    for name in ("first", "second"):
        beat(store, name)
    assert store.workers.incidents() == []
    beat(store, "first")
    assert [each.worker for each in store.workers.incidents()] == ["dead"]


def test_a_worker_that_had_to_end_is_told_of_once(
    store: Store, advance: Callable[[float], None]
) -> None:
    """By itself, though nobody heard of it afterwards."""
    beat(store, "hung")
    (hung,) = store.workers.listing()
    store.workers.report(Incident(worker="hung", at=hung.heartbeat_at + 1, reason="it hung"))
    advance(31)
    beat(store, "live")
    assert [each.reason for each in store.workers.incidents()] == ["it hung"]


def test_the_first_worker_says_which_model(store: Store, redis: Client, keys: Keys) -> None:
    """Another model is refused with the one that is wanted; the refused one is not shown."""
    beat(store, "first", "one")
    with pytest.raises(ModelMismatch, match=r"^one$"):
        beat(store, "second", "two")
    beat(store, "third", "one")
    assert redis.hgetall(keys("model")) == {"fingerprint": "one", "model": "m"}
    assert names(store) == ["first", "third"]


def test_a_pinned_model_is_the_only_one(
    new_store: Callable[..., Store], redis: Client, keys: Keys
) -> None:
    """Also for the first worker."""
    store = new_store(model_fingerprint="pinned")
    with pytest.raises(ModelMismatch, match=r"^pinned$"):
        beat(store, fingerprint="other")
    assert redis.hgetall(keys("model")) == {}
    beat(store, fingerprint="pinned")


def test_the_last_worker_to_leave_frees_the_model(store: Store, redis: Client, keys: Keys) -> None:
    """Not one before it."""
    beat(store, "a", "one")
    beat(store, "b", "one")
    store.workers.leave("a")
    with pytest.raises(ModelMismatch):
        beat(store, "c", "two")
    assert not redis.exists(keys("worker", "a"))
    store.workers.leave("b")
    assert names(store) == []
    beat(store, "c", "two")
    assert redis.hgetall(keys("model"))["fingerprint"] == "two"


def test_the_model_outlives_its_workers_for_their_life_only(
    store: Store, redis: Client, keys: Keys
) -> None:
    """Workers that were all killed don't hold the namespace."""
    beat(store)
    assert 0 < redis.ttl(keys("model")) <= 30
    assert 0 < redis.ttl(keys("worker", "w")) <= 30


class TestNames:
    """A name belongs to one process, for as long as that lives."""

    def beat(self, store: Store, instance: str, **more: bool) -> None:
        store.workers.heartbeat("w", {"fingerprint": "f"}, {}, [], (), instance, **more)

    def test_another_process_does_not_get_it(self, store: Store) -> None:
        """It is told when its holder was heard of last."""
        self.beat(store, "one")
        (holder,) = store.workers.listing()
        with pytest.raises(NameTaken) as taken:
            self.beat(store, "two")
        assert float(str(taken.value)) == holder.heartbeat_at
        self.beat(store, "one")

    def test_whoever_takes_it_over_has_it(self, store: Store) -> None:
        self.beat(store, "one")
        self.beat(store, "two", takes_over=True)
        with pytest.raises(NameTaken):
            self.beat(store, "one")
        self.beat(store, "two")

    def test_it_is_free_when_its_holder_left(self, store: Store) -> None:
        """And nobody else takes the holder off."""
        self.beat(store, "one")
        store.workers.leave("w", "two")
        assert names(store) == ["w"]
        store.workers.leave("w", "one")
        self.beat(store, "two")

    def test_it_is_free_when_its_holder_is_missed(
        self, store: Store, redis: Client, keys: Keys
    ) -> None:
        self.beat(store, "one")
        redis.delete(keys("worker", "w"))  # it has expired
        self.beat(store, "two")


def test_the_clock_of_this_machine_is_compared(store: Store) -> None:
    """Here both are the same clock."""
    assert abs(store.workers.clock_skew()) < 5


class TestReference:
    """What a model's first worker gave in its functional check, for all that come after it."""

    @staticmethod
    def beat(
        store: Store, worker: str, *distances: float, fingerprint: str = "f"
    ) -> Reference | None:
        model = {"fingerprint": fingerprint, "model": "m"}
        return store.workers.heartbeat(worker, model, {}, [], distances)

    def test_the_first_worker_sets_it(self, store: Store) -> None:
        """To the last bit; it stays as it is."""
        first = Reference((1.4109999999999998, 1e-17), "first")
        assert self.beat(store, "first", *first.distances) == first
        assert self.beat(store, "second", 1.5, 0.5) == first
        assert self.beat(store, "first", 0.1, 0.2) == first

    def test_a_worker_without_a_check_only_learns_it(self, store: Store) -> None:
        """For managers without one."""
        assert self.beat(store, "w") is None
        self.beat(store, "w", 1.0)
        assert self.beat(store, "w") == Reference((1.0,), "w")

    def test_it_outlives_its_worker(self, store: Store, redis: Client, keys: Keys) -> None:
        """So that a lone worker is not the judge of itself when it comes back."""
        self.beat(store, "w", 1.0)
        store.workers.leave("w")
        assert self.beat(store, "again", 2.0) == Reference((1.0,), "w")
        assert 6 * 86_400 < redis.ttl(keys("reference", "f")) <= 7 * 86_400

    def test_each_model_has_its_own(self, store: Store) -> None:
        """Given a namespace that changes its model."""
        self.beat(store, "w", 1.0)
        store.workers.leave("w")
        assert self.beat(store, "w", 2.0, fingerprint="g") == Reference((2.0,), "w")

    def test_a_worker_that_is_refused_sets_none(self, store: Store) -> None:
        """Given another model than the namespace's."""
        self.beat(store, "w", 1.0)
        with pytest.raises(ModelMismatch):
            self.beat(store, "other", 2.0, fingerprint="g")
        store.workers.leave("w")
        assert self.beat(store, "third", 3.0, fingerprint="g") == Reference((3.0,), "third")


class TestIncidents:
    """Workers that had to end."""

    @staticmethod
    def incident(number: int = 0) -> Incident:
        commit = Commit(
            round_id="r", start=0, count=4, first_nonce=2**62, last_nonce=2**62 + 3, at=4.5
        )
        return Incident(worker=f"w{number}", at=5.5, reason="it hung", commits=[commit], in_doubt=4)

    def test_the_newest_comes_first(self, store: Store) -> None:
        """As it was reported."""
        assert store.workers.incidents() == []
        for number in range(3):
            store.workers.report(self.incident(number))
        assert store.workers.incidents() == [self.incident(number) for number in (2, 1, 0)]
        assert store.status().incidents == store.workers.incidents()

    def test_one_that_nobody_can_read_hides_no_other(
        self, store: Store, redis: Client, keys: Keys
    ) -> None:
        """Another version or a stray hand may have written it."""
        store.workers.report(self.incident())
        redis.lpush(keys("incidents"), "{}", "no JSON")
        assert store.status().incidents == [self.incident()]

    def test_the_list_does_not_grow_without_end(
        self, store: Store, redis: Client, keys: Keys
    ) -> None:
        """A hundred are kept, ten are shown, and all go a week after the last."""
        for number in range(105):
            store.workers.report(self.incident(number))
        assert len(store.workers.incidents(1000)) == 100
        shown = store.workers.incidents()
        assert [each.worker for each in shown] == [f"w{number}" for number in range(104, 94, -1)]
        assert 0 < redis.ttl(keys("incidents")) <= 7 * 86_400
