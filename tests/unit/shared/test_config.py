"""The config of a round: the published defaults, and what is refused."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from shared.config import MAX_BATCH_SIZE, MAX_NODE_COUNT, MAX_NONCE, PoCConfig, PoCState, RoundId
from shared.errors import InvalidRequest
from shared.requests import read
from shared.schemes import Distance

REQUIRED: dict[str, Any] = {
    "block_hash": "b10c",
    "block_height": 7,
    "public_key": "node",
    "r_target": 1.4,
}


def config(**changes: Any) -> PoCConfig:
    """A config as it comes over the wire."""
    return PoCConfig.model_validate(REQUIRED | changes)


def test_defaults_are_the_published_ones() -> None:
    """An old controller, which sends only what it must, gets what it always got."""
    dumped = config().model_dump()
    assert {name: value for name, value in dumped.items() if name not in REQUIRED} == {
        "scheme": "distance",
        "fraud_threshold": 0.01,
        "node_id": 0,
        "node_count": 1,
        "batch_size": 32,
        "seq_len": 256,
        "callback_url": None,
        "callback_deadline_s": 3600,
        "strong_rng": False,
        "p_mismatch": 5e-4,
        "dist_tolerance": 0,
        "submit_margin": 0,
    }


@pytest.mark.parametrize("name", REQUIRED)
def test_what_defines_a_round_has_no_default(name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        PoCConfig.model_validate({k: v for k, v in REQUIRED.items() if k != name})


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("block_hash", ["x", "x" * 256], ["", "x" * 257]),
        ("block_height", [0, MAX_NONCE], [-1, MAX_NONCE + 1]),
        ("public_key", ["x", "x" * 256], ["", "x" * 257]),
        ("r_target", [1e-9, 2, 2.0], [0, -1, 2.1, nan, inf]),
        ("fraud_threshold", [1e-9, 0.99], [0, 1, nan]),
        ("node_id", [0], [-1]),
        ("node_count", [1, MAX_NODE_COUNT], [0, MAX_NODE_COUNT + 1]),
        ("batch_size", [1, MAX_BATCH_SIZE], [0, MAX_BATCH_SIZE + 1]),
        ("seq_len", [1], [0]),
        ("callback_deadline_s", [1, 604_800], [0, 604_801, inf]),
        ("p_mismatch", [1e-9, 0.5], [0, 1]),
        ("dist_tolerance", [0, 2], [-1e-9, 2.1, nan]),
        ("submit_margin", [0, 1.3], [-1e-9, 2]),
    ],
)
def test_every_number_has_its_bounds(name: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert getattr(config(**{name: value}), name) == value
    for value in bad:
        with pytest.raises(ValidationError, match=name):
            config(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("block_height", "7"),
        ("block_height", 7.0),
        ("block_height", True),
        ("r_target", "1.4"),
        ("r_target", True),
        ("strong_rng", 1),
        ("strong_rng", "true"),
        ("public_key", 5),
        ("public_key", b"node"),
    ],
)
def test_nothing_is_coerced(name: str, value: object) -> None:
    """A mistake of the caller is not guessed at."""
    with pytest.raises(ValidationError, match=name):
        config(**{name: value})


def test_an_unknown_field_is_refused() -> None:
    """A misspelt one would silently be the default."""
    with pytest.raises(ValidationError, match="batchsize"):
        config(batchsize=8)


def test_terms_that_are_made_are_taken_as_they_are() -> None:
    """And a field beside them, which they have or nobody has, is refused."""
    own = {name: value for name, value in REQUIRED.items() if name != "r_target"}
    assert PoCConfig(**own, terms=Distance(r_target=1.4)) == config()
    for name in ("r_target", "batchsize"):
        with pytest.raises(ValidationError, match=name):
            PoCConfig(**own, terms=Distance(r_target=1.4), **{name: 1.0})


def test_a_copy_has_what_was_changed() -> None:
    """Given a field of its scheme as well, as callers did before there were schemes."""
    copy = config().model_copy(update={"r_target": 1.2, "batch_size": 8})
    assert copy == config(r_target=1.2, batch_size=8)
    assert copy.model_dump() == config(r_target=1.2, batch_size=8).model_dump()
    assert config().model_copy() == config()


def test_a_config_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        config().batch_size = 8  # type: ignore[misc]


def test_url_is_an_alias_of_the_callback_url() -> None:
    """Controllers in the field call it so."""
    given_ = config(url="http://controller:9000/pow")
    assert given_ == config(callback_url="http://controller:9000/pow")
    assert PoCConfig.model_validate_json(given_.model_dump_json()) == given_


def test_only_one_of_both_urls_is_taken() -> None:
    """Nobody could say which one counts."""
    with pytest.raises(ValidationError, match="url"):
        config(url="http://a", callback_url="http://b")


def test_a_callback_url_loses_its_last_slash() -> None:
    """A path is put behind it."""
    assert config(callback_url="https://c/pow/").callback_url == "https://c/pow"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://c/pow", "only http"),
        ("file:///etc/passwd", "only http"),
        ("controller:9000", "only http"),
        ("", "only http"),
        ("http://", "needs a host"),
        ("http://:80/", "needs a host"),
        ("http://user:password@c/", "no user and password"),
        ("http://token@c/", "no user and password"),
        ("http://c/?a=b", "no query"),
        ("http://c/#a", "no query"),
        ("http://c:port/", "callback_url"),
        ("http://c:99999/", "callback_url"),
        ("http://" + "c" * 2048, "callback_url"),
        ("http://c\x00/", "callback_url"),
        ("http://c/\r\nHost: d", "callback_url"),
        ("http://c d/", "callback_url"),
        ("http://c..d/", "callback_url"),
        ("http://" + "c" * 300, "callback_url"),
    ],
)
def test_a_url_that_cannot_receive_is_refused(url: str, why: str) -> None:
    """At once, not when the first callback fails."""
    with pytest.raises(ValidationError, match=why):
        config(callback_url=url)


@pytest.mark.parametrize(
    "url",
    ["http://me:hunter2@c/", "http://hunter2@c/", "http://m@e:hun/hunter2@c/", "me:hunter2@c"],
)
def test_a_refused_url_shows_no_password(url: str) -> None:
    """The error is in a task's result, and in logs."""
    with pytest.raises(InvalidRequest, match="c") as caught:
        read(PoCConfig, REQUIRED | {"callback_url": url})
    assert "hunter2" not in str(caught.value)


def test_a_node_is_one_of_its_network() -> None:
    """Numbers start at zero."""
    assert config(node_id=2, node_count=3).node_id == 2
    with pytest.raises(ValidationError, match=r"node_id 3 is not in \[0, node_count=3\)"):
        config(node_id=3, node_count=3)


def test_a_margin_leaves_something_to_submit() -> None:
    assert Distance.of(config(r_target=1.5, submit_margin=0.25)).valid_below == 1.25
    with pytest.raises(ValidationError, match="submit_margin must be below r_target"):
        config(r_target=1.0, submit_margin=1.0)


def test_the_sequence_of_a_node_steps_by_the_network() -> None:
    assert config().nonces(4, 4) == (4, 5, 6, 7)
    assert config(node_id=1, node_count=3).nonces(0, 4) == (1, 4, 7, 10)
    assert config(node_id=1, node_count=3).nonces(4, 2) == (13, 16)
    assert config().nonces(4, 0) == ()


@given(st.integers(1, 5), st.integers(0, 30), st.integers(0, 10))
def test_a_network_leaves_no_nonce_out(nodes: int, start: int, count: int) -> None:
    """Given all nodes of a network at the same positions, then each nonce is one node's."""
    parts = [config(node_id=n, node_count=nodes).nonces(start, count) for n in range(nodes)]
    together = sorted(nonce for part in parts for nonce in part)
    assert together == list(range(start * nodes, (start + count) * nodes))


def test_states_are_plain_text() -> None:
    """As they stand in Redis."""
    assert [str(state) for state in PoCState] == ["IDLE", "GENERATING", "VALIDATING", "STOPPED"]


def test_a_round_id_needs_no_quoting() -> None:
    """It is part of key names."""
    adapter = TypeAdapter(RoundId)
    for good in ("r1", "2024-01-01.node_7", "x" * 64):
        assert adapter.validate_python(good) == good
    for bad in ("", "x" * 65, "a b", "a:b", "a\n", "\n", "é", "*"):
        with pytest.raises(ValidationError):
            adapter.validate_python(bad)
