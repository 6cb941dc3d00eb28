"""What a process may do is found out before it begins."""

from __future__ import annotations

import pytest

from shared.errors import StoreRefused
from shared.store import Store
from shared.store.connection import Client
from shared.store.keys import Keys


@pytest.mark.parametrize("queue", ["", "poc.test"])
def test_a_user_who_may_do_everything_has_access(store: Store, redis: Client, queue: str) -> None:
    """And nothing is changed by asking."""
    store.check_access(queue)
    assert redis.keys() == []


def test_a_worker_that_was_killed_with_a_command_in_hand_closes_no_door(
    store: Store, redis: Client, keys: Keys
) -> None:
    """What it took is left where it is."""
    redis.lpush(keys("taken", "w"), "message")
    store.check_access("poc.test")
    assert redis.lrange(keys("taken", "w"), 0, -1) == ["message"]


def test_a_user_who_may_not_consume_has_none(store: Store, redis: Client) -> None:
    """It is told, before it loads a model."""
    redis.acl_setuser("default", enabled=True, nopass=True, commands=["-blmove"])
    try:
        with pytest.raises(StoreRefused, match="blmove"):
            store.check_access("poc.test")
        store.check_access()  # which a sender never does
    finally:
        redis.acl_setuser("default", enabled=True, nopass=True, commands=["+blmove"])
