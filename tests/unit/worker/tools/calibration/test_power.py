"""How often an honest node is flagged and a cheat is found."""

from __future__ import annotations

import json

import pytest

from worker.tools.calibration.power import Odds, Question, chance, run

ASKED = Question(p_mismatch=5e-4, fraud_threshold=0.01, honest_rate=0.01, cheat_rate=0.05)


@pytest.mark.parametrize(("n", "k"), [(50, 2), (200, 2), (1000, 4)])
def test_the_odds_are_binomial_tails(n: int, k: int) -> None:
    """By another implementation of the same distribution."""
    from scipy.stats import binom  # slow to import, and needed nowhere else

    odds = Odds.of(n, ASKED)
    assert odds.flagged_from == k
    assert odds.honest_flagged == pytest.approx(binom.sf(k - 1, n, 0.01))
    assert odds.cheat_found == pytest.approx(binom.sf(k - 1, n, 0.05))


def test_most_honest_nodes_are_flagged_at_the_published_values() -> None:
    """Given 200 nonces and 1% that change sides by noise, as docs/numerics.md has it."""
    assert 0.5 < Odds.of(200, ASKED).honest_flagged < 0.7


def test_nobody_is_flagged_by_a_sample_that_is_too_small() -> None:
    """Given a threshold below what even mismatches of all nonces have, then it is never fraud."""
    asked = Question(0.5, 0.1, honest_rate=1.0, cheat_rate=1.0)
    assert Odds.of(3, asked) == Odds(3, 4, 0.0, 0.0)


def test_json_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    run(ASKED, [200], json=True)
    (line,) = capsys.readouterr().out.splitlines()
    said = json.loads(line)
    assert said["samples"][0]["flagged_from"] == 2
    assert said["honest_rate"] == 0.01


def test_the_table_says_what_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    run(ASKED, [3, 200])
    said = " ".join(capsys.readouterr().out.split())
    assert "200 2 59.5% >99.9%" in said
    assert "honest: 1.0% of its nonces mismatch; cheat: 5.0%" in said
    assert "p_mismatch 0.0005, fraud below 0.01" in said


@pytest.mark.parametrize(
    ("p", "shown"),
    [
        (0, "0%"),
        (1e-7, "<0.0001%"),
        (0.00000612, "0.00061%"),
        (0.0004, "0.04%"),
        (0.0153, "1.5%"),
        (0.99999, ">99.9%"),
        (1, "100%"),
    ],
)
def test_a_chance_is_never_rounded_to_certainty(p: float, shown: str) -> None:
    assert chance(p) == shown
