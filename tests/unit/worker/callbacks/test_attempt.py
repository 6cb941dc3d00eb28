"""What an answer of a receiver means."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from shared.settings import load_settings
from worker.callbacks.attempt import MAX_RETRY_AFTER_S, Answer, judge, post, seconds_asked_for


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_is_a_delivery(status: int) -> None:
    assert judge(status) == Answer()


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
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
    ("status", "said"),
    [
        (400, '{"error":"block_height is not the active PoC stage"}'),
        (503, "not in PoC generate phase"),
        (503, "not in PoC validate phase"),
    ],
)
def test_a_message_at_the_border_of_phases_waits_for_its_own(status: int, said: str) -> None:
    """The receiver is well: it takes messages of its phase."""
    answer = judge(status, None, said)
    assert (answer.retry, answer.untimely, answer.in_doubt) == (True, True, False)
    other = judge(status, None, "bad base64")
    assert (other.retry, other.untimely) == (status == 503, False)


def test_a_border_is_read_of_an_answer_that_does_not_say_its_length() -> None:
    """As a proxy before the receiver may hand it on."""

    async def parts() -> AsyncIterator[bytes]:
        yield b"block_height is not "
        yield b"the active PoC stage"

    def answers(request: httpx.Request) -> httpx.Response:
        assert request.headers["Accept-Encoding"] == "identity"
        return httpx.Response(400, content=parts())

    async def sent() -> Answer:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answers)) as client:
            return await post(client, load_settings({}), "http://receiver/generated", "key", "{}")

    assert asyncio.run(sent()).untimely


@pytest.mark.parametrize(
    ("status", "in_doubt"),
    [(408, True), (425, False), (429, False), (500, True), (502, True), (504, True)],
)
def test_some_answers_leave_open_what_became_of_the_message(status: int, in_doubt: bool) -> None:
    """A receiver that is too busy to look at it has not taken it."""
    assert judge(status).in_doubt is in_doubt
    assert judge(status, in_doubt=True).in_doubt


def test_a_conflict_with_an_earlier_attempt_is_tried_again() -> None:
    """Its receiver is still at it; without such an attempt it is a refusal."""
    again = judge(409, "7", in_doubt=True)
    assert (again.retry, again.retry_after_s, again.in_doubt) == (True, 7, True)
    assert not judge(409).retry
    assert not judge(404, in_doubt=True).retry


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
