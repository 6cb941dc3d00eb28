"""From noise to mismatches: against a simulation, and against what docs/numerics.md measured."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.schemes.distance import Distance, r_target_for
from worker.tools.calibration.mismatch import Distances, Noise

#: Where 5% are valid, as on the page.
R_TARGET = 1.4112
VOCAB = 151_936


def terms(**changes: object) -> Distance:
    return Distance.model_validate({"r_target": R_TARGET} | changes)


def sampled(nonces: int, spread: float, mean: float = 0.0) -> Noise:
    """Distances of an ideal model, and the same with normal noise."""
    chance = random.Random(7)
    ours = [r_target_for(1 - (i + 0.5) / nonces, VOCAB) for i in range(nonces)]
    return Noise(ours, [each + chance.gauss(mean, spread) for each in ours])


IDEAL = Distances.fitted(sampled(4096, 0).ours)
NOISE = sampled(4096, 3.3e-5)


def test_the_distribution_is_that_of_the_sample() -> None:
    """The page says that 5% lie below its r_target."""
    assert IDEAL.share_below(R_TARGET) == pytest.approx(0.05, abs=0.002)


@pytest.mark.parametrize(
    ("tolerance", "margin", "measured"),
    [(0, 0, 0.014), (5e-5, 0, 0.00092), (0, 5e-5, 0.00093), (5e-5, 5e-5, 7.7e-6)],
)
def test_mismatches_are_those_that_were_measured(
    tolerance: float, margin: float, measured: float
) -> None:
    """Given the noise between transformers and vLLM, what the table of docs/numerics.md has.

    It was made from the measured differences, this from a normal distribution of their spread: so
    within a third, and in the far tail within a factor.
    """
    rate = IDEAL.mismatches(NOISE, terms(dist_tolerance=tolerance), margin)
    assert rate == pytest.approx(measured, rel=0.34 if measured > 1e-5 else 3)


def test_mismatches_are_those_of_a_simulation() -> None:
    """Given noise that is wide and not centred, drawn nonce by nonce."""
    noise = sampled(4096, 2e-4, mean=1e-4)
    chance = random.Random(1)
    changed = valid = 0
    for _ in range(200_000):
        ours = r_target_for(chance.random() * 0.2 + 1e-9, VOCAB)
        if ours < R_TARGET:
            valid += 1
            changed += ours + chance.gauss(1e-4, 2e-4) > R_TARGET
    assert IDEAL.mismatches(noise, terms(), 0) == pytest.approx(changed / valid, rel=0.05)


def test_equal_distances_never_mismatch() -> None:
    """Given the same bits on both sides, then exactly never, and no margin is needed."""
    same = Noise(NOISE.ours, NOISE.ours)
    assert IDEAL.mismatches(same, terms(), 0) == 0
    assert IDEAL.margin_for(same, terms(), 0) == 0
    assert (same.equal, same.largest) == (4096, 0)


@given(st.floats(1e-6, 1e-3), st.floats(0, 3e-4), st.floats(0, 3e-4))
def test_more_margin_is_never_worse(spread: float, one: float, other: float) -> None:
    noise = Noise([0.0, 0.0], [-spread, spread])
    low, high = sorted((one, other))
    of_low, of_high = (IDEAL.mismatches(noise, terms(), each) for each in (low, high))
    assert of_high <= of_low + 1e-12


@settings(max_examples=30)
@given(st.floats(1e-6, 2e-4), st.floats(1e-6, 1e-2))
def test_the_margin_that_is_named_suffices(spread: float, rate: float) -> None:
    """Whatever the noise and the rate; and half of it does not, unless none is needed."""
    noise = Noise([0.0, 0.0], [-spread, spread])
    margin = IDEAL.margin_for(noise, terms(), rate)
    if math.isinf(margin):  # too dear
        assert IDEAL.mismatches(noise, terms(), 0) > rate
        return
    assert IDEAL.mismatches(noise, terms(), margin) <= rate
    if margin:
        assert IDEAL.mismatches(noise, terms(), margin / 2) > rate


def test_another_model_is_no_matter_of_a_margin() -> None:
    """Given half of the layers, whose distances differ as nonces do, then none is named."""
    other = sampled(4096, 2.6e-3)
    assert math.isinf(IDEAL.margin_for(other, terms(), 5e-4))


def test_what_changed_sides_is_counted() -> None:
    """Only of what was submitted, and only beyond the tolerance."""
    noise = Noise([1.0, 1.1, 1.2], [1.14, 1.16, 1.3])
    assert noise.changed_sides(terms(r_target=1.15)) == (1, 2)
    assert noise.changed_sides(terms(r_target=1.15, dist_tolerance=0.02)) == (0, 2)
    assert noise.changed_sides(terms(r_target=1.15, submit_margin=0.1)) == (0, 1)
