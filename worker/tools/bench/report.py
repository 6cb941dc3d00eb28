"""What was measured, as a table, as JSON, and as a picture."""

from __future__ import annotations

import json as jsonlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.bar import Bar
from rich.table import Table
from rich.text import Text

from shared.config import PoCConfig
from worker.engines import EngineInfo
from worker.engines.base import tile_of
from worker.tools import svg
from worker.tools.bench.candidates import Sample
from worker.tools.bench.turns import Rates
from worker.tools.show import out

#: What each candidate is called, in the order of the rows.
LABELS = {
    "limit": "FLOP limit",
    "forward": "forward only",
    "engine": "engine alone",
    "round": "end to end",
    "distance": "end to end, distance",
    "published_our_forward": "published, our forward",
    "published": "published",
}
#: How far the turns of one candidate may be apart, as a ratio, on a machine that is ours.
STEADY = 1.5
#: The ratios that matter: one candidate over another.
RATIOS = (
    ("round", "forward"),
    ("round", "engine"),
    ("round", "distance"),
    ("round", "published"),
    ("round", "published_our_forward"),
    ("forward", "limit"),
)


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement: rates by candidate, why others are missing, and more of the round."""

    info: EngineInfo
    config: PoCConfig
    rates: Mapping[str, Rates]
    missing: Mapping[str, str]
    samples: Sequence[Sample]
    start_s: Sequence[float]

    @property
    def tile(self) -> int:
        """Sequences in one forward."""
        return tile_of(self.info.tile, self.info.max_tokens, self.config.seq_len)

    @property
    def ratios(self) -> dict[tuple[str, str], float]:
        """Of the `RATIOS` those whose both sides were measured."""
        rates = self.rates
        return {
            (one, other): rates[one].over(rates[other])
            for one, other in RATIOS
            if one in rates and other in rates
        }

    def of_round(self, figure: Callable[[Sample], float]) -> float:
        """The median of a figure of the round's turns."""
        return statistics.median(figure(each) for each in self.samples)

    @property
    def batch_ms(self) -> float:
        """Milliseconds that the round took for a batch."""
        return self.of_round(lambda each: each.seconds_for(self.config.batch_size)) * 1000

    def figures(self) -> dict[str, Any]:
        """What JSON has of it."""
        return {
            "model": self.info.model,
            "device": self.info.device,
            "profile": self.info.profile,
            "tile": self.tile,
            "scheme": self.config.scheme,
            "seq_len": self.config.seq_len,
            "batch_size": self.config.batch_size,
            "nonces_per_second": {
                name: {
                    "median": round(rates.median, 3),
                    "turns": [round(each, 3) for each in rates.turns],
                }
                for name, rates in self.rates.items()
            },
            "not_measured": dict(self.missing),
            "ratios": {
                f"{one}/{other}": round(ratio, 4) for (one, other), ratio in self.ratios.items()
            },
            "engine_busy_share": round(self.of_round(lambda each: each.busy), 4),
            "batch_ms": round(self.batch_ms, 3),
            "batches": sum(each.nonces for each in self.samples) // self.config.batch_size,
            "start_ms": round(statistics.median(self.start_s) * 1000, 1),
        }


def show_json(points: Sequence[Point]) -> None:
    """One line."""
    line = jsonlib.dumps({"points": [each.figures() for each in points]})
    out.print(line, soft_wrap=True, highlight=False, markup=False)


def show_table(points: Sequence[Point]) -> None:
    """A table of each point; several were measured one after the other."""
    for point in points:
        out.print(Text(_title(point), style="bold"))
        out.print(_rates_table(point))
        out.print(_ratios_table(point))
        out.print("Each is the median of the ratios of turns side by side.")
        if (apart := max(_apart(each) for each in point.rates.values())) > STEADY:
            out.print(
                f"Turns of one candidate differ by up to {apart:.1f} times: something else has "
                "this machine. Run it again when it is quiet, or with more --rounds."
            )
        out.print()
    if len({each.info.tile for each in points}) > 1:
        out.print("Each tile was loaded and measured after the one before: in other turns.")
    out.print(Text(f"on {_where(points)}"))


def _apart(rates: Rates) -> float:
    """How many times as fast the fastest turn is as the slowest."""
    low, high = rates.spread
    return high / low


def _title(point: Point) -> str:
    config = point.config
    return f"batches of {config.batch_size} x {config.seq_len}, tiles of {point.tile}"


def _where(points: Sequence[Point]) -> str:
    info = points[0].info
    return ", ".join(filter(None, (info.device, info.profile.get("dtype"), info.model)))


def _rates_table(point: Point) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("nonces per second", no_wrap=True)
    table.add_column("median", justify="right", no_wrap=True)
    table.add_column("turns", justify="right", no_wrap=True)
    table.add_column("", width=20, overflow="fold")
    longest = max(each.median for each in point.rates.values())
    for name, label in LABELS.items():
        if name in point.rates:
            rates = point.rates[name]
            low, high = rates.spread
            bar = Bar(longest, 0, rates.median, color="green" if name == "round" else "blue")
            table.add_row(label, f"{rates.median:,.1f}", f"{low:,.1f}-{high:,.1f}", bar)
        elif name in point.missing:
            table.add_row(label, "-", "", Text(f"not measured: {point.missing[name]}"))
    return table


def _ratios_table(point: Point) -> Table:
    table = Table.grid(padding=(0, 2))
    for (one, other), ratio in point.ratios.items():
        shown = f"{ratio:.1%}" if ratio < 2 else f"{ratio:.2f} times"
        table.add_row(f"{LABELS[one]} over {LABELS[other]}", shown)
    busy = point.of_round(lambda each: each.busy)
    table.add_row("engine busy, end to end", f"{busy:.1%} of {point.batch_ms:,.1f} ms a batch")
    start_ms = statistics.median(point.start_s) * 1000
    table.add_row("start", f"{start_ms:,.1f} ms from the command to the first batch")
    return table


def picture_of(points: Sequence[Point]) -> str:
    """Bars of all points on one scale, as SVG."""
    longest = max(rates.median for point in points for rates in point.rates.values())
    drawn: list[str] = []
    y = 10
    for point in points:
        y += svg.ROW
        drawn.append(svg.title(y, _title(point)))
        for name, label in LABELS.items():
            if name in point.rates:
                y += svg.ROW
                rate = point.rates[name].median
                fill = svg.OURS if name == "round" else svg.OTHERS
                drawn += svg.bar(y, label, rate / longest, f"{rate:,.1f}", fill)
        y += svg.ROW // 2
    y += svg.ROW
    drawn.append(svg.note(10, y, f"nonces per second on {_where(points)}"))
    return svg.document(y + 16, drawn)
