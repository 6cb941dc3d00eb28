"""The checks of the harness can fail: each defect that is put in by hand breaks its invariant."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from fake_engine import FakeEngine
from faults import invariants
from faults.invariants import NAN_EVERY, Broken
from faults.journal import FAULT, Journal
from faults.receiver import Receiver
from faults.run import NAMESPACE
from faults.sabotage import SABOTAGE
from shared.config import PoCConfig
from shared.settings import Settings, load_settings
from shared.store import Store
from shared.store.keys import Keys
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
#: What the message says, beside the round: where to look.
SAYS = {
    "count-twice": "32 positions too many are counted: a batch counted twice",
    "lose-a-nonce": r"positions 0 on: missing \[\d+\]",
    "find-twice": r"found nonces twice: \['\d+'\]",
    "wrong-distance": r"positions 0 on: .*another distance \[\d+\]",
    "skip-positions": "32 positions are neither counted nor open, where at most 0 may be",
    "drop-a-callback": "1 callbacks count as pending, the outbox has 0 messages",
    "leave-a-key": "tombstone:left",
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
    assert re.search(SAYS[defect], caught.value.detail)
    assert played.round_id in caught.value.detail or defect == "leave-a-key"


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


def test_what_is_broken_names_its_round_s_past(tmp_path: Path) -> None:
    """Given a long journal, what is shown is the last faults, and what has to do with the round."""
    journal = Journal(tmp_path / "journal.log")
    journal.note("poc.generate 0d6e-1 sent to act7-beef")
    for n in range(100):
        journal.note(f"poc.stop 0d6e-{n + 2} sent to another")
        journal.note(f"{FAULT}w1-{n} killed")
    first, *faults = journal.about("round act7-beef: 32 positions are missing")
    assert "poc.generate 0d6e-1" in first
    assert [line.split(" ", 1)[1] for line in faults] == [
        f"fault: w1-{n} killed" for n in range(92, 100)
    ]
    assert len((tmp_path / "journal.log").read_text().splitlines()) == 201
    assert any("w1-3 killed" in line for line in journal.about("w1-3 ended with status 1"))
    assert not any("w1-30 " in line for line in journal.about("w1-3 ended with status 1"))


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


def test_a_defect_of_the_harness_is_told_with_its_traceback() -> None:
    broken = Broken("claims do not overlap", "they do")
    assert Broken.of(broken) is broken
    try:
        int("none")
    except ValueError as error:
        told = Broken.of(error)
    assert told.invariant == "the harness works"
    assert 'int("none")' in told.detail
