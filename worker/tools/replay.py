"""A replay of evidence: what is equal when a worker computes the same batch again, and what not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from shared.data import ValidatedBatch
from shared.evidence import Evidence
from worker.tools.show import out


@dataclass(frozen=True, slots=True)
class Replay:
    """An evidence, and the verdict on its batch now."""

    evidence: Evidence
    verdict: ValidatedBatch

    @property
    def differences(self) -> list[float]:
        """The distances now less those of then, of the nonces that had one."""
        then = self.evidence.dist
        return [b - a for a, b in zip(then, self.verdict.dist, strict=True) if a is not None]

    @property
    def equal(self) -> int:
        """Nonces whose distances are the same to the last bit."""
        return self.differences.count(0.0)

    @property
    def largest(self) -> float:
        """The greatest difference, either way."""
        return max(map(abs, self.differences), default=0.0)

    @property
    def changed_sides(self) -> list[int]:
        """Nonces that are invalid by one computation and not by the other."""
        limit = self.verdict.r_target + self.verdict.dist_tolerance
        pairs = zip(self.verdict.nonces, self.evidence.dist, self.verdict.dist, strict=True)
        return [n for n, then, now in pairs if then is not None and (then > limit) != (now > limit)]

    @property
    def outcome(self) -> tuple[str, str]:
        """What it came to then, and now."""
        found = self.evidence.fraud_detected
        then = "could not compute" if found is None else _word(found=found)
        return then, _word(found=self.verdict.fraud_detected)

    @property
    def setting(self) -> dict[str, tuple[str, str]]:
        """What computed it otherwise: then, by all workers, and now."""
        now = self.verdict.profile
        found = {}
        for name in sorted(
            {*now, *(key for each in self.evidence.computed_by for key in each.profile)}
        ):
            were = sorted({each.profile.get(name, "-") for each in self.evidence.computed_by})
            if were and were != [now.get(name, "-")]:
                found[name] = (", ".join(were), now.get(name, "-"))
        return found

    def figures(self) -> dict[str, Any]:
        """What JSON has of it."""
        then, now = self.outcome
        return {
            "validation": self.evidence.validation,
            "nonces": len(self.verdict),
            "computed_then": len(self.differences),
            "equal": self.equal,
            "largest_difference": self.largest,
            "changed_sides": self.changed_sides,
            "outcome_then": then,
            "outcome_now": now,
            "n_invalid_then": self.evidence.n_invalid,
            "n_invalid_now": self.verdict.n_invalid,
            "setting": {name: {"then": a, "now": b} for name, (a, b) in self.setting.items()},
            "verdict": self.verdict.model_dump(mode="json"),
        }

    def show(self, *, as_json: bool) -> None:
        """Print one line of JSON, or a table: then, and now."""
        if as_json:
            out.print(json.dumps(self.figures()), soft_wrap=True, highlight=False, markup=False)
            return
        then, now = self.outcome
        table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
        for heading in ("", "then", "now"):
            table.add_column(heading, overflow="fold")
        was = self.evidence.probability_honest
        rows = {
            "verdict": (then, now),
            "invalid": (_or_none(self.evidence.n_invalid), str(self.verdict.n_invalid)),
            "probability": (
                "-" if was is None else f"{was:.3g}",
                f"{self.verdict.probability_honest:.3g}",
            ),
            **self.setting,
        }
        for name, (a, b) in rows.items():
            table.add_row(Text(name, style="dim"), Text(a), Text(b))
        out.print(table)
        of = len(self.differences)
        said = f"{self.equal} of {of} recomputed distances are the same to the last bit"
        if self.equal < of:
            said += f"; the others differ by up to {self.largest:.2g}"
        if missing := len(self.verdict) - of:
            said += f"; {missing} had none then"
        if changed := self.changed_sides:
            said += f"; {len(changed)} changed sides, the first is nonce {changed[0]}"
        out.print(Text(said), soft_wrap=True)


def _word(*, found: bool) -> str:
    return "FRAUD" if found else "honest"


def _or_none(value: int | None) -> str:
    return "-" if value is None else str(value)
