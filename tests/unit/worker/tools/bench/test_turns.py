"""Candidates take turns, and what is made of their figures."""

from __future__ import annotations

from itertools import pairwise, permutations

import pytest

from worker.tools.bench.turns import WARM_UP_S, Rates, in_turn, interleave


class Scripted:
    """A candidate whose turns give what was written down for them, the warm-up first."""

    def __init__(self, name: str, log: list[str], *rates: float) -> None:
        self.name, self._log, self._rates = name, log, list(rates)
        self.asked: list[float] = []

    def turn(self, seconds: float) -> tuple[float, float]:
        self._log.append(self.name)
        self.asked.append(seconds)
        return self._rates.pop(0) * 2.0, 2.0


def test_each_round_has_a_turn_of_each_and_begins_with_another() -> None:
    log: list[str] = []
    interleave([Scripted(name, log, 1, 1, 1, 1) for name in "abc"], seconds=2.0, rounds=3)
    warm_up, *rounds = ("".join(log[at : at + 3]) for at in range(0, 12, 3))
    assert warm_up == "abc"
    assert rounds == ["abc", "bca", "cab"]


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_nobody_always_comes_after_the_same_neighbours_heat(count: int) -> None:
    """In as many rounds as there are candidates each follows each of the others once."""
    rounds = [in_turn(range(count), index) for index in range(count)]
    assert all(sorted(each) == list(range(count)) for each in rounds)
    followed = [pair for each in rounds for pair in pairwise(each)]
    assert sorted(followed) == sorted(permutations(range(count), 2))


def test_the_warm_up_does_not_count_and_is_short() -> None:
    candidate = Scripted("a", [], 1000, 10, 12, 11)
    rates = interleave([candidate], seconds=3.0, rounds=3)["a"]
    assert rates.turns == (10, 12, 11)
    assert candidate.asked == [WARM_UP_S, 3.0, 3.0, 3.0]


def test_the_median_is_reported_and_the_spread_beside_it() -> None:
    """One turn that somebody disturbed moves neither the figure nor out of sight."""
    rates = Rates((10.0, 2.0, 11.0))
    assert rates.median == 10.0
    assert rates.spread == (2.0, 11.0)


def test_a_ratio_is_of_turns_side_by_side() -> None:
    """Given a machine that slows down by half, both sides do, and the ratio stays."""
    assert Rates((9.0, 4.5, 4.5)).over(Rates((10.0, 5.0, 5.0))) == pytest.approx(0.9)


def test_it_is_told_what_comes() -> None:
    """What takes long says what it does."""
    said: list[str] = []

    def say(turn: str, name: str) -> None:
        said.append(f"{turn}: {name}")

    interleave([Scripted("a", [], 1, 1)], seconds=1.0, rounds=1, say=say)
    assert said == ["warming up: a", "turn 1 of 1: a"]
