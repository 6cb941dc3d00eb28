"""The view that moves: how a rate went, and how long it still goes on."""

from __future__ import annotations

import io

import pytest
from rich.console import Console, RenderableType

from shared.status import GpuReading, RoundStatus, WorkerStatus
from support import Clock
from worker.tools import live
from worker.tools.live import SAMPLES, LiveView
from worker.tools.show import Seen


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(live, "time", clock)
    return clock


def text_of(view: RenderableType, encoding: str = "utf-8", width: int = 120) -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
    Console(file=file, width=width, force_terminal=True, color_system=None).print(view)
    file.flush()
    file.seek(0)
    return file.read()


def round_at(rate: float, round_id: str = "r") -> Seen:
    return Seen(RoundStatus(round_id=round_id, recent_rate_per_second=rate), [], [])


def spark(view: RenderableType) -> str:
    """The little bars; empty if there are none."""
    bars = [line for line in text_of(view).splitlines() if "up to" in line]
    return bars[0].split()[1] if bars else ""


def test_the_rate_is_drawn_from_the_second_look_on() -> None:
    """The highest one is a full bar."""
    view = LiveView()
    assert spark(view.after(round_at(50))) == ""
    view.after(round_at(100))
    assert spark(view.after(round_at(0))) == "▅█▁"


def test_the_newest_rates_are_drawn() -> None:
    view = LiveView()
    for _ in range(SAMPLES):
        view.after(round_at(100))
    bars = spark(view.after(round_at(50)))
    assert len(bars) == SAMPLES
    assert bars.endswith("█▅")


def test_a_new_round_is_drawn_anew() -> None:
    view = LiveView()
    view.after(round_at(100))
    view.after(round_at(100))
    assert spark(view.after(round_at(50, "another"))) == ""


def test_a_look_that_failed_draws_nothing_new() -> None:
    """And says why."""
    view = LiveView()
    view.after(round_at(100))
    seen = round_at(100)
    view.after(seen)
    after = view.after(seen, "Redis is away")
    assert spark(after) == "██"
    assert "shown as last seen: Redis is away" in text_of(after)


def test_a_terminal_without_such_characters_has_none() -> None:
    view = LiveView()
    view.after(round_at(100))
    assert "?" not in text_of(view.after(round_at(100)), encoding="ascii")


def test_what_ends_is_counted_down(clock: Clock) -> None:
    """To nothing, and no further."""
    view = LiveView(seconds=20)
    clock.now += 5
    assert "15 s to go" in text_of(view.after(round_at(1)))
    clock.now += 50
    assert "0 s to go" in text_of(view.after(round_at(1)))


def test_what_goes_on_has_no_countdown() -> None:
    assert "to go" not in text_of(LiveView().after(round_at(1)))


def test_a_worker_shows_its_gpu_where_it_has_one() -> None:
    """What the card does not tell is left out."""
    card = GpuReading(
        utilization=0.97,
        memory_used_bytes=61 << 30,
        memory_total_bytes=80 << 30,
        temperature_celsius=64,
        power_watts=612.3,
    )
    workers = [
        WorkerStatus(name="a", gpus=[card]),
        WorkerStatus(name="b", gpus=[GpuReading(temperature_celsius=90)]),
    ]
    shown = text_of(LiveView().after(Seen(RoundStatus(), workers, [])))
    assert "97%  61 of 80 GiB  64 °C  612 W" in shown
    assert "90 °C" in shown
    assert "GPU" not in text_of(LiveView().after(Seen(RoundStatus(), [WorkerStatus(name="c")], [])))
