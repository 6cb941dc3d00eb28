"""Threads go on while Redis is away, and say so once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from shared.errors import EngineError, StoreUnavailable
from worker import outage as outage_module
from worker.node import threads
from worker.node.threads import Repeating
from worker.outage import Outage

GONE = StoreUnavailable("Redis: connection refused")


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage_module, "RETRY_S", 0.001)
    monkeypatch.setattr(threads, "RETRY_S", 0.001)
    monkeypatch.setattr(threads, "REST_S", 0.001)


@pytest.fixture
def outage() -> Outage:
    return Outage()


@pytest.fixture
def closing() -> threading.Event:
    return threading.Event()


class Turns:
    """Does what the script says, one a turn, then sets `closing`; None is a turn that is done."""

    def __init__(self, closing: threading.Event, *script: Exception | None) -> None:
        self._closing, self._script = closing, list(script)
        self.count = 0

    def __call__(self) -> int:
        self.count += 1
        outcome = self._script.pop(0)
        if not self._script:
            self._closing.set()
        if outcome:
            raise outcome
        return self.count


def levels(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.levelname for record in caplog.records]


class TestOutage:
    """One for all threads of a process."""

    def test_it_says_once_that_redis_is_away_and_once_that_it_is_back(
        self, outage: Outage, caplog: pytest.LogCaptureFixture
    ) -> None:
        """However many threads notice, and however often."""
        for _ in range(3):
            outage.seen(GONE)
        for _ in range(3):
            outage.over()
        went, came = [record.getMessage() for record in caplog.records]
        assert went == f"{GONE}: nothing is lost, trying again until it answers"
        assert came.startswith("Redis answers again, after ")
        assert levels(caplog) == ["WARNING", "WARNING"]

    def test_the_next_outage_is_said_as_well(
        self, outage: Outage, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(2):
            outage.seen(GONE)
            outage.over()
        assert len(caplog.records) == 4

    def test_a_redis_that_was_never_away_is_no_news(
        self, outage: Outage, caplog: pytest.LogCaptureFixture
    ) -> None:
        outage.over()
        assert caplog.records == []

    def test_threads_that_notice_together_say_it_once(
        self, outage: Outage, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Given eight at the same moment."""
        start = threading.Barrier(8)

        def notice() -> None:
            start.wait(10)
            outage.seen(GONE)
            start.wait(10)
            outage.over()

        noticing = [threading.Thread(target=notice) for _ in range(8)]
        for thread in noticing:
            thread.start()
        for thread in noticing:
            thread.join(10)
        assert len(caplog.records) == 2

    def test_it_is_over_when_all_who_saw_it_have_their_answer(
        self, outage: Outage, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Given a Redis that refuses writes, then an answer to who only reads is not its end."""
        outage.seen(GONE)

        def read() -> None:
            outage.seen(GONE)
            outage.over()

        reader = threading.Thread(target=read)
        reader.start()
        reader.join(10)
        assert len(caplog.records) == 1
        outage.over()
        assert "Redis answers again" in caplog.records[1].getMessage()


class TestInsist:
    """For whoever needs an answer now."""

    def test_it_gives_what_the_call_gives(
        self, outage: Outage, closing: threading.Event, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert outage.until_answered(lambda: 5, closing) == 5
        assert caplog.records == []

    def test_it_tries_again_until_redis_answers(
        self, outage: Outage, closing: threading.Event, caplog: pytest.LogCaptureFixture
    ) -> None:
        """And says it as everybody does."""
        turns = Turns(threading.Event(), GONE, GONE, GONE, None)
        assert outage.until_answered(turns, closing) == 4
        assert len(caplog.records) == 2

    def test_it_gives_up_when_the_worker_closes(
        self, outage: Outage, closing: threading.Event
    ) -> None:
        """Given a call that closes it with its second attempt, then there is no third."""
        turns = Turns(closing, GONE, GONE)
        with pytest.raises(StoreUnavailable, match="connection refused"):
            outage.until_answered(turns, closing)
        assert turns.count == 2

    def test_it_tries_once_while_the_worker_closes(
        self, outage: Outage, closing: threading.Event
    ) -> None:
        """An answer that is there is still given."""
        closing.set()
        assert outage.until_answered(lambda: 5, closing) == 5

    def test_it_gives_up_after_its_patience(self, outage: Outage, closing: threading.Event) -> None:
        """Not after the first attempt."""
        attempts = []

        def call() -> None:
            attempts.append(1)
            raise GONE

        with pytest.raises(StoreUnavailable):
            outage.until_answered(call, closing, for_s=0.05)
        assert len(attempts) > 1

    def test_any_other_error_is_an_answer(self, outage: Outage, closing: threading.Event) -> None:
        """It passes at once, and Redis has answered."""
        turns = Turns(threading.Event(), EngineError("no"), None)
        with pytest.raises(EngineError):
            outage.until_answered(turns, closing)
        assert turns.count == 1


class TestRepeating:
    """A thread's turns, one after another."""

    @pytest.fixture
    def run(self, outage: Outage, closing: threading.Event) -> Callable[..., Any]:
        """Runs a thread with these outcomes to its end; how often `turn` was called."""

        def run(
            *script: Exception | None, on_failure: Callable[[Exception], None] | None = None
        ) -> int:
            turns = Turns(closing, *script)
            thread = Repeating("test", turns, closing, outage, on_failure)
            thread.start()
            thread.join(30)
            assert not thread.is_alive()
            return turns.count

        return run

    def test_it_goes_on_until_it_is_told_to_end(
        self, run: Callable[..., int], caplog: pytest.LogCaptureFixture
    ) -> None:
        assert run(None, None, None) == 3
        assert caplog.records == []

    def test_it_does_not_begin_when_it_was_told_before(
        self, outage: Outage, closing: threading.Event
    ) -> None:
        closing.set()
        turns = Turns(closing, None)
        Repeating("test", turns, closing, outage).run()
        assert turns.count == 0

    def test_it_waits_for_redis(
        self, run: Callable[..., int], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Given two turns in vain, then both ends of the outage are said, and no failure is."""
        assert run(GONE, GONE, None, None, on_failure=lambda _: pytest.fail("it was none")) == 4
        assert levels(caplog) == ["WARNING", "WARNING"]

    def test_a_failure_ends_it_if_somebody_wants_to_know(
        self, run: Callable[..., int], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Once, and what we raise on purpose needs no traceback."""
        failures: list[Exception] = []
        error = EngineError("no device")
        assert run(None, error, None, on_failure=failures.append) == 2
        assert failures == [error]
        (record,) = caplog.records
        assert (record.levelname, record.getMessage()) == (
            "CRITICAL",
            "thread poc-test ends: no device",
        )
        assert not record.exc_info

    def test_without_that_it_rests_and_goes_on(
        self, run: Callable[..., int], caplog: pytest.LogCaptureFixture
    ) -> None:
        """What it does must not end with one failure."""
        assert run(EngineError("no device"), None, None) == 3
        (record,) = caplog.records
        assert (record.levelname, record.getMessage()) == (
            "ERROR",
            "thread poc-test failed and goes on: no device",
        )
        assert not record.exc_info

    @pytest.mark.parametrize("ends", [True, False])
    def test_a_defect_shows_its_traceback(
        self, ends: bool, run: Callable[..., int], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Whoever mends it needs to know where it is."""
        run(ZeroDivisionError("oh"), None, on_failure=(lambda _: None) if ends else None)
        (record,) = caplog.records
        assert record.exc_info
        assert record.exc_info[0] is ZeroDivisionError
        assert record.levelno == (logging.CRITICAL if ends else logging.ERROR)

    def test_its_rest_ends_with_the_worker(
        self, outage: Outage, closing: threading.Event, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Given a thread that rests for long, then closing ends it."""
        monkeypatch.setattr(threads, "REST_S", 60.0)
        failed = threading.Event()

        def fail() -> None:
            failed.set()
            raise EngineError("no")

        thread = Repeating("test", fail, closing, outage)
        thread.start()
        assert failed.wait(10)
        closing.set()
        thread.join(10)
        assert not thread.is_alive()

    def test_it_keeps_no_process_alive(self, outage: Outage, closing: threading.Event) -> None:
        """A worker that was told to end twice ends."""
        assert Repeating("test", lambda: None, closing, outage).daemon
