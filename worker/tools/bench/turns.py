"""Candidates take turns, so that all of them meet the same machine.

What a device gives depends on what it did a moment ago and on who shares it. So turns are short and
many, nobody always follows the same one, and a ratio is taken between the turns of one round of
turns.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")

#: Seconds of the turn that comes before all others and does not count, at most.
WARM_UP_S = 1.0


class Candidate(Protocol):
    """Something that computes nonces."""

    @property
    def name(self) -> str:
        """What it is called in figures."""
        ...

    def turn(self, seconds: float) -> tuple[float, float]:
        """Compute for about `seconds`: the nonces, and the seconds that they took."""
        ...


@dataclass(frozen=True, slots=True)
class Rates:
    """Nonces per second of one candidate, one figure a round of turns."""

    turns: tuple[float, ...]

    @property
    def median(self) -> float:
        """What is reported."""
        return statistics.median(self.turns)

    @property
    def spread(self) -> tuple[float, float]:
        """The slowest and the fastest turn."""
        return min(self.turns), max(self.turns)

    def over(self, other: Rates) -> float:
        """The median of the ratios to `other`, each between turns of the same round."""
        return statistics.median(a / b for a, b in zip(self.turns, other.turns, strict=True))


def in_turn(candidates: Sequence[T], index: int) -> list[T]:
    """All of them, in the order of one round of turns.

    In as many rounds as there are of them, if that is even, each comes behind each of the others
    once, and takes each place once: a Latin square as E. J. Williams balanced it (1949).
    """
    count = len(candidates)
    zigzag = (-(place // 2) if place % 2 == 0 else place // 2 + 1 for place in range(count))
    return [candidates[(index + step) % count] for step in zigzag]


def interleave(
    candidates: Sequence[Candidate],
    seconds: float,
    rounds: int,
    say: Callable[[str, str], object] = lambda *_: None,
) -> Mapping[str, Rates]:
    """The rates of `candidates` by name, each measured in `rounds` turns of `seconds`.

    `say` is told of each turn before it begins: which, and whose.
    """
    for each in candidates:
        say("warming up", each.name)
        each.turn(min(seconds, WARM_UP_S))
    turns: dict[str, list[float]] = {each.name: [] for each in candidates}
    for index in range(rounds):
        for each in in_turn(candidates, index):
            say(f"turn {index + 1} of {rounds}", each.name)
            nonces, spent = each.turn(seconds)
            turns[each.name].append(nonces / spent)
    return {name: Rates(tuple(rates)) for name, rates in turns.items()}
