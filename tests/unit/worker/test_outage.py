"""Redis goes away and comes back: the log says so once, and what waits for it has its answer."""

from __future__ import annotations

import asyncio
import threading

import pytest

from shared.errors import EngineError, StoreUnavailable
from support import Clock
from turns import Turns, levels
from worker import outage as outage_module
from worker.outage import Outage

GONE = StoreUnavailable("Redis: connection refused")
WHERE = "POC_REDIS_URL=redis://127.0.0.1:6379/0"


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage_module, "RETRY_S", 0.001)


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
        assert went == f"{GONE} ({WHERE}); nothing is lost, trying again until it answers"
        assert came.startswith("Redis answers again, after ")
        assert levels(caplog) == ["WARNING", "WARNING"]

    def test_a_long_one_is_said_again(
        self, outage: Outage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Every half a minute: that it waits, for what, since when, and which setting says so."""
        clock = Clock()
        monkeypatch.setattr(outage_module, "time", clock)
        for _ in range(181):
            outage.seen(GONE)
            clock.now += 0.5
        _, *again = [record.getMessage() for record in caplog.records]
        assert again == [
            f"still waiting for Redis, for {seconds} s now ({WHERE}): {GONE}"
            for seconds in (30, 60, 90)
        ]

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

    def test_each_task_of_a_thread_waits_for_its_own_answer(
        self, outage: Outage, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Given an answer from before the outage that its task reads later, then it goes on."""

        async def missed() -> None:
            outage.seen(GONE)
            await asyncio.sleep(0)
            assert outage.goes_on
            outage.over()

        async def answered_before() -> None:
            outage.over()

        async def both() -> None:
            await asyncio.gather(missed(), answered_before())

        asyncio.run(both())
        assert len(caplog.records) == 2
        assert not outage.goes_on

    def test_who_ends_waits_no_more(self, outage: Outage, caplog: pytest.LogCaptureFixture) -> None:
        """Nobody says that Redis answers again."""
        outage.seen(GONE)
        outage.left()
        assert not outage.goes_on
        assert len(caplog.records) == 1


class TestUntilAnswered:
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
