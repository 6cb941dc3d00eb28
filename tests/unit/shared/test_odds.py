"""The odds are those of the verdicts, to the last bit, and those of scipy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config import PoCConfig
from shared.data import ProofBatch, ValidatedBatch
from shared.odds import at_least, flagged_from

#: A probability that a config may have.
shares = st.floats(1e-6, 0.999)


def judged_as_fraud(mismatches: int, n: int, p_mismatch: float, threshold: float) -> bool:
    """What a verdict says of a batch of `n` of which so many mismatch."""
    config = PoCConfig(
        block_hash="b",
        block_height=0,
        public_key="k",
        r_target=1.0,
        p_mismatch=p_mismatch,
        fraud_threshold=threshold,
    )
    batch = ProofBatch.of(config, range(n), [0.5] * n)
    dist = [1.5] * mismatches + [0.5] * (n - mismatches)
    return ValidatedBatch.judge(batch, dist, config).fraud_detected


@given(st.integers(1, 300), st.integers(0, 300), shares, shares)
def test_fraud_begins_where_the_verdicts_have_it(
    n: int, k: int, p: float, threshold: float
) -> None:
    """For any batch and any number of mismatches in it, the two agree."""
    mismatches = min(k, n)
    assert judged_as_fraud(mismatches, n, p, threshold) == (
        mismatches >= flagged_from(n, p, threshold)
    )


@given(st.integers(1, 300), shares, shares)
def test_one_mismatch_less_is_no_fraud(n: int, p: float, threshold: float) -> None:
    """At the very number itself, and one below it."""
    k = flagged_from(n, p, threshold)
    assert k > n or judged_as_fraud(k, n, p, threshold)
    assert not judged_as_fraud(k - 1, n, p, threshold)


@given(st.integers(1, 100_000), st.integers(0, 100_010), st.floats(0, 1))
def test_a_tail_is_the_binomial_test_of_scipy(n: int, k: int, p: float) -> None:
    """One-sided, for all that can happen; more than all can't."""
    from scipy.stats import binomtest  # slow to import, and needed nowhere else

    expected = binomtest(k, n, p, alternative="greater").pvalue if k <= n else 0.0
    assert at_least(k, n, p) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_numbers_worked_out_by_hand() -> None:
    """1 - 0.5^3, 0.5^3, and what an impossible threshold leads to."""
    assert at_least(1, 3, 0.5) == pytest.approx(0.875)
    assert at_least(3, 3, 0.5) == pytest.approx(0.125)
    assert flagged_from(3, 0.5, 0.2) == 3
    assert flagged_from(3, 0.5, 0.1) == 4
