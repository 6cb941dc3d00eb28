"""Callbacks wait in Redis until one sender settled them, once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from shared.config import PoCConfig
from shared.requests import GenerateRequest, InitRequest
from shared.status import RoundStatus
from shared.store import Computed, Entry, Message, Store
from shared.store.connection import Client
from shared.store.keys import Keys
from shared.store.outbox import GROUP
from support import wait_until

#: The shortest lease there is. Senders' leases are kept by Redis itself: no test moves its clock.
SOON = 0.5


@pytest.fixture
def post(store: Store, config: PoCConfig) -> Callable[..., None]:
    """Commits a batch whose callback has a body, in the round `r1`."""
    store.rounds.generate("g", GenerateRequest(config=config, round_id="r1"))

    def post(body: str, deadline_s: float = 60) -> None:
        claim = store.rounds.claim("w", body)
        assert claim
        message = Message("http://c/generated", body, f"r1:{body}", "r1", deadline_s)
        assert store.rounds.commit(claim, Computed(claim.count, [], message=message)) is None

    return post


@pytest.fixture
def hasty(new_store: Callable[..., Store]) -> Store:
    """A store whose leases end soon."""
    return new_store(lease_s=SOON, heartbeat_s=0.1)


def bodies(store: Store, entries: list[Entry]) -> list[str | None]:
    return [store.outbox.body(entry.id) for entry in entries]


def status(store: Store, round_id: str | None = None) -> RoundStatus:
    found = store.rounds.status(round_id)
    assert found
    return found


def counters(found: RoundStatus) -> tuple[int, int, int]:
    return (found.callbacks_pending, found.callbacks_delivered, found.callbacks_refused)


def test_an_empty_outbox_gives_nothing(store: Store) -> None:
    """Also before anything was ever posted."""
    assert store.outbox.take_over("s", 10) == []
    assert store.outbox.take("s", 10) == []
    assert store.outbox.waiting() == 0


def test_each_entry_goes_to_one_sender_oldest_first(
    store: Store, post: Callable[..., None]
) -> None:
    """Those that were posted before the first sender came, too."""
    for body in ("a", "b", "c"):
        post(body)
    first, second = store.outbox.take("s1", 2), store.outbox.take("s2", 2)
    assert (bodies(store, first), bodies(store, second)) == (["a", "b"], ["c"])
    assert store.outbox.take("s1", 2) == []


def test_an_entry_is_what_was_posted(store: Store, post: Callable[..., None]) -> None:
    """With its deadline on this process' clock."""
    post("a", deadline_s=60)
    (entry,) = store.outbox.take("s", 1)
    assert (entry.url, entry.key, entry.round) == ("http://c/generated", "r1:a", "r1")
    assert 59 < entry.gives_up_at - time.monotonic() <= 60


def test_settling_counts_once(
    store: Store, post: Callable[..., None], redis: Client, keys: Keys
) -> None:
    """Given two senders that settle the same entry, the second changes nothing."""
    post("a")
    post("b")
    delivered, refused = store.outbox.take("s", 2)
    store.outbox.settle(delivered)
    store.outbox.settle(delivered, error="late")
    store.outbox.settle(refused, error="410 Gone")
    assert store.outbox.waiting() == 0
    assert redis.xpending(keys("outbox"), GROUP)["pending"] == 0
    assert store.outbox.body(delivered.id) is None
    for found in (status(store), status(store, "r1")):
        assert (counters(found), found.callback_error) == ((0, 1, 1), "410 Gone")


def test_what_is_tried_again_says_why_until_it_is_delivered(
    store: Store, post: Callable[..., None]
) -> None:
    """A receiver that is down is more than a count."""
    post("a")
    (entry,) = store.outbox.take("s", 1)
    store.outbox.defer(entry, "http://c: it answered 503")
    for found in (status(store), status(store, "r1")):
        assert found.callback_error == "tried again: http://c: it answered 503"
        assert counters(found) == (1, 0, 0)
    store.outbox.settle(entry)
    assert status(store).callback_error == status(store, "r1").callback_error == ""
    store.outbox.defer(entry, "late: another sender has delivered it")
    assert status(store).callback_error == ""


def test_a_delivery_hides_no_refusal(store: Store, post: Callable[..., None]) -> None:
    """What was refused stays so."""
    post("a")
    post("b")
    refused, delivered = store.outbox.take("s", 2)
    store.outbox.settle(refused, error="410 Gone")
    store.outbox.settle(delivered)
    assert status(store).callback_error == "410 Gone"


def test_the_outbox_drains_after_a_stop(store: Store, post: Callable[..., None]) -> None:
    """A stopped round's delivery counters are all that changes."""
    post("a")
    stopped = store.rounds.stop("s")
    store.outbox.settle(*store.outbox.take("s", 1))
    settled = {"callbacks_pending": 0, "callbacks_delivered": 1}
    assert status(store) == stopped.model_copy(update=settled)


def test_an_old_round_counts_its_own(
    store: Store, post: Callable[..., None], config: PoCConfig
) -> None:
    """Not the round that came after it."""
    post("a")
    store.rounds.init("i", InitRequest(config=config, replace=True))
    store.outbox.settle(*store.outbox.take("s", 1))
    assert counters(status(store, "r1")) == (0, 1, 0)
    assert counters(status(store)) == (0, 0, 0)


def test_an_expired_round_does_not_come_back(
    store: Store, redis: Client, keys: Keys, post: Callable[..., None], config: PoCConfig
) -> None:
    """A hash without a time to live would stay for ever."""
    post("a")
    store.rounds.init("i", InitRequest(config=config, replace=True))
    redis.delete(*redis.keys(keys.prefix + "*:r1"))
    store.outbox.settle(*store.outbox.take("s", 1))
    assert store.outbox.waiting() == 0
    assert status(store).callbacks_delivered == 0
    assert redis.keys(keys.prefix + "*:r1") == []


def test_entries_of_a_dead_sender_are_taken_over(hasty: Store, post: Callable[..., None]) -> None:
    """After a lease, by one other."""
    post("a")
    hasty.outbox.take("dead", 1)
    assert hasty.outbox.take_over("s1", 10) == []
    (entry,) = wait_until(lambda: hasty.outbox.take_over("s1", 10), description="the lease's end")
    assert hasty.outbox.body(entry.id) == "a"
    assert hasty.outbox.take_over("s2", 10) == []


def test_a_renewed_entry_stays_with_its_sender(hasty: Store, post: Callable[..., None]) -> None:
    """Given two entries of one sender that keeps only one, then only the other is taken over."""
    post("kept")
    post("lost")
    kept, lost = hasty.outbox.take("s1", 2)

    def taken_over() -> list[Entry]:
        hasty.outbox.renew("s1", [kept.id])
        return hasty.outbox.take_over("s2", 10)

    assert wait_until(taken_over, description="the lease's end")[0].id == lost.id


def test_renewing_what_was_settled_does_nothing(store: Store, post: Callable[..., None]) -> None:
    """The renewing thread may be a moment behind."""
    post("a")
    (entry,) = store.outbox.take("s", 1)
    store.outbox.settle(entry)
    store.outbox.renew("s", [entry.id])
    store.outbox.renew("s", [])
    assert store.outbox.waiting() == 0


def test_it_goes_on_after_redis_lost_everything(
    store: Store, redis: Client, config: PoCConfig, post: Callable[..., None]
) -> None:
    """The consumer group is made anew."""
    post("lost")
    store.outbox.take("s", 1)
    redis.flushall()
    assert store.outbox.take("s", 1) == []
    store.rounds.generate("g", GenerateRequest(config=config, round_id="r1"))
    post("new")
    assert bodies(store, store.outbox.take("s", 1)) == ["new"]


#: What is no callback.
STRAY: dict[str, dict[str, str]] = {
    "empty": {"a": "b"},
    "no deadline": {"url": "http://c", "body": "b", "key": "k", "round": ""},
    "bad deadline": {"url": "http://c", "body": "b", "key": "k", "round": "", "expires_at": "x"},
    "bad url": {"url": "http://[", "body": "b", "key": "k", "round": "", "expires_at": "1"},
    "no body": {"url": "http://c", "key": "k", "round": "", "expires_at": "1"},
    "far deadline": {"url": "u", "body": "b", "key": "k", "round": "", "expires_at": "9" * 400},
    "bytes": {"url": "u", "body": "\udcff", "key": "k", "round": "", "expires_at": "1"},
}


@pytest.mark.parametrize("name", STRAY)
def test_what_is_no_callback_is_set_aside(
    name: str, store: Store, post: Callable[..., None], redis: Client, keys: Keys
) -> None:
    """Given a stray entry before a callback, that is delivered and the entry can be looked at."""
    stray = redis.xadd(keys("outbox"), STRAY[name])
    post("b1")
    assert bodies(store, store.outbox.take("s", 10)) == ["b1"]
    assert store.outbox.waiting() == 1
    (kept,) = redis.lrange(keys("dead_letters"), 0, -1)
    assert json.loads(kept) == {"outbox": stray, **STRAY[name]}
    assert redis.xpending(keys("outbox"), GROUP)["pending"] == 1
