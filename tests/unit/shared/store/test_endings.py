"""Ends of tickets wait until somebody told them."""

from __future__ import annotations

import json

import pytest

from shared.config import PoCConfig, PoCState
from shared.errors import PoCError
from shared.requests import GenerateRequest, InitRequest
from shared.status import RoundStatus
from shared.store import Store
from shared.store.connection import Client
from shared.store.keys import Keys


def test_nothing_has_ended(store: Store) -> None:
    assert store.endings.next() is None


def test_an_end_stays_until_it_is_dropped(store: Store, config: PoCConfig) -> None:
    """Whoever dies while telling it leaves it to the next."""
    store.rounds.generate("g", GenerateRequest(config=config))
    store.rounds.stop("s")
    ending = store.endings.next()
    assert ending
    assert store.endings.next() == ending
    store.endings.drop(ending)
    store.endings.drop(ending)
    assert store.endings.next() is None


def test_a_rounds_end_holds_its_final_status(store: Store, config: PoCConfig) -> None:
    """Even if the next round has begun when it is told."""
    store.rounds.generate("g", GenerateRequest(config=config))
    stopped = store.rounds.stop("s")
    store.rounds.init("i", InitRequest(config=config))
    ending = store.endings.next()
    assert ending
    assert ending.round_fields
    assert RoundStatus.of(ending.round_fields) == stopped
    assert stopped.state is PoCState.STOPPED
    assert (ending.task, ending.verdict, ending.error) == ("g", None, None)


def test_ends_are_told_in_their_order(store: Store, config: PoCConfig) -> None:
    """Dropping one leaves the others."""
    for task in ("g1", "g2", "g3"):
        store.rounds.generate(task, GenerateRequest(config=config, replace=True))
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


#: What is no end of a ticket.
NO_ENDS = {
    "text": b"hello",
    "not UTF-8": b"\xff\x00",
    "a number": b"42",
    "null": b"null",
    "a list": b"[]",
    "deep nesting": b"[" * 100_000,
    "no task": b'{"status": {}}',
    "task is a number": b'{"task": 1}',
    "task is half a character": b'{"task": "\\ud800"}',
    "error is text": b'{"task": "g", "error": "broken"}',
    "error without a message": b'{"task": "g", "error": {"error": "RoundFailed"}}',
}


@pytest.mark.parametrize("name", NO_ENDS)
def test_what_is_no_end_is_set_aside(
    name: str, store: Store, redis: Client, keys: Keys, config: PoCConfig
) -> None:
    """Given a stray item before an end, that end is told and the item can be looked at."""
    redis.rpush(keys("endings"), NO_ENDS[name])
    store.rounds.generate("told", GenerateRequest(config=config))
    store.rounds.stop("s")
    ending = store.endings.next()
    assert ending
    assert ending.task == "told"
    assert store.dead_letters.head("dead_letters") == NO_ENDS[name]


def test_an_error_of_another_version_is_told_by_its_name(
    store: Store, redis: Client, keys: Keys
) -> None:
    """The ticket fails all the same, with a message that says with what."""
    error = {"error": "SomethingNew", "message": "it is new"}
    redis.rpush(keys("endings"), json.dumps({"task": "g", "error": error}))
    ending = store.endings.next()
    assert ending
    assert type(ending.error) is PoCError
    assert str(ending.error) == "SomethingNew: it is new"


@pytest.mark.parametrize("name", ["log", "PoC", "globals", "annotations"])
def test_only_errors_are_made_from_names(
    name: str, store: Store, redis: Client, keys: Keys
) -> None:
    """Whatever else the module holds is not called."""
    redis.rpush(
        keys("endings"), json.dumps({"task": "g", "error": {"error": name, "message": "m"}})
    )
    ending = store.endings.next()
    assert ending
    assert str(ending.error) == f"{name}: m"
