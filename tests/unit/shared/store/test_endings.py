"""Ends of tickets wait until somebody told them."""

from __future__ import annotations

from shared.config import PoCConfig, PoCState
from shared.keys import Keys
from shared.status import RoundStatus
from shared.store import Store
from shared.store.scripts import Client


def test_nothing_has_ended(store: Store) -> None:
    assert store.endings.next() is None


def test_an_end_stays_until_it_is_dropped(store: Store, config: PoCConfig) -> None:
    """Whoever dies while telling it leaves it to the next."""
    store.rounds.generate("g", config)
    store.rounds.stop("s")
    ending = store.endings.next()
    assert ending
    assert store.endings.next() == ending
    store.endings.drop(ending)
    store.endings.drop(ending)
    assert store.endings.next() is None


def test_a_rounds_end_holds_its_final_status(store: Store, config: PoCConfig) -> None:
    """Even if the next round has begun when it is told."""
    store.rounds.generate("g", config)
    stopped = store.rounds.stop("s")
    store.rounds.init("i", config)
    ending = store.endings.next()
    assert ending
    assert ending.round_fields
    assert RoundStatus.of(ending.round_fields) == stopped
    assert stopped.state is PoCState.STOPPED
    assert (ending.task, ending.verdict, ending.error) == ("g", None, None)


def test_ends_are_told_in_their_order(store: Store, config: PoCConfig) -> None:
    """Dropping one leaves the others."""
    for task in ("g1", "g2", "g3"):
        store.rounds.generate(task, config, replace=True)
    store.rounds.stop("s")
    told = []
    while ending := store.endings.next():
        told.append(ending.task)
        store.endings.drop(ending)
    assert told == ["g1", "g2", "g3"]


def test_one_worker_at_a_time_reports_progress(store: Store, redis: Client, keys: Keys) -> None:
    """Until the interval is over."""
    assert store.endings.may_report(1.0)
    assert not store.endings.may_report(1.0)
    assert 0 < redis.pttl(keys("reporter")) <= 1000
    redis.delete(keys("reporter"))
    assert store.endings.may_report(1.0)
