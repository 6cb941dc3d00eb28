"""The checks of the harness can fail: each defect that is put in by hand breaks its invariant."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import redis

from fake_engine import FakeEngine
from faults import invariants
from faults.invariants import NAN_EVERY, Broken
from faults.receiver import Receiver
from faults.run import NAMESPACE
from faults.sabotage import SABOTAGE
from shared.config import PoCConfig
from shared.keys import Keys
from shared.settings import Settings, load_settings
from shared.store import Store
from support import wait_until
from worker.manager import PoCManager
from worker.sender import PoCCallbackSender

pytestmark = pytest.mark.functional

#: What notices each defect.
NOTICED_BY = {
    "count-twice": "total_checked and total_valid equal a recount",
    "lose-a-nonce": "every valid nonce is there with the engine's distance",
    "find-twice": "each nonce is counted once",
    "wrong-distance": "every valid nonce is there with the engine's distance",
    "skip-positions": "total_checked and total_valid equal a recount",
    "drop-a-callback": "every callback is delivered at least once",
    "leave-a-key": "no key is left without owner or time to live",
}


@dataclass
class Played:
    """A round that was stopped with one batch under way, and its callbacks."""

    settings: Settings
    store: Store
    receiver: Receiver
    direct: redis.Redis
    round_id: str
    keys: Keys

    def deliver(self) -> None:
        """Let the outbox drain."""
        sender = PoCCallbackSender(self.store, "sender", self.settings)
        stop = threading.Event()
        thread = threading.Thread(target=sender.run, args=(stop,))
        thread.start()
        wait_until(lambda: self.store.outbox.waiting() == 0, description="the outbox to drain")
        stop.set()
        thread.join()

    def check(self) -> None:
        """All that is checked of a round."""
        recount = invariants.check_round(self.direct, self.keys, self.round_id)
        assert recount
        got = self.receiver.got("/round/generated")
        invariants.check_callbacks(self.direct, self.keys, recount, got, set(), nothing_lost=True)
        invariants.check_keys(self.direct, NAMESPACE, self.settings.queue)


@pytest.fixture
def played(redis_url: str) -> Iterator[Played]:
    """Ten batches of a round that is checked and found exact."""
    settings = load_settings({}, redis_url=redis_url, namespace=NAMESPACE)
    receiver = Receiver()
    engine = FakeEngine(nan=NAN_EVERY)
    with (
        contextlib.closing(Store(settings)) as store,
        contextlib.closing(redis.Redis.from_url(redis_url, decode_responses=True)) as direct,
        contextlib.closing(receiver),
        contextlib.closing(engine),
    ):
        manager = PoCManager(engine, store)
        config = PoCConfig(
            block_hash="b",
            block_height=1,
            public_key="k",
            r_target=1.0,
            callback_url=receiver.url("round"),
        )
        round_id = manager.start_generate(config).round_id
        for _ in range(10):
            manager.run_batch()
        manager.get_next_nonces()
        manager.stop_round()
        direct.delete(Keys(NAMESPACE)("endings"))  # there is no clerk here
        yield Played(settings, store, receiver, direct, round_id, Keys(NAMESPACE))


def test_an_exact_round_passes(played: Played) -> None:
    """Given no defect, nothing is said to be broken."""
    played.deliver()
    played.check()


@pytest.mark.parametrize("defect", sorted(NOTICED_BY))
def test_a_defect_is_noticed(defect: str, played: Played) -> None:
    """Given one defect, the invariant that forbids it is broken."""
    assert SABOTAGE[defect](played.direct, played.keys, played.round_id)
    played.deliver()
    with pytest.raises(Broken) as caught:
        played.check()
    assert caught.value.invariant == NOTICED_BY[defect]


@pytest.mark.parametrize("field", ["state", "total_checked", "updated_at"])
def test_a_change_after_the_end_is_noticed(field: str, played: Played) -> None:
    """Given a round that is over, any field but those of its deliveries must stay."""
    before = invariants.picture(played.direct, played.keys, played.round_id)
    assert before
    played.deliver()
    after = invariants.picture(played.direct, played.keys, played.round_id)
    assert after
    invariants.check_same(before, after, played.round_id, "after deliveries")
    with pytest.raises(Broken, match=field):
        invariants.check_same(before, after | {field: "other"}, played.round_id, "later")


def test_a_repeat_with_another_body_is_noticed(played: Played) -> None:
    """Given two bodies under one key, a receiver could not tell the repeat from news."""
    played.deliver()
    key, received = next(iter(played.receiver.got("/round/generated").items()))
    played.receiver.take("/round/generated", key, received.raw)
    played.check()
    played.receiver.take("/round/generated", key, received.raw + b" ")
    with pytest.raises(Broken, match="a repeat has the same body"):
        played.check()


def test_news_under_two_keys_is_noticed(played: Played) -> None:
    """Given the same nonces under another key, they would count twice."""
    played.deliver()
    received = next(iter(played.receiver.got("/round/generated").values()))
    played.receiver.take("/round/generated", "another", received.raw)
    with pytest.raises(Broken):
        played.check()
