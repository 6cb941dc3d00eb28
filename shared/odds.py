"""The odds of a verdict: the binomial test that judges a batch, and what follows from it."""

from __future__ import annotations


def at_least(k: int, n: int, p: float) -> float:
    """How probable `k` or more of `n` are, each of which comes with probability `p`.

    Exact, and to the bit what scipy's one-sided `binomtest` gives.
    """
    if k <= 0:
        return 1.0
    if k > n:
        return 0.0
    # Imported here: a poller or a sender never needs it. Not scipy.stats.binomtest, whose module
    # takes two seconds of a core to load.
    from scipy.special import betainc

    return float(betainc(k, n - k + 1, p))


def flagged_from(n: int, p_mismatch: float, fraud_threshold: float) -> int:
    """The number of mismatches from which on a batch of `n` is judged a fraud; `n` + 1 if none is.

    A verdict takes the same test, see `ValidatedBatch.judge`.
    """
    low, high = 0, n + 1
    while high - low > 1:  # at `low` it is honest, at `high` fraud
        middle = (low + high) // 2
        if at_least(middle, n, p_mismatch) < fraud_threshold:
            high = middle
        else:
            low = middle
    return high
