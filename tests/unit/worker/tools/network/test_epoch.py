"""How the controller judges, and who is paid."""

from __future__ import annotations

from dataclasses import replace
from struct import pack

import pytest

from worker.tools.network.epoch import Outcome, is_paid, pause, refusal_of

GOOD = pack("<12e", *[0.25] * 12)
HONEST = Outcome("n", "http://n", "02AB", False, 100, 100, 0, 99, 3, 0, True)


def test_good_vectors_go_to_a_node() -> None:
    assert refusal_of({0: GOOD, 99: GOOD}, 100) is None


@pytest.mark.parametrize(
    ("vector", "why"),
    [
        (GOOD[:-2], "has 22 bytes"),
        (GOOD + GOOD, "has 48 bytes"),
        (pack("<12e", *[float("nan")] * 12), "a number that is none"),
        (pack("<12e", float("inf"), *[0.0] * 11), "a number that is none"),
    ],
)
def test_a_vector_that_is_none_is_a_vote_against(vector: bytes, why: str) -> None:
    assert why in str(refusal_of({0: GOOD, 1: vector}, 2))


def test_so_are_nonces_with_large_holes() -> None:
    """From 100 on, counted with the sign away: a cast to 32 bits may have made one."""
    assert refusal_of({199: GOOD, 1: GOOD}, 2) is None
    assert "porosity" in str(refusal_of({200: GOOD, 1: GOOD}, 2))
    assert "porosity" in str(refusal_of({-200: GOOD, 1: GOOD}, 2))


def test_pauses_grow_up_to_a_limit() -> None:
    assert [pause(attempt) for attempt in (0, 1, 2, 6, 7, 24)] == [3, 4.5, 6.75, 34.171875, 45, 45]


def test_more_than_half_of_all_voters_must_be_for_it() -> None:
    """Who abstains counts as a voter, so it helps nobody."""
    assert is_paid(2, 3)
    assert not is_paid(1, 3)
    assert not is_paid(2, 4)
    assert not is_paid(0, 0)


@pytest.mark.parametrize(
    ("fields", "as_it_must"),
    [
        ({}, True),
        ({"computed": None}, True),
        ({"computed": 101}, False),
        ({"artifacts": 0, "computed": 0}, False),
        ({"paid": False}, False),
        ({"cheats": True}, False),
        ({"cheats": True, "paid": False}, True),
        ({"max_nonce": 100}, True),
        ({"max_nonce": 102}, False),
    ],
)
def test_an_epoch_must_lose_nothing_and_pay_just_the_honest(
    fields: dict[str, int], as_it_must: bool
) -> None:
    assert replace(HONEST, **fields).as_it_must is as_it_must  # type: ignore[arg-type]
