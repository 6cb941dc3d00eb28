"""What is no request, and why."""

from __future__ import annotations

import json
from typing import Any

import pytest

from calls import JOB, POW, ROUND, Gateway

pytestmark = pytest.mark.usefixtures("worker")


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"params": {**ROUND["params"], "foo": 1}}, ["body", "params", "foo"]),
        ({"stat_test": {"fraud": 0.1}}, ["body", "stat_test", "fraud"]),
        ({"block_hash": None}, ["body", "block_hash"]),
        ({"nonces": []}, ["body", "nonces"]),
        ({"nonces": [2**31]}, ["body", "nonces", 0]),
        ({"nonces": [-1]}, ["body", "nonces", 0]),
        ({"nonces": ["1"]}, ["body", "nonces", 0]),
        ({"url": "ftp://receiver"}, ["body", "url"]),
        ({"stat_test": {"p_value_threshold": 1.5}}, ["body", "stat_test", "p_value_threshold"]),
    ],
)
def test_a_wrong_field_is_named(gateway: Gateway, change: dict[str, Any], place: list[Any]) -> None:
    answer = gateway().post(f"{POW}/generate", json=JOB | change)
    assert answer.status_code == 422
    assert place in [each["loc"] for each in answer.json()["detail"]]


def test_a_node_id_is_below_the_node_count(gateway: Gateway) -> None:
    answer = gateway().post(f"{POW}/init/generate", json=ROUND | {"node_id": 3})
    assert answer.status_code == 422
    assert "node_id 3 is not in [0, node_count=3)" in answer.text


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_json_is_read_whatever_the_content_type_says(
    gateway: Gateway, content_type: str | None
) -> None:
    """The refusal of a model is of somebody who read it."""
    wrong = json.dumps(ROUND | {"params": {"model": "other", "seq_len": 1}})
    headers = {"Content-Type": content_type} if content_type else {}
    assert gateway().post(f"{POW}/init/generate", content=wrong, headers=headers).status_code == 409


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"nonces": [NaN]}',
        b'{"block_height": ' + 5000 * b"9" + b"}",
        b'{"params": {"\\ud800": 1}}',
        b'{"block_hash": "\\ud800"}',
        b"null",
        b"7",
    ],
)
def test_nonsense_is_refused(gateway: Gateway, body: bytes) -> None:
    answer = gateway().post(f"{POW}/generate", content=body)
    assert answer.status_code in (400, 422)
    assert answer.json()["detail"]
