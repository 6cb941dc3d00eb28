"""Defects on purpose: each must make a run fail, or the run proves nothing."""

from __future__ import annotations

from collections.abc import Callable

import redis

from shared.store.keys import Keys


def _count_twice(direct: redis.Redis, keys: Keys, round_id: str) -> bool:
    batch = int(direct.hget(keys("round", round_id), "batch_size") or 0)
    for key in (keys("round", round_id), keys("status")):
        direct.hincrby(key, "total_checked", batch)
    return True


def _lose_a_nonce(direct: redis.Redis, keys: Keys, round_id: str) -> bool:
    nonce = direct.lpop(keys("found", round_id))
    if nonce is None:
        return False
    direct.hdel(keys("nonces", round_id), nonce)
    for key in (keys("round", round_id), keys("status")):
        direct.hincrby(key, "total_valid", -1)
    return True


def _find_twice(direct: redis.Redis, keys: Keys, round_id: str) -> bool:
    nonce = direct.lindex(keys("found", round_id), 0)
    return nonce is not None and bool(direct.rpush(keys("found", round_id), nonce))


def _wrong_distance(direct: redis.Redis, keys: Keys, round_id: str) -> bool:
    nonce = direct.lindex(keys("found", round_id), 0)
    if nonce is None:
        return False
    direct.hset(keys("nonces", round_id), nonce, "0.125")
    return True


def _skip_positions(direct: redis.Redis, keys: Keys, round_id: str) -> bool:
    batch = int(direct.hget(keys("round", round_id), "batch_size") or 0)
    direct.hincrby(keys("run", round_id), "cursor", batch)
    return True


def _drop_a_callback(direct: redis.Redis, keys: Keys, _: str) -> bool:
    entries = direct.xrange(keys("outbox"), count=1)
    return bool(entries) and bool(direct.xdel(keys("outbox"), entries[0][0]))


def _leave_a_key(direct: redis.Redis, keys: Keys, _: str) -> bool:
    return bool(direct.set(keys("tombstone", "left"), "1"))


def _forget_a_ticket(direct: redis.Redis, keys: Keys, round_id: str) -> bool:
    return direct.spop(keys("tickets", round_id)) is not None


#: Each is tried on the current round until it gives True.
SABOTAGE: dict[str, Callable[[redis.Redis, Keys, str], bool]] = {
    "count-twice": _count_twice,
    "lose-a-nonce": _lose_a_nonce,
    "find-twice": _find_twice,
    "wrong-distance": _wrong_distance,
    "skip-positions": _skip_positions,
    "drop-a-callback": _drop_a_callback,
    "leave-a-key": _leave_a_key,
    "forget-a-ticket": _forget_a_ticket,
}
