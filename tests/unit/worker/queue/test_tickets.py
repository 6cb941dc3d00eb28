"""Tickets in Celery's result backend: an end is final, and Flower hears of it all."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from celery import Celery

from exactness import ALL_VALID
from shared.broker import celery_app
from shared.data import ProofBatch
from shared.errors import CouldNotCompute, RoundFailed, StoreUnavailable
from shared.requests import GenerateRequest, ValidateRequest
from shared.settings import Settings, load_settings
from shared.store import Store
from support import wait_until
from worker.queue.tickets import CeleryTickets

END = Callable[[CeleryTickets], None]
Heard = Callable[[], list[dict[str, Any]]]

#: The round that the tickets of these tests are of, and where they are noted.
OPEN = "r1"
TICKETS = "poc:test:tickets:r1"
#: Everything that ends a task.
ENDS: dict[str, END] = {
    "SUCCESS": lambda sink: sink.succeeded("t", {"by": "another"}),
    "FAILURE": lambda sink: sink.failed("t", CouldNotCompute("by another")),
}


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return load_settings({}, redis_url=redis_url, namespace="test")


@pytest.fixture
def direct(redis_url: str) -> Iterator[redis.Redis]:
    """A look at what is stored."""
    with contextlib.closing(redis.Redis.from_url(redis_url, decode_responses=True)) as client:
        yield client


@pytest.fixture
def new_app(settings: Settings) -> Iterator[Callable[..., Celery]]:
    """Makes applications that are closed after the test."""
    made: list[Celery] = []

    def new(settings: Settings = settings) -> Celery:
        results = f"worker.queue.results:Results+{settings.redis_url}"
        made.append(celery_app(settings, result_backend=results))
        return made[-1]

    yield new
    for app in made:
        app.close()


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    with contextlib.closing(Store(settings)) as store:
        yield store


@pytest.fixture
def sink(new_app: Callable[..., Celery], store: Store, direct: Any) -> CeleryTickets:
    """For the tasks that these tests name, all of them open."""
    direct.sadd(TICKETS, "t", "u", *(f"t{i}" for i in range(200)))
    return CeleryTickets(new_app(), store, "w@test")


def meta(direct: Any, task: str = "t") -> dict[str, Any]:
    """What whoever reads the task's key sees."""
    found: dict[str, Any] = json.loads(direct.get(f"celery-task-meta-{task}"))
    return found


class TestState:
    """What callers poll."""

    def test_progress_is_no_end(self, sink: CeleryTickets, direct: Any) -> None:
        """It has a state of its own and no date; the last report counts."""
        sink.progress("t", {"done": 1}, OPEN)
        sink.progress("t", {"done": 2}, OPEN)
        now = meta(direct)
        assert (now["status"], now["result"], now["date_done"]) == ("PROGRESS", {"done": 2}, None)
        assert (now["task_id"], now["worker"]) == ("t", "w@test")

    def test_a_task_that_succeeded(
        self, sink: CeleryTickets, direct: Any, new_app: Callable[..., Celery]
    ) -> None:
        """Celery's own callers read it as any other result."""
        sink.progress("t", {"done": 1}, OPEN)
        sink.succeeded("t", {"state": "STOPPED"})
        result = new_app().AsyncResult("t")
        assert (result.state, result.result) == ("SUCCESS", {"state": "STOPPED"})
        assert result.date_done
        assert 86_300 < direct.ttl("celery-task-meta-t") <= 86_400

    def test_a_task_that_failed(self, sink: CeleryTickets, new_app: Callable[..., Celery]) -> None:
        """The error comes back as what it was."""
        sink.failed("t", RoundFailed("the round holds too much"))
        result = new_app().AsyncResult("t")
        assert result.state == "FAILURE"
        assert isinstance(result.result, RoundFailed)
        assert str(result.result) == "the round holds too much"

    def test_only_open_work_has_progress(self, sink: CeleryTickets, direct: Any) -> None:
        """What Redis has lost is unknown, so that its caller sends it again."""
        direct.delete(TICKETS)
        sink.progress("t", {"done": 1}, OPEN)
        direct.sadd(TICKETS, "u")
        sink.progress("t", {"done": 1}, OPEN)
        assert direct.get("celery-task-meta-t") is None
        sink.progress("u", {"done": 1}, OPEN)
        assert meta(direct, "u")["status"] == "PROGRESS"

    def test_work_that_redis_lost_is_not_open(
        self, sink: CeleryTickets, store: Store, direct: Any
    ) -> None:
        """Given a round and a validation that were taken on just before."""
        round_id = store.rounds.generate("g", GenerateRequest(config=ALL_VALID)).round_id
        store.validations.open("v", ValidateRequest(batch=ProofBatch.of(ALL_VALID, [1], [0.5])))
        open_in = {"g": round_id, "v": ""}
        for task in open_in:
            sink.progress(task, {}, open_in[task])
            assert meta(direct, task)["status"] == "PROGRESS"
        direct.flushdb()
        for task in open_in:
            sink.progress(task, {}, open_in[task])
            assert direct.get(f"celery-task-meta-{task}") is None

    def test_a_validation_is_no_ticket_of_a_round(
        self, sink: CeleryTickets, store: Store, direct: Any
    ) -> None:
        """Nor the other way round: each kind is looked for where it is kept."""
        round_id = store.rounds.generate("g", GenerateRequest(config=ALL_VALID)).round_id
        store.validations.open("v", ValidateRequest(batch=ProofBatch.of(ALL_VALID, [1], [0.5])))
        sink.progress("v", {}, round_id)
        sink.progress("g", {}, "")
        assert not direct.exists("celery-task-meta-v", "celery-task-meta-g")

    @pytest.mark.parametrize("end", ENDS)
    def test_progress_never_overwrites_an_end(
        self, end: str, sink: CeleryTickets, direct: Any
    ) -> None:
        """A late report of another worker is dropped."""
        direct.srem(TICKETS, "t")  # whatever ends a ticket takes it out in the same step
        ENDS[end](sink)
        before = meta(direct)
        sink.progress("t", {"done": 1}, OPEN)
        assert meta(direct) == before
        assert before["status"] == end

    @pytest.mark.parametrize("before", ["FAILURE", "REVOKED"])
    def test_what_is_open_after_all_is_shown(
        self, before: str, sink: CeleryTickets, direct: Any
    ) -> None:
        """Given a command that was refused, or too late, and was sent again under its id."""
        direct.set("celery-task-meta-t", json.dumps({"status": before}))
        sink.progress("t", {"done": 1}, OPEN)
        assert meta(direct)["status"] == "PROGRESS"
        sink.succeeded("t", {"by": "us"})
        assert meta(direct)["status"] == "SUCCESS"

    @pytest.mark.parametrize("end", ENDS)
    @pytest.mark.parametrize("second", ENDS)
    def test_a_second_end_changes_nothing(
        self, end: str, second: str, sink: CeleryTickets, direct: Any
    ) -> None:
        """The first one is what the caller may have acted on."""
        ENDS[end](sink)
        before = meta(direct)
        ENDS[second](sink)
        assert meta(direct) == before

    def test_a_task_that_was_revoked_stays_so(self, sink: CeleryTickets, direct: Any) -> None:
        """By whoever clicked on it in Flower."""
        direct.srem(TICKETS, "t")
        direct.set("celery-task-meta-t", json.dumps({"status": "REVOKED"}))
        sink.progress("t", {"done": 1}, OPEN)
        sink.succeeded("t", {})
        assert meta(direct)["status"] == "REVOKED"

    def test_of_many_ends_one_counts(
        self, sink: CeleryTickets, new_app: Callable[..., Celery], store: Store, direct: Any
    ) -> None:
        """Given workers that report and end at once, then the first end stays."""
        sinks = [sink, *(CeleryTickets(new_app(), store, f"w{i}") for i in range(3))]
        seen: list[Any] = []

        def tell(number: int) -> None:
            each = sinks[number % 4]
            each.progress("t", {"done": number}, OPEN)
            each.succeeded("t", {"by": number})
            seen.append(meta(direct)["result"])

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(tell, range(40)))
        assert seen == [seen[0]] * 40

    def test_who_waits_is_woken(self, sink: CeleryTickets, direct: Any) -> None:
        """Celery's `get` listens to the key's channel instead of polling."""
        listening = direct.pubsub()
        listening.subscribe("celery-task-meta-t")
        assert listening.get_message(timeout=10)["type"] == "subscribe"
        sink.succeeded("t", {"state": "STOPPED"})
        message = listening.get_message(timeout=10)
        listening.close()
        assert json.loads(message["data"]) == meta(direct)

    def test_a_result_backend_that_is_away_is_not_skipped(
        self, new_app: Callable[..., Celery]
    ) -> None:
        """The end must be told again."""
        settings = load_settings({}, redis_url="redis://127.0.0.1:1/0")
        with contextlib.closing(Store(settings)) as store:
            sink = CeleryTickets(new_app(settings), store, "w@test")
            with pytest.raises(StoreUnavailable):
                sink.succeeded("t", {})


class TestEvents:
    """What Flower shows."""

    @pytest.fixture
    def heard(self, direct: Any) -> Iterator[Heard]:
        """Gives every event so far."""
        events: list[dict[str, Any]] = []
        listening = direct.pubsub()
        listening.psubscribe("*celeryev*")
        assert listening.get_message(timeout=10)["type"] == "psubscribe"

        def heard() -> list[dict[str, Any]]:
            while message := listening.get_message(timeout=0.05):
                body = json.loads(message["data"])["body"]
                events.append(json.loads(base64.b64decode(body)))
            return events

        yield heard
        listening.close()

    def test_a_ticket_from_its_begin_to_its_end(self, sink: CeleryTickets, heard: Heard) -> None:
        """As if this worker had run the task."""
        sink.progress("t", {"done": 1}, OPEN)
        sink.succeeded("t", {"state": "STOPPED"})
        sink.failed("u", CouldNotCompute("no distance"))
        events = wait_until(lambda: len(heard()) == 3 and heard(), description="the events")
        assert [(event["type"], event["uuid"]) for event in events] == [
            ("task-progress", "t"),
            ("task-succeeded", "t"),
            ("task-failed", "u"),
        ]
        assert {event["hostname"] for event in events} == {"w@test"}
        assert events[0]["result"] == {"done": 1}
        assert events[1]["result"] == "{'state': 'STOPPED'}"
        assert events[2]["exception"] == "CouldNotCompute('no distance')"

    def test_an_end_is_told_again_and_a_late_report_is_not(
        self, sink: CeleryTickets, heard: Heard
    ) -> None:
        """Whoever stored the end may have been killed before the event."""
        sink.succeeded("t", {})
        sink.progress("t", {"done": 1}, OPEN)
        sink.succeeded("t", {})
        sink.progress("u", {"done": 1}, OPEN)
        events = wait_until(lambda: len(heard()) >= 3 and heard(), description="the events")
        assert [(event["type"], event["uuid"]) for event in events] == [
            ("task-succeeded", "t"),
            ("task-succeeded", "t"),
            ("task-progress", "u"),
        ]

    def test_a_large_result_is_shown_by_its_beginning(
        self, sink: CeleryTickets, heard: Heard, direct: Any
    ) -> None:
        """Everybody who watches gets every event; the whole is in the result backend."""
        nonces = list(range(10_000))
        sink.succeeded("t", {"nonces": nonces})
        (event,) = wait_until(heard, description="the event")
        assert len(event["result"]) == 1000
        assert event["result"].startswith("{'nonces': [0, 1, ")
        assert event["result"].endswith("...")
        assert meta(direct)["result"] == {"nonces": nonces}

    def test_an_event_that_is_lost_costs_no_end(
        self,
        new_app: Callable[..., Celery],
        store: Store,
        direct: Any,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Given a broker that is away, then the ticket ends, and the log says who was not told."""
        app = new_app()
        app.conf.broker_url = "redis://127.0.0.1:1/0"
        app.conf.broker_transport_options = {"max_retries": 1, "interval_start": 0}
        CeleryTickets(app, store, "w@test").succeeded("t", {})
        assert meta(direct)["status"] == "SUCCESS"
        assert "Flower was not told of task-succeeded of t: " in caplog.text

    @pytest.mark.parametrize("threads", [1, 8])
    def test_many_reports_open_few_connections(
        self, threads: int, sink: CeleryTickets, direct: Any
    ) -> None:
        """Given two hundred, then they share what the pools hold."""

        def opened() -> int:
            return int(direct.info("stats")["total_connections_received"])

        sink.progress("t", {"done": 0}, OPEN)
        before = opened()
        with ThreadPoolExecutor(threads) as reporting:
            list(reporting.map(lambda i: sink.progress(f"t{i}", {"done": i}, OPEN), range(200)))
        # A thread may need one for the result and two for the event.
        assert opened() - before <= 3 * (threads - 1)
