"""Callbacks without a network: frozen messages, what answers mean, whose turn it is."""

from __future__ import annotations

import json
import logging
import random
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from math import nan

import pytest

from shared.config import PoCConfig
from shared.data import ProofBatch, ValidatedBatch
from shared.errors import CouldNotCompute
from shared.store import Claim, ComputedValidation, Entry
from worker.callbacks.attempt import MAX_RETRY_AFTER_S, Answer, judge, seconds_asked_for
from worker.callbacks.delivery import MAX_PAUSE_S, MAX_PER_RECEIVER, _Held, _Receiver, origin, pause
from worker.callbacks.messages import generated_message, validated_message

CONFIG = PoCConfig(
    block_hash="b10c",
    block_height=7,
    public_key="node",
    r_target=1.4,
    callback_url="http://controller:9/poc/",
    callback_deadline_s=60,
)
SILENT = CONFIG.model_copy(update={"callback_url": None})
BATCH = ProofBatch.of(CONFIG, [1, 2**62], [0.1, 1 / 3])


def claim(config: PoCConfig = CONFIG) -> Claim:
    return Claim("tok", "r1", "epoch", config, start=0, count=4, attempts=0)


def job(config: PoCConfig = CONFIG, id: str = "task-1") -> ComputedValidation:
    return ComputedValidation(id, "r1", BATCH, config, dist=[0.1, nan], error="", profile="")


# Messages.


def test_a_generated_message_is_a_proof_batch_that_reads_back_equal() -> None:
    """Nonces and distances are the very numbers that were committed."""
    message = generated_message(claim(), [(1, 0.1), (2**62, 1 / 3)])
    assert message
    assert message.url == "http://controller:9/poc/generated"
    assert ProofBatch.model_validate_json(message.body) == BATCH
    assert (message.key, message.round, message.deadline_s) == ("r1:tok", "r1", 60)


def test_a_claim_without_valid_nonces_is_no_message() -> None:
    assert generated_message(claim(), []) is None


def test_without_a_callback_url_nothing_is_told() -> None:
    assert generated_message(claim(SILENT), [(1, 0.1)]) is None
    assert validated_message(job(SILENT), CouldNotCompute("no")) is None


def test_a_verdict_is_told_as_it_is() -> None:
    verdict = ValidatedBatch.judge(BATCH, [0.1, 0.3], CONFIG)
    message = validated_message(job(), verdict)
    assert message
    assert message.url == "http://controller:9/poc/validated"
    assert ValidatedBatch.model_validate_json(message.body) == verdict
    assert (message.key, message.round, message.deadline_s) == ("validation:task-1", "r1", 60)


def test_a_validation_without_a_verdict_tells_the_error_and_what_it_was_about() -> None:
    """No verdict field is there, so nobody can take it for one."""
    message = validated_message(job(), CouldNotCompute("no finite distance"), [2**62])
    assert message
    assert message.url.endswith("/validated")
    assert json.loads(message.body) == {
        "error": "CouldNotCompute",
        "message": "no finite distance",
        "public_key": "node",
        "block_hash": "b10c",
        "block_height": 7,
        "nonces": [1, 2**62],
        "node_id": 0,
        "not_computed": [2**62],
    }


def test_a_task_id_of_any_text_makes_a_key_that_a_header_can_carry() -> None:
    message = validated_message(job(id="a b\r\nX: ü"), CouldNotCompute("no"))
    assert message
    assert message.key == "validation:a%20b%0D%0AX:%20%C3%BC"


# Answers.


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_is_a_delivery(status: int) -> None:
    assert judge(status) == Answer()


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 599])
def test_trouble_that_may_pass_is_tried_again(status: int) -> None:
    answer = judge(status, "7")
    assert answer.retry
    assert answer.error.startswith(f"it answered {status}")
    assert answer.retry_after_s == 7


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 404, 409, 410, 422])
def test_redirects_and_other_4xx_are_final(status: int) -> None:
    answer = judge(status, "7")
    assert not answer.retry
    assert answer.error.startswith(f"it answered {status}")


@pytest.mark.parametrize(
    "nonsense",
    [
        None,
        "",
        "soon",
        "-3",
        "1.5",
        "٣",
        "Mon, 01 Jan 9999 00:00:00 -9959",
        "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
    ],
)
def test_a_retry_after_that_is_none_is_passed_over(nonsense: str | None) -> None:
    assert seconds_asked_for(nonsense) == 0


def test_a_retry_after_is_seconds_or_a_date() -> None:
    assert seconds_asked_for("120") == 120
    soon = datetime.now(UTC) + timedelta(seconds=100)
    assert 0 < seconds_asked_for(format_datetime(soon, usegmt=True)) <= 100
    assert seconds_asked_for("Mon, 01 Jan 2001 00:00:00 -0000") == 0


def test_a_receiver_may_not_ask_for_ever() -> None:
    assert seconds_asked_for("9" * 400) == MAX_RETRY_AFTER_S
    assert seconds_asked_for("Fri, 01 Jan 2999 00:00:00 GMT") == MAX_RETRY_AFTER_S


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


# Receivers.


def held(id: str = "1-0", gives_up_at: float = 1000.0) -> _Held:
    return _Held(Entry(id, "http://h/generated", "key", "r1", gives_up_at))


def receiver(*waiting: _Held) -> _Receiver:
    made = _Receiver("http://h")
    for each in waiting:
        made.park(each, 0.0)
    return made


AGAIN = Answer("it answered 500", retry=True)
REFUSED = Answer("it answered 404")


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


@pytest.mark.parametrize("answer", [Answer(), REFUSED])
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
