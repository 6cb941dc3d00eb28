"""Whose turn it is, and how long a receiver that fails is left alone."""

from __future__ import annotations

import logging
import random

import pytest

from shared.store import Entry
from worker.callbacks.attempt import Answer
from worker.callbacks.delivery import MAX_PAUSE_S, MAX_PER_RECEIVER, _Held, _Receiver, origin, pause


def test_pauses_double_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    assert [pause(n) for n in (1, 2, 3, 4)] == [0.5, 1, 2, 4]
    assert pause(100_000) == MAX_PAUSE_S


def test_pauses_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """At least half, so that jitter never makes it a hammer."""
    monkeypatch.setattr(random, "uniform", lambda low, high: low)
    assert [pause(n) for n in (1, 2)] == [0.25, 0.5]


def test_an_origin_shows_no_password() -> None:
    assert origin("https://me:p@ss@Host:8443/x@y") == "https://host:8443"
    assert origin("http://[::1]:9/generated") == "http://[::1]:9"


def held(id: str = "1-0", gives_up_at: float = 1000.0) -> _Held:
    return _Held(Entry(id, "http://h/generated", "key", "r1", gives_up_at), in_doubt=False)


def receiver(*waiting: _Held) -> _Receiver:
    made = _Receiver("http://h")
    for each in waiting:
        made.park(each, 0.0)
    return made


AGAIN = Answer("it answered 500", retry=True)
REFUSED = Answer("it answered 404")
UNTIMELY = Answer("it answered 503", retry=True, untimely=True)


def test_a_healthy_receiver_gets_a_few_requests_at_a_time() -> None:
    there = receiver(held())
    assert there.ready(0.0)
    there.requests = MAX_PER_RECEIVER
    assert not there.ready(0.0)


def test_a_failing_receiver_is_left_alone_then_tried_with_one() -> None:
    there = receiver(held())
    there.heard(AGAIN, now=10.0)
    assert not there.ready(10.0)
    assert there.ready(10.5)
    there.requests = 1
    assert not there.ready(10.5)


def test_requests_that_fail_together_are_one_failure() -> None:
    there = receiver()
    for _ in range(MAX_PER_RECEIVER):
        there.heard(AGAIN, now=10.0)
    assert there.failures == 1


def test_a_receiver_is_left_alone_as_long_as_it_asks() -> None:
    there = receiver(held())
    there.heard(Answer("it answered 429", retry=True, retry_after_s=20), now=10.0)
    assert not there.ready(29.9)
    assert there.ready(30.0)


@pytest.mark.parametrize("answer", [Answer(), REFUSED, UNTIMELY])
def test_a_receiver_that_answers_is_healthy_again(answer: Answer) -> None:
    there = receiver(held())
    there.heard(AGAIN, now=10.0)
    there.heard(answer, now=10.1)
    assert there.ready(10.1)


def test_a_message_that_failed_waits_behind_the_others() -> None:
    """One that its receiver can't stand does not block the row."""
    bad, good = held("1-0"), held("2-0")
    there = receiver()
    there.park(bad, 5.0)
    there.park(good, 0.0)
    assert there.take() is good
    assert not there.ready(4.9)
    assert there.ready(5.0)


def test_what_passed_its_deadline_is_found_while_nothing_is_tried() -> None:
    late, early = held("1-0", gives_up_at=50.0), held("2-0", gives_up_at=20.0)
    there = receiver(late, early)
    there.quiet_until = 100.0
    assert there.take_expired(19.9) == []
    assert there.take_expired(20.0) == [early]
    assert there.take() is late


def test_an_outage_is_one_line_and_its_end_another(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    there = receiver()
    for second in range(0, 500, 50):
        there.heard(AGAIN, now=float(second))
    there.heard(Answer(), now=500.0)
    there.heard(Answer(), now=501.0)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "http://h" in caplog.text
    assert "it answered 500" in caplog.text


def test_a_single_failure_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    there = receiver()
    there.heard(AGAIN, now=1.0)
    there.heard(Answer(), now=2.0)
    assert not caplog.records
