"""The client against a real server; the tests answer as a worker would."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import kombu
import pytest
import redis

from answering_worker import AnsweringWorker, Reply
from shared.client import PoCClient, tickets
from shared.errors import InvalidRequest, NoAnswer, PoCError, RoundInProgress, StoreUnavailable
from shared.settings import Settings, load_settings
from shared.status import RoundStatus
from support import wait_until
from worker.tools.embedded import EmbeddedRedis

pytestmark = [
    pytest.mark.functional,
    # Celery's own result backend calls it.
    pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning"),
]

CONFIG = {"block_hash": "b", "block_height": 1, "public_key": "k", "r_target": 1.5}
BATCH = {
    "public_key": "k",
    "block_hash": "b",
    "block_height": 1,
    "nonces": [0, 2**63 - 1],
    "dist": [0.1, 1.25],
}
VERDICT = BATCH | {
    "received_dist": BATCH["dist"],
    "r_target": 1.5,
    "fraud_threshold": 0.01,
    "node_id": 0,
    "n_invalid": 0,
    "probability_honest": 1.0,
    "fraud_detected": False,
    "p_mismatch": 5e-4,
    "dist_tolerance": 0.0,
    "submit_margin": 0.0,
}

Hire = Callable[[Callable[[int], Reply]], AnsweringWorker]


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return load_settings({}, redis_url=redis_url, namespace="client")


@pytest.fixture
def hire(settings: Settings) -> Iterator[Hire]:
    """Start a worker that gives these answers."""
    hired: list[AnsweringWorker] = []

    def hire(answer: Callable[[int], Reply]) -> AnsweringWorker:
        worker = AnsweringWorker(settings, answer)
        hired.append(worker)
        worker.start()
        return worker

    yield hire
    for worker in hired:
        worker.close()


def status(state: str = "IDLE", **fields: Any) -> dict[str, Any]:
    return RoundStatus(state=state, **fields).model_dump(mode="json")  # type: ignore[arg-type]


def test_a_command_gives_the_status(settings: Settings, hire: Hire) -> None:
    """An init sends the config, checked and complete, and reads the answer."""
    worker = hire(lambda _: ("SUCCESS", status(round_id="r")))
    assert PoCClient(settings).init(CONFIG, round_id="r", replace=True).round_id == "r"
    [(task, _, kwargs)] = worker.got
    assert task == "poc.init"
    assert (kwargs["round_id"], kwargs["replace"]) == ("r", True)
    assert kwargs["config"]["batch_size"] == 32


def test_a_refusal_is_raised_as_its_class(settings: Settings, hire: Hire) -> None:
    """What the worker raised is what the caller catches."""
    hire(lambda _: ("FAILURE", RoundInProgress("Round already in progress")))
    with pytest.raises(RoundInProgress, match=r"^Round already in progress$"):
        PoCClient(settings).init(CONFIG)


def test_a_defect_of_the_worker_is_told_as_one(settings: Settings, hire: Hire) -> None:
    """A KeyError over there is no KeyError here."""
    hire(lambda _: ("FAILURE", KeyError("x")))
    with pytest.raises(PoCError, match=r"a worker failed \(KeyError: 'x'\)"):
        PoCClient(settings).stop()


def test_a_ticket_tells_progress_and_ends_with_the_status(settings: Settings, hire: Hire) -> None:
    """It is there when a worker took it on; wait follows the round to its end."""
    worker = hire(lambda _: ("PROGRESS", {"round_id": "r"}))
    ticket = PoCClient(settings).generate(CONFIG)
    seen: list[dict[str, Any]] = []

    def on_progress(progress: dict[str, Any]) -> None:
        seen.append(progress)
        if len(seen) == 1:
            worker.tell("PROGRESS", {"total_checked": 32})
        else:
            worker.tell("SUCCESS", status("STOPPED", total_checked=64))

    assert ticket.wait(30, on_progress).total_checked == 64
    assert seen == [{"round_id": "r"}, {"total_checked": 32}]
    assert ticket.id == worker.got[0][1]


def test_a_batch_is_sent_whole_and_its_verdict_read(settings: Settings, hire: Hire) -> None:
    """The largest nonce and every float survive both ways."""
    worker = hire(lambda _: ("SUCCESS", VERDICT))
    verdict = PoCClient(settings).validate_batch(BATCH).wait(30)
    assert (verdict.nonces, verdict.received_dist) == (BATCH["nonces"], BATCH["dist"])
    assert worker.got[0][2]["batch"] == BATCH | {"node_id": 0}


def test_a_command_that_was_lost_is_sent_again_under_its_id(
    settings: Settings, hire: Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that took it and died costs nothing: the next one has the same id."""
    monkeypatch.setattr(tickets, "RESEND_S", (0.1, 0.2))
    worker = hire(lambda count: ("SUCCESS", status()) if count == 3 else None)
    PoCClient(settings).stop()
    assert len({command for _, command, _ in worker.got}) == 1
    assert len(worker.got) == 3


def test_a_command_that_nobody_takes_is_in_the_queue_once(
    settings: Settings, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it is waited for: it may have megabytes."""
    monkeypatch.setattr(tickets, "RESEND_S", (0.05, 0.1))
    with pytest.raises(NoAnswer):
        PoCClient(settings, timeout=1).stop()
    with contextlib.closing(redis.Redis.from_url(redis_url)) as direct:
        assert direct.llen(settings.queue) == 1


def test_no_worker_means_no_answer(settings: Settings) -> None:
    """The message says which command, where, and what to look at."""
    with pytest.raises(
        NoAnswer, match=r"namespace client answered poc\.stop in 0\.2 s.*poc status"
    ):
        PoCClient(settings, timeout=0.2).stop()


def test_a_wait_that_is_too_short_may_be_repeated(settings: Settings, hire: Hire) -> None:
    """The work goes on, and so may the waiting."""
    worker = hire(lambda _: ("PROGRESS", {}))
    ticket = PoCClient(settings).generate()
    with pytest.raises(NoAnswer, match="it goes on"):
        ticket.wait(0.1)
    worker.tell("SUCCESS", status("STOPPED"))
    assert ticket.wait(30).state == "STOPPED"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "config.block_hash: Field required"),
        (CONFIG | {"r_target": 3.0}, "config.r_target: .* less than or equal to 2"),
        (CONFIG | {"r_traget": 1.0}, "config.r_traget: Extra inputs"),
    ],
)
def test_a_bad_config_is_never_sent(settings: Settings, config: dict[str, Any], says: str) -> None:
    """It is refused here, by the rules that a worker has."""
    with pytest.raises(InvalidRequest, match=says):
        PoCClient(settings).init(config)
    with contextlib.closing(redis.Redis.from_url(settings.redis_url)) as direct:
        assert direct.llen(settings.queue) == 0


def test_without_redis_the_caller_is_told_in_time() -> None:
    """Nothing listens: StoreUnavailable, which names the server without its password."""
    nowhere = load_settings({}, redis_url="redis://:secret@127.0.0.1:1/0")
    with pytest.raises(StoreUnavailable, match=r"redis://:\*\*\*@127\.0\.0\.1:1/0"):
        PoCClient(nowhere, timeout=0.2).stop()


def test_a_pooled_connection_that_kombu_let_go_of_is_replaced(
    settings: Settings, hire: Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a channel as kombu leaves it when a network is cut, the command goes all the same."""
    hire(lambda _: ("SUCCESS", status()))
    publish, lost = kombu.Producer.publish, iter([True])

    def publish_by_a_lost_one(self: kombu.Producer, *args: Any, **options: Any) -> Any:
        if next(lost, False):
            self.channel.connection.client = None
            self.channel._disconnect_pools()
        return publish(self, *args, **options)

    monkeypatch.setattr(kombu.Producer, "publish", publish_by_a_lost_one)
    with contextlib.closing(PoCClient(settings)) as client:
        assert client.stop().state == "IDLE"
    assert next(lost, None) is None


def test_a_defect_in_sending_is_not_taken_for_a_lost_connection(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is raised at once, instead of being tried until the timeout."""

    def publish(*_: Any, **__: Any) -> None:
        raise AttributeError("a defect")

    monkeypatch.setattr(kombu.Producer, "publish", publish)
    with (
        contextlib.closing(PoCClient(settings)) as client,
        pytest.raises(AttributeError, match="a defect"),
    ):
        client.stop()


def test_a_wait_outlives_a_restart_of_redis(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server forgets everything, the message too; the client brings it again."""
    monkeypatch.setattr(tickets, "RESEND_S", (0.1, 0.2))
    with EmbeddedRedis() as server:
        settings = load_settings({}, redis_url=server.url)
        caller = PoCClient(settings, timeout=60)
        answers: list[RoundStatus] = []
        thread = threading.Thread(target=lambda: answers.append(caller.stop()), daemon=True)
        with caplog.at_level(logging.WARNING, logger="shared.client"):
            with contextlib.closing(redis.Redis.from_url(server.url)) as direct:
                thread.start()
                wait_until(lambda: direct.llen(settings.queue), 10, "the command")
            server.kill()
            wait_until(lambda: "retrying" in caplog.text, 30, "the client to notice")
        server.start()
        worker = AnsweringWorker(settings, lambda _: ("SUCCESS", status("STOPPED")))
        worker.start()
        thread.join(60)
        worker.close()
        assert [answer.state for answer in answers] == ["STOPPED"]
