"""Bins for distances that suit every vocabulary: the larger it is, the closer they lie to sqrt(2).

A distance is sqrt(2 - 2c), where c, the cosine of two directions, is 1 / sqrt(vocab_size) wide. So
bins are of c, in steps of a quarter of that. A bin is named by its number: 0 begins at sqrt(2), and
larger numbers are larger distances.
"""

from __future__ import annotations

from math import sqrt

#: Bins from a width of c to the next.
STEPS = 4
#: The outermost bins; what lies beyond them counts in them.
LAST = 6 * STEPS


def edge(number: int, vocab_size: int) -> float:
    """The distance, 0 to 2, that bin `number` begins at."""
    return sqrt(min(max(2 + 2 * number / (STEPS * sqrt(vocab_size)), 0.0), 4.0))


def place(distance: float, vocab_size: int) -> float:
    """Where a distance lies: the number of its bin and how far it is into it."""
    return (distance * distance / 2 - 1) * STEPS * sqrt(vocab_size)
