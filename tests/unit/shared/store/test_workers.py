"""The workers that live, and the one model that they may have."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shared.errors import ModelMismatch
from shared.keys import Keys
from shared.store import Store
from shared.store.scripts import Client


def beat(store: Store, worker: str = "w", fingerprint: str = "f", **fields: str) -> None:
    """A heartbeat of a worker that computes nothing."""
    store.rounds.heartbeat(worker, {"fingerprint": fingerprint, "model": "m"}, fields, [])


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


def test_the_clock_of_this_machine_is_compared(store: Store) -> None:
    """Here both are the same clock."""
    assert abs(store.workers.clock_skew()) < 5
