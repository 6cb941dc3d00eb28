"""The power of a validation: how often it accuses an honest node, and how often it finds a cheat.

Pure arithmetic: all of it follows from the binomial test of a verdict.
"""

from __future__ import annotations

import json as jsonlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.table import Table
from rich.text import Text

from shared.odds import at_least, flagged_from
from shared.schemes import Terms
from worker.tools.show import out

#: Nonces in a sample, unless others are asked for.
SAMPLES = (50, 100, 200, 500, 1000, 2000)


@dataclass(frozen=True, slots=True)
class Question:
    """What a network judges by, and the rates of mismatches that two nodes have."""

    p_mismatch: float
    fraud_threshold: float
    honest_rate: float
    cheat_rate: float

    @classmethod
    def of(
        cls,
        scheme: type[Terms],
        p_mismatch: float | None = None,
        fraud_threshold: float | None = None,
        honest_rate: float | None = None,
        cheat_rate: float | None = None,
    ) -> Question:
        """What is given, and else what the scheme has; an honest node is as the network says."""
        usual = scheme.usual()
        p = usual.p_mismatch if p_mismatch is None else p_mismatch
        return cls(
            p,
            usual.fraud_below if fraud_threshold is None else fraud_threshold,
            p if honest_rate is None else honest_rate,
            usual.cheat_rate if cheat_rate is None else cheat_rate,
        )


@dataclass(frozen=True, slots=True)
class Odds:
    """What a sample of `n` nonces can tell."""

    n: int
    #: Mismatches from which on it is fraud; `n` + 1 where no number is.
    flagged_from: int
    honest_flagged: float
    cheat_found: float

    @classmethod
    def of(cls, n: int, asked: Question) -> Odds:
        """The odds of a sample of `n`."""
        k = flagged_from(n, asked.p_mismatch, asked.fraud_threshold)
        return cls(n, k, at_least(k, n, asked.honest_rate), at_least(k, n, asked.cheat_rate))


def run(asked: Question, samples: Sequence[int], *, json: bool = False) -> None:
    """Print the odds of each sample as a table or, with `json`, as one line."""
    rows = [Odds.of(n, asked) for n in samples]
    if json:
        line = jsonlib.dumps(asdict(asked) | {"samples": [asdict(each) for each in rows]})
        out.print(line, soft_wrap=True, highlight=False, markup=False)
        return
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("nonces", "fraud from", "honest flagged", "cheat found"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in rows:
        mismatches = str(each.flagged_from) if each.flagged_from <= each.n else "never"
        table.add_row(
            str(each.n), mismatches, chance(each.honest_flagged), chance(each.cheat_found)
        )
    out.print(table)
    out.print(
        Text(
            f"honest: {chance(asked.honest_rate)} of its nonces mismatch; "
            f"cheat: {chance(asked.cheat_rate)}\n"
            f"judged by: p_mismatch {asked.p_mismatch:g}, fraud below {asked.fraud_threshold:g}",
            style="dim",
        )
    )


def chance(p: float) -> str:
    """A probability for people, in percent: 0% is never, and 100% is always."""
    if p in (0, 1):
        return f"{p:.0%}"
    if p < 1e-6:
        return "<0.0001%"
    if p >= 0.9995:
        return ">99.9%"
    return f"{p:.1%}" if p >= 0.01 else f"{float(f'{100 * p:.2g}'):f}".rstrip("0") + "%"
