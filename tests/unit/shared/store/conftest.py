"""A store on fakeredis and on a real server, a clock to move, and a check of what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import fakeredis
import pytest

from shared.config import PoCConfig
from shared.keys import KEYS, Keys
from shared.settings import load_settings
from shared.store import Store
from shared.store.scripts import Client, connect

NAMESPACE = "test"
DAY = 86_400


@pytest.fixture(params=["fakeredis", pytest.param("real", marks=pytest.mark.functional)])
def redis(request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client of an empty Redis, for a look behind the curtain."""
    if request.param == "real":
        url = request.getfixturevalue("redis_url")
        client = connect(load_settings({}, redis_url=url))
    else:
        client = fakeredis.FakeRedis(server=fakeredis.FakeServer(), decode_responses=True)
    yield client
    client.close()


@pytest.fixture
def keys() -> Keys:
    """The names of the keys of the tests' namespace."""
    return Keys(NAMESPACE)


@pytest.fixture
def new_store(redis: Client) -> Callable[..., Store]:
    """Makes one more store on the same Redis, as another process would: `new_store(lease_s=5)`."""

    def new(**settings: Any) -> Store:
        return Store(load_settings({}, namespace=NAMESPACE, **settings), redis)

    return new


@pytest.fixture
def store(new_store: Callable[..., Store]) -> Store:
    """A store with the default settings."""
    return new_store()


@pytest.fixture
def config() -> PoCConfig:
    """The config of a lone node with batches of four."""
    return PoCConfig(
        block_hash="b10c", block_height=7, public_key="node", r_target=1.4, batch_size=4
    )


@pytest.fixture
def advance(redis: Client, keys: Keys) -> Callable[[float], None]:
    """Moves the scripts' clock ahead by some seconds; times to live don't see it."""
    return lambda seconds: redis.hincrby(keys("clock"), "offset", round(seconds * 1000))


@pytest.fixture(autouse=True)
def _keys_are_as_the_table_says(redis: Client, keys: Keys) -> Iterator[None]:
    """Fail a test that leaves a key which `KEYS` does not know, or not of that type and life."""
    yield
    wrong = [
        f"{key}: {problem}" for key in redis.scan_iter() if (problem := _problem(redis, keys, key))
    ]
    assert not wrong


def _problem(redis: Client, keys: Keys, key: str) -> str | None:
    name, _, of = key.removeprefix(keys.prefix).partition(":")
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
    "7 days": _at_most(7 * DAY),
}
