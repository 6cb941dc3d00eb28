"""What a self-check came to, for people and for scripts."""

from __future__ import annotations

import json
import math
from typing import Any

from rich.table import Table
from rich.text import Text

from worker.tools.calibration.mismatch import MOST_COST
from worker.tools.calibration.power import chance
from worker.tools.calibration.selfcheck import Report, Seen
from worker.tools.show import out


def show(report: Report) -> None:
    """A table of the sides, then what it means."""
    out.print(_sides(report))
    for side, why in report.missing:
        out.print(Text(f"{side.name}: not measured: {why}", style="dim"), soft_wrap=True)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in _rows(report).items():
        table.add_row(name, value if isinstance(value, Text) else Text(value))
    out.print(table)


def _sides(report: Report) -> Table:
    has_distances = report.plan.terms.has_distances
    wrong = "changed sides" if has_distances else "too far off"
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("validator", overflow="fold")
    for heading in ("equal", "std. dev.", "largest", wrong, "mismatch", "fraud"):
        table.add_column(heading, justify="right")
    for each in report.seen:
        changed, valid = each.changed
        table.add_row(
            Text(each.side.name),
            f"{each.noise.equal} of {len(each.noise.differences)}",
            f"{each.noise.spread:.1e}",
            f"{each.noise.largest:.1e}",
            f"{changed} of {valid}" + " valid" * has_distances,
            chance(each.rate),
            chance(each.flagged),
        )
    return table


def _rows(report: Report) -> dict[str, str | Text]:
    plan, worst, terms = report.plan, report.worst, report.plan.terms
    of_distances: dict[str, str | Text] = {}
    if terms.has_distances:  # elsewhere every nonce counts, and there is no margin
        of_distances = {
            "valid": f"{report.valid:.2%} of this node's nonces",
            "submit_margin": _advice(report),
        }
    verdict = (
        Text("you will pass", style="bold green")
        if report.passes
        else Text("you would be called a fraud", style="bold red")
    )
    verdict.append(
        f": the probability to be called a fraud is {chance(worst.flagged)} at worst, by "
        f"{worst.side.name}; up to {chance(plan.accepted_risk)} is accepted",
        style="not bold default",
    )
    fraud = f"from {plan.flagged_from} mismatches on" if plan.flagged_from <= plan.n else "never"
    return {
        "verdict": verdict,
        "judged by": f"{plan.n} nonces, fraud {fraud}; {terms.limits}",
        **of_distances,
        "known distances": report.known,
        "computed by": f"{report.info.device}, "
        + ", ".join(f"{name} {value}" for name, value in report.info.profile.items()),
    }


def _advice(report: Report) -> str:
    needed = max(report.seen, key=lambda each: each.margin)
    if needed.margin == 0:
        return "0 is safe"
    if math.isinf(needed.margin):
        return (
            f"none helps against {needed.side.name} at less than {MOST_COST:.0%} of the yield: it "
            "computes another model, or far less exactly"
        )
    return f"{needed.margin:g} is safe, and gives up {needed.cost:.1%} of the valid nonces"


def figures(report: Report) -> dict[str, Any]:
    """What JSON has of a check."""
    plan, config = report.plan, report.plan.config
    return {
        "passes": report.passes,
        "probability_flagged": report.worst.flagged,
        "accepted_risk": plan.accepted_risk,
        "safe_submit_margin": _finite(max(each.margin for each in report.seen)),
        "n": plan.n,
        "flagged_from": plan.flagged_from,
        "sample": plan.sample,
        "config": config.model_dump(mode="json"),
        "valid_share": report.valid,
        "known_distances": report.known,
        "model": report.info.model,
        "fingerprint": report.info.fingerprint,
        "device": report.info.device,
        "profile": report.info.profile,
        "sides": [_side(each) for each in report.seen],
        "not_measured": {side.name: why for side, why in report.missing},
    }


def _side(seen: Seen) -> dict[str, Any]:
    changed, valid = seen.changed
    return {
        "side": seen.side.name,
        "device": seen.info.device,
        "fingerprint": seen.info.fingerprint,
        "profile": seen.info.profile,
        "batch_size": seen.side.batch_size,
        "equal": seen.noise.equal,
        "mean_difference": seen.noise.mean,
        "std_difference": seen.noise.spread,
        "largest_difference": seen.noise.largest,
        "changed_sides": changed,
        "valid": valid,
        "mismatch": seen.rate,
        "probability_flagged": seen.flagged,
        "safe_submit_margin": _finite(seen.margin),
        "yield_lost": seen.cost,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def show_json(report: Report) -> None:
    """One line."""
    out.print(json.dumps(figures(report)), soft_wrap=True, highlight=False, markup=False)
