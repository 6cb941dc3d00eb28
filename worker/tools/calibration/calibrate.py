"""`poc calibrate`: which `r_target` gives a valid rate, measured on the deployed model.

block hashes ──▶ engine ──▶ distances of each block ──▶ Calibration ──▶ table, JSON, picture
"""

from __future__ import annotations

import json as jsonlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from rich.bar import Bar
from rich.table import Table
from rich.text import Text

from shared.config import PoCConfig
from shared.errors import ConfigError, EngineError
from shared.schemes.distance import Distance, r_target_for, share_below
from shared.settings import Settings
from worker.engines import EngineInfo
from worker.queue.app import pin
from worker.tools import svg
from worker.tools.calibration import rate
from worker.tools.calibration.compute import distances, loaded
from worker.tools.calibration.rate import Calibration
from worker.tools.show import counting, news, out

#: Rows of the histogram on a terminal, and columns of that in a picture.
ROWS, COLUMNS = 16, 60


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: `nonces` of each of so many `blocks`."""

    valid_rate: float = 0.1
    blocks: int = 8
    nonces: int = 512
    seq_len: int = 256
    batch_size: int = 32
    strong_rng: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.valid_rate < 1:
            raise ConfigError(f"--valid-rate {self.valid_rate:g}: must be above 0 and below 1")
        needed = rate.nonces_needed(self.valid_rate)
        if self.blocks * self.nonces < needed:
            raise ConfigError(
                f"--valid-rate {self.valid_rate:g} of {self.blocks} x {self.nonces} nonces is "
                f"fewer than {rate.LEAST}, which measures nothing; give at least "
                f"--nonces {-(-needed // self.blocks)}"
            )

    def config(self, block: int) -> PoCConfig:
        """What the nonces of a block are computed by; no chain has these blocks."""
        return PoCConfig(
            block_hash=f"calibrate-{block}",
            block_height=block,
            public_key="calibrate",
            terms=Distance(r_target=2.0),
            batch_size=self.batch_size,
            seq_len=self.seq_len,
            strong_rng=self.strong_rng,
        )


def run(
    settings: Settings, plan: Plan, *, json: bool = False, picture: Path | None = None
) -> Calibration:
    """Measure, and print a report or with `json` one line of JSON; a `picture` as SVG.

    Raises `ConfigError` if the engine can't be loaded or has no such positions, and `EngineError`
    if it can't compute.
    """
    if picture and not picture.absolute().parent.is_dir():
        raise ConfigError(f"--picture {picture}: there is no directory for it")
    pin(settings)
    with news.status("loading the model") as status, loaded(settings) as engine:
        try:
            engine.info.check_length(plan.seq_len)
        except EngineError as error:
            raise ConfigError(str(error)) from None
        status.stop()
        with counting("computing", plan.blocks * plan.nonces) as done:
            nonces = range(plan.nonces)
            by_block = [
                distances(engine, plan.config(each), nonces, done) for each in range(plan.blocks)
            ]
        info = engine.info
    found = Calibration(by_block, plan.valid_rate)
    if picture:
        picture.write_text(picture_of(found, info), encoding="utf-8")
    if json:
        line = jsonlib.dumps(figures(found, plan, info))
        out.print(line, soft_wrap=True, highlight=False, markup=False)
    else:
        show(found, info)
    return found


def figures(found: Calibration, plan: Plan, info: EngineInfo) -> dict[str, object]:
    """What JSON has of a calibration."""
    tested = found.p_homogeneous is not None
    return {
        "model": info.model,
        "fingerprint": info.fingerprint,
        "device": info.device,
        "profile": info.profile,
        "vocab_size": info.vocab_size,
        "seq_len": plan.seq_len,
        "strong_rng": plan.strong_rng,
        "blocks": plan.blocks,
        "nonces_per_block": plan.nonces,
        "valid_rate": plan.valid_rate,
        "r_target": found.r_target,
        "r_target_interval": found.r_interval,
        "rate_of_blocks": found.rates,
        "rate_of_next_block": found.next_block,
        "r_target_of_blocks": found.r_of_blocks,
        "best_over_worst": found.ratio,
        "excess_spread": found.excess,
        "chi_squared": found.chi_squared if tested else None,
        "p_homogeneous": found.p_homogeneous,
        "unfair": found.unfair,
        "ideal_r_target": r_target_for(plan.valid_rate, info.vocab_size),
        "ideal_rate": share_below(found.r_target, info.vocab_size),
    }


def show(found: Calibration, info: EngineInfo) -> None:
    """A report for people."""
    out.print(_histogram(found))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    sure = f"{rate.CONFIDENCE:.0%}"
    rows = {
        "r_target": f"{found.r_target:.6f} for a valid rate of {found.valid_rate:g}",
        "interval": f"{_span(found.r_interval, '.6f')} ({sure}, over all blocks)",
        "blocks": f"{_span((min(found.rates), max(found.rates)), '.2%')} valid in "
        f"{len(found.rates)} blocks of {len(found.by_block[0]):,} nonces",
        "next block": f"{_span(found.next_block, '.2%')} valid ({sure})",
        "test": _test(found),
        "ideal model": f"{share_below(found.r_target, info.vocab_size):.2%} valid at this "
        f"r_target; {r_target_for(found.valid_rate, info.vocab_size):.6f} for {found.valid_rate:g}",
        "computed by": f"{info.device}, "
        + ", ".join(f"{name} {value}" for name, value in info.profile.items()),
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    out.print(table)
    if found.unfair:
        news.print(Text(_warning(found), style="yellow"), soft_wrap=True)


def _test(found: Calibration) -> str:
    p = found.p_homogeneous
    if p is None:
        return (
            "too few valid nonces in a block to compare blocks: "
            f"{rate.LEAST_PER_BLOCK} are needed, so give more --nonces"
        )
    return (
        f"blocks of one rate are this unequal with p = {p:.2g} "
        f"(chi-squared {found.chi_squared:.1f}, {len(found.rates) - 1} degrees of freedom)"
    )


def _warning(found: Calibration) -> str:
    best = f"{found.ratio:.2f} times the" if found.ratio else "more than none, the"
    return (
        f"warning: one r_target is unfair: the best block has {best} valid rate of the worst, and "
        f"blocks differ by {found.excess:.2%} beyond chance. Blocks alone would want "
        f"{_span(found.r_of_blocks, '.6f')}. Compare nodes within a block only"
    )


def _span(interval: tuple[float, float], form: str) -> str:
    return f"{interval[0]:{form}} to {interval[1]:{form}}"


def _histogram(found: Calibration) -> Table:
    edges, counts = rate.histogram(found.distances, ROWS)
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("distance", no_wrap=True)
    table.add_column("nonces", justify="right", no_wrap=True)
    table.add_column("", width=40)
    for (low, high), count in zip(pairwise(edges), counts, strict=True):
        color = "green" if _is_valid(low, high, found) else "blue"
        table.add_row(f"{low:.5f}", f"{count:,}", Bar(max(counts), 0, count, color=color))
    return table


def _is_valid(low: float, high: float, found: Calibration) -> bool:
    return (low + high) / 2 < found.r_target


# The picture.

_LEFT, _TALL = 40, 220


def picture_of(found: Calibration, info: EngineInfo) -> str:
    """Distances of all blocks, those of an ideal model, and the rate of each block, as SVG."""
    edges, counts = rate.histogram(found.distances, COLUMNS)
    low, high, total = edges[0], edges[-1], len(found.distances)
    ideal = [
        (share_below(b, info.vocab_size) - share_below(a, info.vocab_size)) * total
        for a, b in pairwise(edges)
    ]
    wide = (svg.WIDTH - 2 * _LEFT) / COLUMNS
    top, scale = 50, _TALL / max(*counts, *ideal)
    base = top + _TALL
    drawn = [svg.title(26, f"distances of {info.model} and an r_target for {found.valid_rate:g}")]
    for at, ((start, end), count) in enumerate(zip(pairwise(edges), counts, strict=True)):
        fill = svg.OURS if _is_valid(start, end, found) else svg.OTHERS
        tall = round(count * scale, 1)
        drawn.append(
            f'<rect x="{_LEFT + at * wide:.1f}" y="{base - tall:.1f}" width="{wide - 1:.1f}" '
            f'height="{tall}" fill="{fill}"/>'
        )
    points = " ".join(
        f"{_LEFT + (at + 0.5) * wide:.1f},{base - each * scale:.1f}"
        for at, each in enumerate(ideal)
    )
    drawn.append(f'<polyline points="{points}" fill="none" stroke="#c4572e" stroke-width="1.5"/>')
    x = _LEFT + (found.r_target - low) / (high - low or 1) * (svg.WIDTH - 2 * _LEFT)
    drawn += [
        f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{base}" stroke="#222"/>',
        svg.note(x, top - 6, f"r_target {found.r_target:.6f}", "middle"),
        svg.note(_LEFT, base + 18, f"{low:.4f}"),
        svg.note(svg.WIDTH - _LEFT, base + 18, f"{high:.4f}", "end"),
        svg.note(svg.WIDTH / 2, base + 18, "line: an ideal model of this vocabulary", "middle"),
        svg.title(base + 50, "valid nonces of each block"),
    ]
    y = base + 50.0
    longest = max(found.rates)
    for block, share in enumerate(found.rates):
        y += svg.ROW
        drawn += svg.bar(y, f"block {block}", share / longest, f"{share:.2%}", svg.OURS)
    drawn.append(svg.note(10, y + svg.ROW, _test(found)))
    return svg.document(y + svg.ROW + 16, drawn)
