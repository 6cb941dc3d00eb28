"""Who waits for work hears when there is some."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from shared.config import PoCConfig
from shared.data import ProofBatch
from shared.requests import InitRequest, ValidateRequest
from shared.store import Store, Subscription
from shared.store.connection import Client
from shared.store.keys import Keys
from support import wait_until

#: Longer than any test needs, shorter than what ends one.
LONG = 20.0


@pytest.fixture
def subscription(store: Store) -> Iterator[Subscription]:
    """A subscription that is connected: the first wait returns at once."""
    subscription = store.subscribe()
    subscription.wait(LONG)
    yield subscription
    subscription.close()


@pytest.mark.parametrize("verb", ["generate", "stop"])
def test_a_change_of_the_round_rings(
    store: Store, subscription: Subscription, config: PoCConfig, verb: str
) -> None:
    """Who waits hears it."""
    store.rounds.init("i", InitRequest(config=config))
    subscription.wait(LONG)
    getattr(store.rounds, verb)("c")
    assert subscription.wait(LONG)


def test_a_validation_wakes(store: Store, subscription: Subscription, config: PoCConfig) -> None:
    store.validations.open(
        "j", ValidateRequest(batch=ProofBatch.of(config, [1], [0.5]), config=config)
    )
    assert subscription.wait(LONG)


def test_it_rings_in_a_thread_that_waits_already(
    store: Store, subscription: Subscription, config: PoCConfig
) -> None:
    """As the worker's loop does."""
    waiter = threading.Thread(target=subscription.wait, args=(LONG,), daemon=True)
    waiter.start()
    store.rounds.init("i", InitRequest(config=config))
    waiter.join(30)
    assert not waiter.is_alive()


def test_messages_that_came_together_are_one(
    subscription: Subscription, redis: Client, keys: Keys
) -> None:
    """Given three rings, when they were heard, then the next wait is for a new one."""
    for _ in range(3):
        redis.publish(keys.wake, "work")
    # The last may be on its way while the first is heard.
    assert subscription.wait(LONG)
    wait_until(lambda: not subscription.wait(0.05), description="silence")


def test_namespaces_are_apart(subscription: Subscription, redis: Client) -> None:
    """Another node's work is none of ours."""
    redis.publish(Keys("other").wake, "work")
    assert not subscription.wait(0.05)


def test_a_closed_bell_connects_again(
    subscription: Subscription, new_store: Callable[..., Store]
) -> None:
    """As after a lost connection."""
    subscription.close()
    subscription.close()
    assert subscription.wait(LONG)
    assert not subscription.wait(0.05)
