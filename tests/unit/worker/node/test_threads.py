"""Threads go on while Redis is away, and say so once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from shared.errors import EngineError, StoreUnavailable
from turns import Turns, levels
from worker.node import threads
from worker.node.threads import Repeating
from worker.outage import Outage

GONE = StoreUnavailable("Redis: connection refused")


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "RETRY_S", 0.001)
    monkeypatch.setattr(threads, "REST_S", 0.001)


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
