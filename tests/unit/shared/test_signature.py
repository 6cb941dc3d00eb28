"""Signatures of callbacks: what a receiver relies on."""

from __future__ import annotations

import base64
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from shared.errors import InvalidRequest
from shared.signature import TOLERANCE_S, read_secret, sign, verify

SECRET = base64.b64encode(bytes(range(32))).decode()
BODY = '{"nonces":[1,4611686018427387904],"dist":[0.1,1.25]}'
NOW = 1_700_000_000
SIGNED = sign(SECRET, "r1:tok", NOW, BODY)
DOCS = (Path(__file__).parents[3] / "docs" / "security.md").read_text(encoding="utf-8")


def test_a_signed_message_is_believed() -> None:
    """It gives the id that repeats are known by; header names count in any case."""
    shouted = {name.upper(): value for name, value in SIGNED.items()}
    for headers in (SIGNED, shouted):
        assert verify(SECRET, headers, BODY, now=NOW) == "r1:tok"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"webhook-id": "r1:other"}, "not of this message"),
        ({"webhook-timestamp": str(NOW + 1)}, "not of this message"),
        ({"webhook-timestamp": "soon"}, "no time"),
        ({"webhook-timestamp": "9" * 5000}, "no time"),
        ({"webhook-signature": "v1,AAAA"}, "not of this message"),
        ({"webhook-signature": ""}, "not of this message"),
        ({"webhook-signature": "v1,ü"}, "not of this message"),
    ],
)
def test_what_was_changed_is_not(change: dict[str, str], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        verify(SECRET, SIGNED | change, BODY, now=NOW)


def test_another_body_or_secret_is_not() -> None:
    other = base64.b64encode(bytes(32)).decode()
    for secret, body in ((SECRET, BODY + " "), (other, BODY)):
        with pytest.raises(InvalidRequest, match="not of this message"):
            verify(secret, SIGNED, body, now=NOW)


@pytest.mark.parametrize("missing", SIGNED)
def test_a_missing_header_is_named(missing: str) -> None:
    headers = {name: value for name, value in SIGNED.items() if name != missing}
    with pytest.raises(InvalidRequest, match=missing):
        verify(SECRET, headers, BODY, now=NOW)


@pytest.mark.parametrize("seconds", [-TOLERANCE_S - 1, TOLERANCE_S + 1])
def test_a_message_that_was_kept_and_sent_again_is_too_old(seconds: float) -> None:
    """Within that time a repeat is known by its id."""
    verify(SECRET, SIGNED, BODY, now=NOW + seconds / 2)
    with pytest.raises(InvalidRequest, match="older or newer"):
        verify(SECRET, SIGNED, BODY, now=NOW + seconds)


def test_one_of_several_signatures_is_enough() -> None:
    """So a secret can be changed without a message lost."""
    both = SIGNED | {"webhook-signature": f"v1,AAAA {SIGNED['webhook-signature']}"}
    assert verify(SECRET, both, BODY, now=NOW)


@pytest.mark.parametrize("prefix", ["", "whsec_"])
def test_the_library_of_the_standard_agrees(prefix: str) -> None:
    """Ours is verified by theirs, and theirs by ours, so receivers may use any library."""
    now = datetime.now(UTC)
    ours = sign(prefix + SECRET, "id-1", int(now.timestamp()), BODY)
    assert Webhook(prefix + SECRET).verify(BODY, ours) == json.loads(BODY)
    theirs = Webhook(prefix + SECRET).sign("id-1", now, BODY)
    assert verify(prefix + SECRET, ours | {"webhook-signature": theirs}, BODY) == "id-1"


@pytest.mark.parametrize("text", ["", "password", "c2hvcnQ=", SECRET[:-1], f"{SECRET} ", "ü" * 40])
def test_a_secret_that_is_none_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ValueError, match="openssl rand -base64 32") as caught:
        read_secret(text)
    assert not text or text not in str(caught.value)


def test_the_example_of_the_docs_is_true() -> None:
    """Whoever writes a receiver in another language tests it with this."""
    lines = dict(re.findall(r"^(secret|webhook-[a-z]+|body): +(.+)$", DOCS, re.MULTILINE))
    headers = {name: value for name, value in lines.items() if name.startswith("webhook-")}
    sent = int(headers["webhook-timestamp"])
    assert verify(lines["secret"], headers, lines["body"], now=sent) == headers["webhook-id"]
