"""What was measured: figures, ratios, and a picture."""

from __future__ import annotations

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from shared.config import PoCConfig
from support import changed
from worker.engines import EngineInfo
from worker.tools.bench.candidates import Sample
from worker.tools.bench.report import Point, picture_of, show_json, show_table
from worker.tools.bench.turns import Rates

INFO = EngineInfo("a <model>", "cpu", "f", 16, 8, 64, {"dtype": "float32"}, tile=8)


@pytest.fixture
def point(config: PoCConfig) -> Point:
    """A round at 90 of the 100 nonces a second that its forward can; no opponent."""
    rates = {"forward": Rates((100.0, 100.0, 50.0)), "round": Rates((90.0, 88.0, 45.0))}
    samples = [Sample(nonces=40, seconds=2.0, busy_seconds=1.9)]
    return Point(INFO, config, rates, {"limit": "nobody knows"}, samples, [0.004])


def test_a_ratio_needs_both_sides(point: Point) -> None:
    """No side of it comes from another run."""
    assert point.ratios == {("round", "forward"): pytest.approx(0.9)}


def test_json_is_one_line_with_every_turn(point: Point, capsys: pytest.CaptureFixture[str]) -> None:
    show_json([point])
    (line,) = capsys.readouterr().out.splitlines()
    (figures,) = json.loads(line)["points"]
    assert figures["nonces_per_second"]["round"] == {"median": 88.0, "turns": [90.0, 88.0, 45.0]}
    assert figures["ratios"] == {"round/forward": 0.9}
    assert figures["not_measured"] == {"limit": "nobody knows"}
    assert figures["tile"] == 8
    assert (figures["engine_busy_share"], figures["batch_ms"]) == (0.95, 200.0)


def test_a_table_says_what_was_not_measured(
    point: Point, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.tools.bench.report.out.width", 120, raising=False)
    show_table([point])
    said = " ".join(capsys.readouterr().out.split())
    assert "end to end over forward only 90.0%" in said
    assert "nobody knows" in said
    assert "the median of the ratios of turns side by side" in said


def test_a_table_warns_of_a_machine_that_is_busy(
    point: Point, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given turns that are far apart, the figures are worth little."""
    show_table([point])
    assert "differ by up to 2.0 times" in " ".join(capsys.readouterr().out.split())
    show_table([replace(point, rates={"round": Rates((90.0, 88.0, 80.0))})])
    assert "differ by" not in capsys.readouterr().out


@pytest.mark.parametrize("loaded", [(8, 8), (8, 16)], ids=["one engine", "two engines"])
def test_points_of_several_engines_are_told_apart(
    loaded: tuple[int, int], point: Point, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given lengths that leave fewer sequences of a tile, all points are still of one engine."""
    points = [
        replace(
            point,
            info=replace(INFO, tile=tile, max_tokens=64),
            config=changed(point.config, seq_len=seq_len),
        )
        for tile, seq_len in zip(loaded, (8, 16), strict=True)
    ]
    show_table(points)
    said = "Each tile was loaded" in capsys.readouterr().out
    assert said == (len(set(loaded)) > 1)


def test_a_picture_has_a_bar_for_each_figure(point: Point) -> None:
    """Well-formed whatever a model is called, and the longest bar is the fastest."""
    svg = ElementTree.fromstring(picture_of([point]))
    texts = [each.text or "" for each in svg.iter("{http://www.w3.org/2000/svg}text")]
    bars = [float(each.attrib["width"]) for each in svg[1:] if each.tag.endswith("rect")]
    assert {"forward only", "end to end", "100.0", "88.0"} <= set(texts)
    assert bars[0] == max(bars)
    assert bars[1] / bars[0] == pytest.approx(0.88, abs=0.01)
    assert any("a <model>" in text for text in texts)
