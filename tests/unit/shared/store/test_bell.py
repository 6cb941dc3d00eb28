"""Who waits for work hears when there is some."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from shared.config import PoCConfig
from shared.data import ProofBatch
from shared.store import Bell, Store
from shared.store.keys import Keys
from shared.store.scripts import Client
from support import wait_until

#: Longer than any test needs, shorter than what ends one.
LONG = 20.0


@pytest.fixture
def bell(store: Store) -> Iterator[Bell]:
    """A bell that is connected: the first wait returns at once."""
    bell = store.bell()
    bell.wait(LONG)
    yield bell
    bell.close()


@pytest.mark.parametrize("verb", ["generate", "stop"])
def test_a_change_of_the_round_rings(
    store: Store, bell: Bell, config: PoCConfig, verb: str
) -> None:
    """Who waits hears it."""
    store.rounds.init("i", config)
    bell.wait(LONG)
    getattr(store.rounds, verb)("c")
    assert bell.wait(LONG)


def test_a_validation_rings(store: Store, bell: Bell, config: PoCConfig) -> None:
    store.rounds.open_job("j", ProofBatch.of(config, [1], [0.5]), config)
    assert bell.wait(LONG)


def test_it_rings_in_a_thread_that_waits_already(
    store: Store, bell: Bell, config: PoCConfig
) -> None:
    """As the worker's loop does."""
    waiter = threading.Thread(target=bell.wait, args=(LONG,), daemon=True)
    waiter.start()
    store.rounds.init("i", config)
    waiter.join(30)
    assert not waiter.is_alive()


def test_rings_that_came_together_are_one(bell: Bell, redis: Client, keys: Keys) -> None:
    """Given three rings, when they were heard, then the next wait is for a new one."""
    for _ in range(3):
        redis.publish(keys.wake, "work")
    # The last may be on its way while the first is heard.
    assert bell.wait(LONG)
    wait_until(lambda: not bell.wait(0.05), description="silence")


def test_namespaces_ring_apart(bell: Bell, redis: Client) -> None:
    """Another node's work is none of ours."""
    redis.publish(Keys("other").wake, "work")
    assert not bell.wait(0.05)


def test_a_closed_bell_connects_again(bell: Bell, new_store: Callable[..., Store]) -> None:
    """As after a lost connection."""
    bell.close()
    bell.close()
    assert bell.wait(LONG)
    assert not bell.wait(0.05)
