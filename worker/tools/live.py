"""The view that moves: a node as it is, how its rate went, and how long it still goes on."""

from __future__ import annotations

import time
from collections import deque

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from worker.tools.show import Seen, node_view

#: Samples of the rate that are shown, one a look.
SAMPLES = 60
_LEVELS = "▁▂▃▄▅▆▇█"


class LiveView:
    """Fed with each look at a node; what it gives is to be shown in the place of the last."""

    def __init__(self, seconds: float | None = None) -> None:
        """`seconds` is how long it goes on from now; None for as long as somebody looks."""
        self._seconds, self._began = seconds, time.monotonic()
        self._round_id = ""
        self._rates: deque[float] = deque(maxlen=SAMPLES)

    def after(self, seen: Seen | None, trouble: str = "") -> RenderableType:
        """The view after one more look; see `node_view`."""
        if seen is not None and not trouble:
            status = seen.round
            if status.round_id != self._round_id:
                self._round_id = status.round_id
                self._rates.clear()
            self._rates.append(status.recent_rate_per_second)
        parts = [node_view(seen, trouble)]
        if self._seconds is not None:
            parts = [self._countdown(self._seconds), Text(), *parts]
        if len(self._rates) > 1 and max(self._rates) > 0:
            parts += [Text(), _Sparkline(list(self._rates))]
        return Group(*parts)

    def _countdown(self, seconds: float) -> RenderableType:
        gone = min(time.monotonic() - self._began, seconds)
        line = Table.grid(padding=(0, 2))
        line.add_row(
            ProgressBar(total=seconds, completed=gone, width=40),
            Text(f"{seconds - gone:.0f} s to go", style="cyan"),
        )
        return line


class _Sparkline:
    """Rates as little bars; nothing where the terminal has no such characters."""

    def __init__(self, rates: list[float]) -> None:
        self._rates = rates

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.ascii_only:
            return
        top = max(self._rates)
        bars = "".join(_LEVELS[round(rate / top * (len(_LEVELS) - 1))] for rate in self._rates)
        yield Text.assemble(("rate  ", "dim"), (bars, "green"), (f"  up to {top:,.1f}/s", "dim"))
