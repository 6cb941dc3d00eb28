"""The r_target of a valid rate, its intervals, and whether blocks are equal."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config import r_target_for, share_below
from worker.tools.calibration.rate import Calibration, histogram, nonces_needed

VOCAB = 1024


def drawn(
    blocks: int, nonces: int, seed: int = 0, shift: Callable[[int], float] = lambda _: 0.0
) -> list[list[float]]:
    """Distances of an ideal model; `shift` moves those of a block, in standard deviations."""
    chance = random.Random(seed)
    return [
        [
            r_target_for(min(max(share, 1e-9), 1 - 1e-9), VOCAB) + shift(block) / 1024**0.5
            for share in (chance.random() for _ in range(nonces))
        ]
        for block in range(blocks)
    ]


distances = st.floats(0, 2)


@given(st.lists(distances, min_size=20, max_size=200, unique=True), st.floats(0.1, 0.9))
def test_the_wanted_share_lies_below(values: list[float], rate: float) -> None:
    """Given any distances, as near as their number and the decimals of an r_target allow."""
    values = sorted(round(each, 4) for each in values)
    if len(set(values)) < len(values):
        return  # no r_target parts equal distances
    half = len(values) // 2
    found = Calibration([values[:half], values[half : 2 * half]], rate)
    assert abs(found.rate - rate) * 2 * half <= 0.5 + 1e-9


@given(st.integers(0, 10_000))
def test_an_interval_is_around_what_it_is_of(seed: int) -> None:
    found = Calibration(drawn(4, 64, seed), 0.2)
    low, high = found.r_interval
    assert low <= found.r_target <= high
    assert found.next_block[0] <= found.rate <= found.next_block[1]
    assert found.r_of_blocks[0] <= found.r_of_blocks[1]


def test_an_ideal_model_gets_the_r_target_of_theory() -> None:
    """Given many nonces, then within the interval, and the blocks are called equal."""
    found = Calibration(drawn(8, 2000), 0.1)
    low, high = found.r_interval
    assert low < r_target_for(0.1, VOCAB) < high
    assert high - low < 0.005
    assert share_below(found.r_target, VOCAB) == pytest.approx(0.1, abs=0.01)
    assert not found.unfair


def test_the_interval_holds_as_often_as_it_says() -> None:
    """Given blocks that differ, in about 95 of 100 measurements the true r_target is in it.

    An interval of nonces alone, as if they were independent, would hold in about a third.
    """
    held = 0
    for seed in range(100):
        moves = random.Random(seed + 1000)
        found = Calibration(drawn(8, 200, seed, lambda _, m=moves: m.gauss(0, 0.5)), 0.5)
        held += found.r_interval[0] <= 2**0.5 <= found.r_interval[1]
    assert 88 <= held <= 100


def test_unequal_blocks_are_unfair() -> None:
    """Given blocks whose distances lie apart, then it says so, and how far."""
    found = Calibration(drawn(8, 500, shift=lambda block: 0.1 * block), 0.1)
    assert found.unfair
    assert found.ratio is not None
    assert found.ratio > 2
    assert found.excess > 0.01
    assert found.r_of_blocks[1] - found.r_of_blocks[0] > 0.01


def test_equal_blocks_are_seldom_called_unfair() -> None:
    """Given 300 ideal models, three at most; one in a thousand is the promise."""
    assert sum(Calibration(drawn(8, 100, seed), 0.1).unfair for seed in range(300)) <= 3


def test_the_test_is_that_of_pearson() -> None:
    """By another implementation, on the table of valid and other nonces of each block."""
    from scipy.stats import chi2_contingency  # slow to import, and needed nowhere else

    found = Calibration(drawn(6, 300, seed=3, shift=lambda block: 0.05 * block), 0.2)
    table = [[round(each * 300), 300 - round(each * 300)] for each in found.rates]
    expected = chi2_contingency(table, correction=False)
    assert found.chi_squared == pytest.approx(expected.statistic)
    assert found.p_homogeneous == pytest.approx(expected.pvalue)


def test_few_valid_nonces_tell_nothing_of_blocks() -> None:
    """Given fewer than five in a block, then neither equal nor unfair."""
    found = Calibration(drawn(8, 40, shift=lambda block: float(block)), 0.1)
    assert found.p_homogeneous is None
    assert not found.unfair


def test_a_rate_of_a_worst_block_without_any_has_no_ratio() -> None:
    assert Calibration([[0.1] * 10, [1.9] * 10], 0.5).ratio is None


@pytest.mark.parametrize(("rate", "least"), [(0.1, 100), (0.999, 10_000), (0.5, 20)])
def test_a_rare_side_needs_more_nonces(rate: float, least: int) -> None:
    """Ten of each side, whichever is rarer."""
    assert nonces_needed(rate) == pytest.approx(least, abs=1)


@pytest.mark.parametrize("blocks", [[[0.1]], [[0.1], [0.1, 0.2]]])
def test_blocks_must_be_comparable(blocks: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="two blocks or more"):
        Calibration(blocks, 0.5)


@given(st.lists(distances, min_size=1, max_size=100), st.integers(1, 20))
def test_a_histogram_counts_each_value_once(values: list[float], bins: int) -> None:
    """Whatever they are, also all the same."""
    values.sort()
    edges, counts = histogram(values, bins)
    assert (len(edges), len(counts), sum(counts)) == (bins + 1, bins, len(values))
    assert edges[0] == values[0]
