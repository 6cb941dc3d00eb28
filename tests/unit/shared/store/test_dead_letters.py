"""What nobody can read is kept for a while, not for ever."""

from __future__ import annotations

from shared.store import Store
from shared.store.connection import Client
from shared.store.dead_letters import KEEP_BYTES, KEEP_ITEMS, KEEP_S
from shared.store.keys import Keys


def keep(store: Store, item: bytes) -> None:
    with store.dead_letters.keeping(item, "a test", "it is none"):
        pass


def test_the_newest_comes_first(store: Store, redis: Client, keys: Keys) -> None:
    for item in (b"one", b"two"):
        keep(store, item)
    assert redis.lrange(keys("dead_letters"), 0, -1) == ["two", "one"]


def test_the_list_has_an_end(store: Store, redis: Client, keys: Keys) -> None:
    """In items, in the bytes of each, and in time."""
    for number in range(KEEP_ITEMS + 2):
        keep(store, b"%d" % number)
    kept = redis.lrange(keys("dead_letters"), 0, -1)
    assert (len(kept), kept[0], kept[-1]) == (KEEP_ITEMS, str(KEEP_ITEMS + 1), "2")
    keep(store, b"x" * (KEEP_BYTES + 1))
    assert len(redis.lindex(keys("dead_letters"), 0)) == KEEP_BYTES
    assert 0 < redis.ttl(keys("dead_letters")) <= KEEP_S
