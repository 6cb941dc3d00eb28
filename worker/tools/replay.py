"""A replay of evidence: what is equal when a worker computes the same batch again, and what not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from shared.evidence import Evidence
from shared.schemes import Verdict
from worker.tools.show import out


@dataclass(frozen=True, slots=True)
class Replay:
    """An evidence, and the verdict on its batch now."""

    evidence: Evidence
    verdict: Verdict

    @property
    def differences(self) -> list[float]:
        """How far the proofs of then and of now lie from each other, of nonces that have both."""
        terms = self.evidence.config.terms
        pairs = zip(self.evidence.proofs, self.verdict.proofs, strict=True)
        return [terms.apart(a, b) for a, b in pairs if a is not None and b is not None]

    @property
    def equal(self) -> int:
        """Nonces whose proofs are the same to the last bit."""
        return self.differences.count(0.0)

    @property
    def largest(self) -> float:
        """The greatest difference, either way."""
        return max(self.differences, default=0.0)

    @property
    def changed_sides(self) -> list[int]:
        """Nonces that are invalid by one computation and not by the other."""
        wrong, batch = self.evidence.config.terms.is_wrong, self.evidence.batch
        four = zip(
            batch.nonces,
            batch.claims or (),
            self.evidence.proofs,
            self.verdict.proofs,
            strict=True,
        )
        return [
            nonce
            for nonce, claim, then, now in four
            if then is not None and now is not None and wrong(claim, then) != wrong(claim, now)
        ]

    @property
    def outcome(self) -> tuple[str, str]:
        """What it came to then, and now."""
        found = self.evidence.fraud_detected
        then = "could not compute" if found is None else _word(found=found)
        return then, _word(found=self.verdict.is_fraud)

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
        (then, now), now_ended = self.outcome, self.verdict.ended
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
            "n_invalid_now": now_ended.n_invalid if now_ended else None,
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
        was, ended = self.evidence.probability_honest, self.verdict.ended
        rows = {
            "verdict": (then, now),
            "invalid": (_or_none(self.evidence.n_invalid), _or_none(ended and ended.n_invalid)),
            "probability": (
                "-" if was is None else f"{was:.3g}",
                "-" if ended is None else f"{ended.probability_honest:.3g}",
            ),
            **self.setting,
        }
        for name, (a, b) in rows.items():
            table.add_row(Text(name, style="dim"), Text(a), Text(b))
        out.print(table)
        of = len(self.differences)
        said = f"{self.equal} of {of} recomputed proofs are the same to the last bit"
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
