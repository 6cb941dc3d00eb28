"""A store on an empty Redis, and a clock to move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shared.config import PoCConfig
from shared.settings import load_settings
from shared.store import Store
from shared.store.connection import Client, connect
from shared.store.keys import Keys

NAMESPACE = "test"


@pytest.fixture
def redis(redis_url: str) -> Iterator[Client]:
    """A client of an empty Redis, for a look behind the curtain."""
    client = connect(load_settings({}, redis_url=redis_url))
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
