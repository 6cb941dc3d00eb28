"""The valid rate of a model: which `r_target` gives it, how surely, and how blocks differ.

Nonces of one block share its target, so they are no independent sample: a model whose logits have a
mean other than zero lies nearer to one block's target than to another's, in all of its nonces. The
block is therefore the unit that every interval here is made from (Woodruff's interval of a quantile
under cluster sampling), and the binomial spread of nonces is only the least that it may be.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import ceil, floor, sqrt

#: How sure the intervals are.
CONFIDENCE = 0.95
#: Blocks are called unequal if equal ones were this unequal with a lower probability.
UNFAIR_BELOW = 0.001
#: Valid nonces, and others, in all: with fewer a rate is not measured but guessed.
LEAST = 10
#: Expected valid nonces of a block, below which the test of blocks says nothing.
LEAST_PER_BLOCK = 5
#: Decimals of an r_target: a ten-thousandth of the spread of distances, or finer.
DECIMALS = 6

Interval = tuple[float, float]


@dataclass(frozen=True)
class Calibration:
    """Distances of several blocks, as many of each, and the share that is to be valid."""

    by_block: Sequence[Sequence[float]]
    valid_rate: float

    def __post_init__(self) -> None:
        sizes = {len(each) for each in self.by_block}
        if len(self.by_block) < 2 or len(sizes) != 1:
            raise ValueError("two blocks or more are compared, of as many nonces each")

    @cached_property
    def distances(self) -> list[float]:
        """Those of all blocks, in order."""
        return sorted(each for block in self.by_block for each in block)

    @cached_property
    def r_target(self) -> float:
        """The distance below which `valid_rate` of all nonces lie."""
        return _between(self.distances, self.valid_rate)

    @cached_property
    def rates(self) -> list[float]:
        """The share of each block that is valid at `r_target`."""
        return [sum(d < self.r_target for d in each) / self._size for each in self.by_block]

    @property
    def rate(self) -> float:
        """The share of all nonces that is valid at `r_target`."""
        return sum(self.rates) / self._blocks

    @property
    def r_interval(self) -> Interval:
        """Where the `r_target` lies that gives the rate on average over all blocks there are."""
        low, high = self._around(1 / self._blocks)
        return _between(self.distances, low), _between(self.distances, high)

    @property
    def next_block(self) -> Interval:
        """Where the valid rate of one more block lies, at `r_target`."""
        return self._around(1 + 1 / self._blocks)

    @property
    def r_of_blocks(self) -> Interval:
        """The least and the greatest `r_target` that a block alone would want."""
        wanted = [_between(sorted(each), self.valid_rate) for each in self.by_block]
        return min(wanted), max(wanted)

    @property
    def ratio(self) -> float | None:
        """The valid rate of the best block over that of the worst; None where that has none."""
        return max(self.rates) / min(self.rates) if min(self.rates) else None

    @property
    def excess(self) -> float:
        """The standard deviation of blocks' rates beyond that of drawing nonces."""
        return sqrt(max(0.0, self._variance - self._binomial))

    @property
    def chi_squared(self) -> float:
        """Pearson's statistic: how far blocks are from having one valid rate."""
        return (self._blocks - 1) * self._variance / self._binomial

    @property
    def p_homogeneous(self) -> float | None:
        """How probable blocks of one valid rate are this unequal; None if there are too few."""
        fewer = min(self.rate, 1 - self.rate) * self._size
        if fewer < LEAST_PER_BLOCK:
            return None
        from scipy.special import chdtrc

        return float(chdtrc(self._blocks - 1, self.chi_squared))

    @property
    def unfair(self) -> bool:
        """Whether one `r_target` asks for more work in some blocks than in others."""
        p = self.p_homogeneous
        return p is not None and p < UNFAIR_BELOW

    @property
    def _blocks(self) -> int:
        return len(self.by_block)

    @property
    def _size(self) -> int:
        return len(self.by_block[0])

    @property
    def _variance(self) -> float:
        return sum((each - self.rate) ** 2 for each in self.rates) / (self._blocks - 1)

    @property
    def _binomial(self) -> float:
        return self.rate * (1 - self.rate) / self._size

    def _around(self, blocks: float) -> Interval:
        """The rate, give or take Student's t of the spread that so many blocks' worth has."""
        from scipy.special import stdtrit

        t = float(stdtrit(self._blocks - 1, (1 + CONFIDENCE) / 2))
        give = t * sqrt(max(self._variance, self._binomial) * blocks)
        return max(0.0, self.rate - give), min(1.0, self.rate + give)


def nonces_needed(valid_rate: float) -> int:
    """The nonces in all blocks together that measure a rate at all."""
    return ceil(LEAST / min(valid_rate, 1 - valid_rate))


def histogram(values: Sequence[float], bins: int) -> tuple[list[float], list[int]]:
    """The edges of `bins` equal parts of the range of sorted `values`, and how many lie in each."""
    low, high = values[0], values[-1]
    step = (high - low) / bins or 1e-9
    edges = [low + step * each for each in range(bins + 1)]
    below = [bisect_left(values, edge) for edge in edges[:-1]] + [len(values)]
    return edges, [after - before for before, after in pairwise(below)]


def _between(ordered: Sequence[float], share: float) -> float:
    """A distance with `share` of the `ordered` ones below it, in few decimals."""
    unit = 10.0**-DECIMALS
    below = round(share * len(ordered))
    if below == 0:
        return round(floor(ordered[0] / unit) * unit, DECIMALS)
    if below == len(ordered):
        return round(ceil(ordered[-1] / unit) * unit, DECIMALS)
    return round((ordered[below - 1] + ordered[below]) / 2, DECIMALS)
