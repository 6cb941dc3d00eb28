"""What a worker took is put back when it works on it no more, and not before."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from shared.store import Store
from shared.store.connection import Client
from worker.queue.taken import Taken
from worker.queue.transport import TAKEN

ITEM = b"a command"
MESSAGE = {TAKEN: ITEM}


@pytest.fixture
def taken(store: Store, redis: Client) -> Taken:
    """Of a worker that has one command, and never waits between two looks."""
    redis.lpush(store.commands.taken_key("w"), ITEM)
    closing = threading.Event()
    closing.set()
    return Taken(store, "w", closing)


def waiting(redis: Client) -> list[str]:
    found: list[str] = redis.lrange("poc.test", 0, -1)
    return found


def test_what_is_worked_on_stays(taken: Taken, redis: Client) -> None:
    """For as long as it takes."""
    taken.begin(MESSAGE)
    for _ in range(3):
        taken.turn()
    assert waiting(redis) == []


def test_what_never_came_is_put_back(taken: Taken, redis: Client) -> None:
    """At the second look: at the first it may be on its way."""
    taken.turn()
    assert waiting(redis) == []
    taken.turn()
    assert waiting(redis) == [ITEM.decode()]


def test_what_came_after_the_first_look_stays(taken: Taken, redis: Client) -> None:
    taken.turn()
    taken.begin(MESSAGE)
    taken.turn()
    assert waiting(redis) == []


def test_what_is_done_is_gone(taken: Taken, redis: Client) -> None:
    taken.begin(MESSAGE)
    taken.end(MESSAGE)
    for _ in range(2):
        taken.turn()
    assert redis.keys("poc*") == []


def test_what_was_not_answered_is_put_back(taken: Taken, redis: Client) -> None:
    """It is carried out again, by its id: once in all."""
    taken.begin(MESSAGE)
    taken.end(MESSAGE, settled=False)
    for _ in range(2):
        taken.turn()
    assert waiting(redis) == [ITEM.decode()]


def test_what_could_not_be_settled_is_put_back(
    taken: Taken,
    redis: Client,
    away: Callable[[], AbstractContextManager[None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Redis was away at the end of the task: it will be carried out again, in vain."""
    taken.begin(MESSAGE)
    with away():
        taken.end(MESSAGE)
    assert "a command that was carried out comes again: Redis: " in caplog.text
    for _ in range(2):
        taken.turn()
    assert waiting(redis) == [ITEM.decode()]


def test_of_two_that_are_alike_one_may_go_on(taken: Taken, redis: Client) -> None:
    """A repeat of a message is the same bytes: the end of one is not the end of the other."""
    for _ in range(2):
        taken.begin(MESSAGE)
    taken.end(MESSAGE)
    redis.lpush("poc:test:taken:w", ITEM)
    for _ in range(2):
        taken.turn()
    assert waiting(redis) == []


def test_what_is_no_command_is_nothing_to_settle(taken: Taken) -> None:
    """A task that was called in this process came from no list."""
    taken.begin(None)
    taken.end({})
