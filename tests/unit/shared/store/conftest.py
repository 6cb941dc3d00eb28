"""A check of what every test of the store leaves in Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from shared.store.connection import Client
from shared.store.keys import KEYS, Keys

DAY = 86_400


@pytest.fixture
def key_problems(redis: Client, keys: Keys) -> Callable[[], list[str]]:
    """Finds the keys which `KEYS` does not know, or not of that type and life."""
    return lambda: [
        f"{key}: {problem}" for key in redis.scan_iter() if (problem := _problem(redis, keys, key))
    ]


@pytest.fixture(autouse=True)
def _keys_are_as_the_table_says(key_problems: Callable[[], list[str]]) -> Iterator[None]:
    """Fail a test that leaves a key which is not as the table says."""
    yield
    assert not key_problems()


def _problem(redis: Client, keys: Keys, key: str) -> str | None:
    name, _, of = key.removeprefix(keys.prefix).partition(":")
    if key == keys("queue", "test"):
        name, of = "queue", "test"
    if name not in KEYS or key != keys(name, of):
        return "not in the table"
    if (kind := redis.type(key)) != KEYS[name].kind:
        return f"is a {kind}, the table says {KEYS[name].kind}"
    longest = _LONGEST_LIFE[KEYS[name].lives](redis, keys, of)
    lives = redis.ttl(key)
    if longest is None and lives != -1:
        return f"expires in {lives} s"
    if longest is not None and not 0 <= lives <= longest:
        return f"expires in {lives} s (-1: never), the table says at most {longest} s"
    return None


def _of_a_round(redis: Client, keys: Keys, id: str) -> int | None:
    return None if redis.hget(keys("status"), "round_id") == id else DAY


def _of_the_current_round(redis: Client, keys: Keys, id: str) -> int | None:
    return None if redis.hget(keys("status"), "round_id") == id else -1


def _of_a_job(redis: Client, keys: Keys, id: str) -> int | None:
    return None if redis.hget(keys("job", id), "state") == "OPEN" else DAY


def _of_an_open_job(redis: Client, keys: Keys, id: str) -> int | None:
    return None if redis.hget(keys("job", id), "state") == "OPEN" else -1


def _at_most(seconds: int | None) -> Callable[[Client, Keys, str], int | None]:
    return lambda *_: seconds


#: What `Key.lives` says -> the most seconds to live that a key may have now; None: no end.
_LONGEST_LIFE: dict[str, Callable[[Client, Keys, str], int | None]] = {
    "as long as the namespace": _at_most(None),
    "until it is empty": _at_most(None),
    "while its round is current, then POC_KEEP_ROUNDS_S": _of_a_round,
    "while its round is current": _of_the_current_round,
    "while open, then POC_KEEP_ROUNDS_S": _of_a_job,
    "while its job is open": _of_an_open_job,
    "POC_COMMAND_MEMORY_S": _at_most(DAY),
    "30 s, or five heartbeats": _at_most(30),
    "a second": _at_most(1),
    "a day after the last": _at_most(DAY),
    "7 days after the last": _at_most(7 * DAY),
    "7 days after its last worker": _at_most(7 * DAY),
}
