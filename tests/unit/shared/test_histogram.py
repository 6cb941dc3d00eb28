"""Bins that suit every vocabulary."""

from __future__ import annotations

from math import floor, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config import share_below
from shared.histogram import LAST, edge, place

vocabularies = st.sampled_from([1, 2, 1024, 151_936, 262_144])


@given(st.floats(0, 2), vocabularies)
def test_a_distance_lies_in_its_bin(distance: float, vocab_size: int) -> None:
    number = floor(place(distance, vocab_size))
    slack = 1e-9
    assert edge(number, vocab_size) <= distance + slack
    assert distance <= edge(number + 1, vocab_size) + slack


@given(vocabularies)
def test_edges_rise_from_0_to_2(vocab_size: int) -> None:
    edges = [edge(number, vocab_size) for number in range(-LAST, LAST + 1)]
    assert edges == sorted(edges)
    assert 0 <= edges[0] < edges[-1] <= 2


@pytest.mark.parametrize("vocab_size", [1024, 151_936])
def test_they_hold_nearly_all_that_a_model_gives(vocab_size: int) -> None:
    """Four of them are a standard deviation."""
    low, high = edge(-LAST, vocab_size), edge(LAST, vocab_size)
    assert share_below(low, vocab_size) < 1e-8
    assert share_below(high, vocab_size) > 1 - 1e-8
    assert share_below(edge(-4, vocab_size), vocab_size) == pytest.approx(0.1587, abs=1e-4)
    assert edge(0, vocab_size) == sqrt(2)
