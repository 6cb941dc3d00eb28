"""From the noise between two forwards to the share of an honest node's nonces that mismatch.

Few nonces lie where noise matters. So the noise, which all nonces have, is put at every distance of
a smooth distribution: a distance is sqrt(2 - 2c), and the cosine c is close to normal. That is how
docs/numerics.md has it, where the counts agree with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, exp, floor, inf, log10, pi, sqrt
from statistics import NormalDist, fmean, pstdev

from shared.schemes import Distance

#: How far into the tails of the noise it is summed, in standard deviations, and in what steps.
_REACH, _STEPS = 8.0, 401
#: A margin that costs more than this share of the yield is no remedy.
MOST_COST = 0.5


@dataclass(frozen=True)
class Noise:
    """How far a validator's distances lie from the prover's `ours`, nonce by nonce."""

    ours: Sequence[float]
    theirs: Sequence[float]

    @cached_property
    def differences(self) -> list[float]:
        """Theirs less ours."""
        return [b - a for a, b in zip(self.ours, self.theirs, strict=True)]

    @property
    def equal(self) -> int:
        """How many are the same to the last bit."""
        return self.differences.count(0.0)

    @property
    def largest(self) -> float:
        """The greatest difference, either way."""
        return max(map(abs, self.differences))

    @cached_property
    def mean(self) -> float:
        """What theirs are longer by."""
        return fmean(self.differences)

    @cached_property
    def spread(self) -> float:
        """The standard deviation of the differences."""
        return pstdev(self.differences, self.mean)

    def changed_sides(self, terms: Distance) -> tuple[int, int]:
        """The valid nonces that mismatch, and all valid ones."""
        limit = terms.r_target + terms.dist_tolerance
        valid = [b for a, b in zip(self.ours, self.theirs, strict=True) if a < terms.valid_below]
        return sum(b > limit for b in valid), len(valid)


@dataclass(frozen=True)
class Distances:
    """The smooth distribution of a model's distances."""

    cosines: NormalDist

    @classmethod
    def fitted(cls, distances: Sequence[float]) -> Distances:
        """The one that a sample was drawn from."""
        cosines = [1 - d * d / 2 for d in distances]
        return cls(NormalDist(fmean(cosines), pstdev(cosines)))

    def share_below(self, distance: float) -> float:
        """The share of all nonces below a distance."""
        if not self.cosines.stdev:
            return float(1 - distance * distance / 2 < self.cosines.mean)
        # Turned round, so that a small share keeps its digits.
        turned = NormalDist(-self.cosines.mean, self.cosines.stdev)
        return turned.cdf(distance * distance / 2 - 1)

    def mismatches(self, noise: Noise, terms: Distance, submit_margin: float) -> float:
        """The share of the submitted nonces that a validator with this noise calls invalid."""
        below, limit = terms.r_target - submit_margin, terms.r_target + terms.dist_tolerance
        submitted = self.share_below(below)
        if not submitted or not (noise.spread or noise.mean):
            return 0.0
        width = 2 * _REACH / (_STEPS - 1)
        found = 0.0
        for step in range(_STEPS):
            z = step * width - _REACH
            lost = submitted - self.share_below(max(0.0, limit - noise.mean - noise.spread * z))
            if lost > 0:
                found += lost * exp(-z * z / 2) * width
        return min(1.0, found / sqrt(2 * pi) / submitted)

    def cost(self, terms: Distance, submit_margin: float) -> float:
        """The share of the valid nonces that a margin gives up."""
        return 1 - self.share_below(terms.r_target - submit_margin) / self.share_below(
            terms.r_target
        )

    def margin_for(self, noise: Noise, terms: Distance, rate: float) -> float:
        """The least submit_margin, in two digits, with at most this `rate` of mismatches.

        Infinite if none would leave half of the yield.
        """
        if self.mismatches(noise, terms, 0.0) <= rate:
            return 0.0
        low, high = 0.0, max(noise.spread, abs(noise.mean))
        while self.mismatches(noise, terms, high) > rate:
            low, high = high, 2 * high
            if high >= terms.r_target or self.cost(terms, high) > MOST_COST:
                return inf
        for _ in range(20):
            middle = (low + high) / 2
            if self.mismatches(noise, terms, middle) > rate:
                low = middle
            else:
                high = middle
        return _rounded_up(high)


def _rounded_up(value: float) -> float:
    unit = 10.0 ** (floor(log10(value)) - 1)
    return float(f"{ceil(value / unit) * unit:.1e}")
