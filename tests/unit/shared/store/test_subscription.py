"""Who waits for work hears when there is some."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from chunks import claim_chunk
from shared.config import PoCConfig
from shared.data import ProofBatch
from shared.requests import GenerateRequest, InitRequest, ValidateRequest
from shared.store import Computed, Message, Store, Subscription
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
def test_a_change_of_the_round_wakes(
    store: Store, subscription: Subscription, config: PoCConfig, verb: str
) -> None:
    """Who waits hears it."""
    store.rounds.init("i", InitRequest(config=config))
    subscription.wait(LONG)
    getattr(store.rounds, verb)("c")
    assert subscription.wait(LONG)


Act = Callable[[], object]


def batch_given_back(store: Store, config: PoCConfig) -> Act:
    store.rounds.generate("g", GenerateRequest(config=config))
    claim = store.rounds.claim("w", "token")
    assert claim
    return lambda: store.rounds.give_back(claim)


def round_stopped(store: Store, config: PoCConfig) -> Act:
    store.rounds.generate("g", GenerateRequest(config=config))
    return lambda: store.rounds.stop("s")


def callback_kept(store: Store, config: PoCConfig) -> Act:
    store.rounds.generate("g", GenerateRequest(config=config, round_id="r1"))
    claim = store.rounds.claim("w", "token")
    assert claim
    message = Message("http://c/generated", "{}", "key", "r1", 60)
    return lambda: store.rounds.commit(claim, Computed(4, [], message=message))


def asked(config: PoCConfig, *nonces: int) -> ValidateRequest:
    return ValidateRequest(batch=ProofBatch.of(config, nonces, [0.5] * len(nonces)), config=config)


def validation_opened(store: Store, config: PoCConfig) -> Act:
    return lambda: store.validations.open("j", asked(config, 1))


def empty_validation_opened(store: Store, config: PoCConfig) -> Act:
    return lambda: store.validations.open("j", asked(config))


def last_chunk_computed(store: Store, config: PoCConfig) -> Act:
    store.validations.open("j", asked(config, 1))
    chunk = claim_chunk(store, "w", "token")
    assert chunk
    return lambda: store.validations.commit(chunk, [0.5])


@pytest.mark.parametrize(
    ("topic", "arrange"),
    [
        ("work", batch_given_back),
        ("work", validation_opened),
        ("verdicts", empty_validation_opened),
        ("verdicts", last_chunk_computed),
        ("endings", round_stopped),
        ("outbox", callback_kept),
    ],
)
def test_each_topic_wakes_who_waits_for_it(
    store: Store, config: PoCConfig, topic: str, arrange: Callable[[Store, PoCConfig], Act]
) -> None:
    """At once, not at the next look."""
    act = arrange(store, config)
    with closing(store.subscribe(topic)) as subscription:
        subscription.wait(LONG)
        wait_until(lambda: not subscription.wait(0.05), description="silence")
        act()
        assert subscription.wait(LONG)


def test_what_is_for_others_wakes_nobody(store: Store, redis: Client, keys: Keys) -> None:
    """A sender has no use for work."""
    with closing(store.subscribe("outbox", "endings")) as subscription:
        subscription.wait(LONG)
        redis.publish(keys.wake, "work")
        assert not subscription.wait(0.05)
        redis.publish(keys.wake, "endings")
        assert subscription.wait(LONG)


def test_it_wakes_a_thread_that_waits_already(
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
    """Given three messages, when they were heard, then the next wait is for a new one."""
    for _ in range(3):
        redis.publish(keys.wake, "work")
    # The last may be on its way while the first is heard.
    assert subscription.wait(LONG)
    wait_until(lambda: not subscription.wait(0.05), description="silence")


def test_namespaces_are_apart(subscription: Subscription, redis: Client) -> None:
    """Another node's work is none of ours."""
    redis.publish(Keys("other").wake, "work")
    assert not subscription.wait(0.05)


def test_a_closed_subscription_connects_again(
    subscription: Subscription, new_store: Callable[..., Store]
) -> None:
    """As after a lost connection."""
    subscription.close()
    subscription.close()
    assert subscription.wait(LONG)
    assert not subscription.wait(0.05)
