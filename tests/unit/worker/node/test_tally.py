"""What a worker has computed, by bins, until a heartbeat tells it."""

from __future__ import annotations

from math import floor
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shared.config import PoCConfig
from shared.histogram import LAST, place
from shared.store import Claim
from worker.node.tally import Tally

VOCAB = 1024


def claim(round_id: str = "r", **terms: Any) -> Claim:
    """A batch of a round."""
    usual: dict[str, Any] = {"block_hash": "b", "block_height": 0, "public_key": "k"}
    config = PoCConfig(**usual, **(terms or {"r_target": 1.4}))
    return Claim("t", round_id, "e", config, start=0, count=1, attempts=0)


def test_nothing_is_told_of_nothing() -> None:
    assert Tally(VOCAB).take() is None


@given(st.lists(st.lists(st.floats(0, 2)), max_size=5))
def test_each_distance_counts_in_its_bin(batches: list[list[float]]) -> None:
    """The outermost bins take what lies beyond them."""
    tally = Tally(VOCAB)
    for each in batches:
        tally.add(claim(), each)
    counted = tally.take()
    numbers = [floor(place(d, VOCAB)) for each in batches for d in each]
    expected = [min(max(number, -LAST), LAST - 1) for number in numbers]
    assert sorted(counted.bins.elements() if counted else []) == sorted(expected)


def test_what_is_no_number_counts_nowhere() -> None:
    tally = Tally(VOCAB)
    tally.add(claim(), [None, 1.4])
    counted = tally.take()
    assert counted
    assert counted.bins.total() == 1


def test_what_is_no_distance_has_no_bin() -> None:
    """Given a round of another scheme, and one of distances before it, which is forgotten."""
    tally = Tally(VOCAB)
    tally.add(claim("r1"), [1.4])
    tally.add(claim("r2", scheme="artifact"), ["AAAA", None])
    assert tally.take() is None


def test_what_did_not_arrive_is_told_again() -> None:
    tally = Tally(VOCAB)
    tally.add(claim(), [1.4])
    tally.take()
    tally.add(claim(), [1.4])
    counted = tally.take()
    assert counted
    assert (counted.round_id, counted.bins.total()) == ("r", 2)
    tally.told()
    assert tally.take() is None


def test_an_earlier_round_is_forgotten() -> None:
    """It is shown no more."""
    tally = Tally(VOCAB)
    tally.add(claim("r1"), [1.4, 1.4])
    tally.take()
    tally.add(claim("r1"), [1.4])
    tally.add(claim("r2"), [1.4])
    counted = tally.take()
    assert counted
    assert (counted.round_id, counted.bins.total()) == ("r2", 1)
