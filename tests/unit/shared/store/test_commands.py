"""A command that a worker took is in Redis until it is done, and does not end worker after worker.

`tests/functional/test_taken.py` has the same with real workers.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shared.errors import StoreFailed
from shared.store import Store
from shared.store.commands import GONE_MS, OF_THE_DEAD, OF_THE_LIVING, digest
from shared.store.connection import Client
from shared.store.dead_letters import KEEP_BYTES
from shared.store.keys import Keys

QUEUE = "poc.test"


@pytest.fixture
def taken(redis: Client, store: Store, keys: Keys) -> str:
    """The list of a live worker `w` that took one, two and then three."""
    beat(store, "w")
    key = store.commands.taken_key("w")
    redis.lpush(key, "one", "two", "three")
    return key


def beat(store: Store, worker: str) -> None:
    store.workers.heartbeat(worker, {"fingerprint": "f", "model": "m"}, {}, [])


def queue(redis: Client) -> list[str]:
    """What waits, in the order that it will be taken in."""
    waiting: list[str] = redis.lrange(QUEUE, 0, -1)
    return waiting[::-1]


def test_what_is_settled_is_gone(store: Store, redis: Client, taken: str) -> None:
    """And what is settled twice takes nothing else with it."""
    for _ in range(2):
        store.commands.settle("w", b"two")
        assert redis.lrange(taken, 0, -1) == ["three", "one"]


def test_only_what_is_idle_is_put_back(store: Store, redis: Client, taken: str) -> None:
    """The digests of the others come back."""
    left = store.commands.put_back("w", [digest(b"two"), digest(b"never taken")])
    assert queue(redis) == ["two"]
    assert sorted(left) == sorted([digest(b"one"), digest(b"three")])
    assert store.commands.put_back("w", []) == left


def test_any_bytes_can_be_put_back(store: Store, redis: Client, taken: str) -> None:
    """A command may be none: whoever takes it next sets it aside."""
    redis.lpush(taken, b"\xff\x00")
    store.commands.put_back("w", [digest(b"\xff\x00")])
    assert redis.lrange(QUEUE, 0, -1) == [b"\xff\x00".decode(errors="surrogateescape")]


def test_the_dead_worker_s_come_before_those_that_wait(
    store: Store, redis: Client, taken: str
) -> None:
    """In their old order, though its name is long out of the list of workers."""
    redis.lpush(QUEUE, "four")
    store.workers.leave("w")
    beat(store, "other")
    store.commands.put_back_of_the_dead()
    assert queue(redis) == ["one", "two", "three", "four"]


def test_what_comes_to_a_worker_as_it_goes_is_put_back(
    store: Store, redis: Client, taken: str, advance: Callable[[float], None]
) -> None:
    """It asked for the next command before it left; after a minute nothing can come any more."""
    store.workers.leave("w")
    for _ in range(2):
        store.commands.put_back_of_the_dead()
        redis.lpush(taken, "late")
    store.commands.put_back_of_the_dead()
    assert queue(redis).count("late") == 2
    assert redis.zrange("poc:test:takers", 0, -1) == ["w"]
    advance(GONE_MS / 1000 + 1)
    store.commands.put_back_of_the_dead()
    assert not redis.exists("poc:test:takers")


@pytest.mark.parametrize("key", ["put_back", "dead_letters", "queue"])
def test_a_command_is_not_lost_where_it_can_t_be_put_back(
    key: str, store: Store, redis: Client, keys: Keys, taken: str
) -> None:
    """A key of another type is in the way: once it is gone, all goes on."""
    name = keys(key, "test" if key == "queue" else "")
    redis.set(name, "in the way")
    item = digest(b"two")
    redis.hset(keys("put_back"), item, OF_THE_LIVING) if key == "dead_letters" else None
    with pytest.raises(StoreFailed):
        store.commands.put_back("w", [item])
    assert redis.lrange(taken, 0, -1) == ["three", "two", "one"]
    redis.delete(name)


def test_one_list_that_can_t_be_read_keeps_no_other_waiting(
    store: Store, redis: Client, keys: Keys, taken: str
) -> None:
    for worker in ("a", "w", "z"):
        beat(store, worker)
        store.workers.leave(worker)
    for worker in ("a", "z"):
        redis.set(keys("taken", worker), "in the way")
    with pytest.raises(StoreFailed):
        store.commands.put_back_of_the_dead()
    assert queue(redis) == ["one", "two", "three"]
    redis.delete(keys("taken", "a"), keys("taken", "z"))


def test_a_live_worker_s_stay(store: Store, redis: Client, taken: str) -> None:
    """Also where the list of workers has not heard of it lately."""
    redis.delete("poc:test:workers")
    store.commands.put_back_of_the_dead()
    assert queue(redis) == []
    assert redis.llen(taken) == 3


def test_a_worker_that_was_missed_in_vain_is_known_again(
    store: Store, redis: Client, keys: Keys, taken: str
) -> None:
    """It stood still, and goes on: what it takes from now on is found, too."""
    redis.delete("poc:test:workers", keys("worker", "w"))
    store.commands.put_back_of_the_dead()
    beat(store, "w")
    redis.lpush(taken, "later")
    store.workers.leave("w")
    store.commands.put_back_of_the_dead()
    assert queue(redis)[0] == "later"


@pytest.mark.parametrize("dies", [True, False])
def test_what_was_put_back_too_often_is_set_aside(
    dies: bool, store: Store, redis: Client, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be what ends workers, or breaks connections. A huge one is kept in part."""
    item = b"x" * (KEEP_BYTES + 1)
    most = OF_THE_DEAD if dies else OF_THE_LIVING
    for times in range(most + 1):
        assert not redis.exists(keys("dead_letters"))
        beat(store, "w")
        redis.lpush(keys("taken", "w"), item)
        if dies:
            store.workers.leave("w")
            store.commands.put_back_of_the_dead()
        else:
            store.commands.put_back("w", [digest(item)])
        assert redis.llen(QUEUE) == (times < most)
        redis.delete(QUEUE)
    assert redis.lrange(keys("dead_letters"), 0, -1) == ["x" * KEEP_BYTES]
    assert "1 commands that w took were put back again and again" in caplog.text
    assert not redis.exists(keys("put_back"))


def test_what_is_done_in_the_end_starts_anew(store: Store, redis: Client, keys: Keys) -> None:
    """A command that nobody can end is told from one that had bad luck."""
    beat(store, "w")
    redis.lpush(keys("taken", "w"), "one")
    store.commands.put_back("w", [digest(b"one")])
    assert redis.hgetall(keys("put_back")) == {digest(b"one"): "1"}
    store.commands.settle("w", b"one")
    assert not redis.exists(keys("put_back"))
