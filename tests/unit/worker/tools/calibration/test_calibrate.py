"""What `poc calibrate` measures and shows, with an engine whose distances are known."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fake_engine import fake_distance
from shared.errors import ConfigError, EngineError
from shared.settings import load_settings
from worker.engines import EngineInfo
from worker.tools.calibration.calibrate import Plan, figures, picture_of, run, show
from worker.tools.calibration.rate import Calibration

SETTINGS = load_settings({}, engine="fake_engine:load", model="fake")
INFO = EngineInfo("a <model>", "cpu", "f", 1024, 8, 64, {"dtype": "float32"})
#: The even blocks have other distances than the odd ones.
UNFAIR = Calibration([[1 + (i + 50 * (b % 2)) / 200 for i in range(100)] for b in range(4)], 0.3)


def test_each_block_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """The first nonces of each, and JSON has what came of it."""
    plan = Plan(valid_rate=0.25, blocks=3, nonces=100, batch_size=7)
    found = run(SETTINGS, plan, json=True)
    assert found.by_block[2] == [fake_distance("calibrate-2", "calibrate", n) for n in range(100)]
    said = json.loads(capsys.readouterr().out)
    assert said["r_target"] == found.r_target == pytest.approx(0.5, abs=0.1)
    assert (said["valid_rate"], said["blocks"], said["nonces_per_block"]) == (0.25, 3, 100)
    assert said["rate_of_blocks"] == found.rates
    assert said["unfair"] is False
    assert said["r_target_interval"][0] < 0.5 < said["r_target_interval"][1]


def test_one_r_target_that_is_unfair_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """With the test, the ratio, and what blocks alone would want."""
    show(UNFAIR, INFO)
    shown = capsys.readouterr()
    said = " ".join(shown.err.split())
    assert "warning: one r_target is unfair: the best block has" in said
    assert "Blocks alone would want 1.147500 to 1.397500" in said
    assert "chi-squared" in shown.out
    assert figures(UNFAIR, Plan(), INFO)["unfair"] is True


def test_fair_blocks_bring_no_warning(capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the measured rate stands that of an ideal model of the vocabulary."""
    show(Calibration([[1 + i / 100 for i in range(100)]] * 2, 0.3), INFO)
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "ideal model" in shown.out


def test_a_picture_has_the_distances_and_the_blocks() -> None:
    """Well-formed whatever a model is called; a bar for each block, the longest for the best."""
    svg = ElementTree.fromstring(picture_of(UNFAIR, INFO))
    space = "{http://www.w3.org/2000/svg}"
    texts = [each.text or "" for each in svg.iter(f"{space}text")]
    assert f"r_target {UNFAIR.r_target:.6f}" in texts
    assert any("a <model>" in each for each in texts)
    assert [f"block {each}" for each in range(4)] == [t for t in texts if t.startswith("block ")]
    assert svg.find(f"{space}polyline") is not None
    bars = [float(each.attrib["width"]) for each in svg.iter(f"{space}rect") if each is not svg[0]]
    assert bars[-4:] == pytest.approx(
        [440 * each / max(UNFAIR.rates) for each in UNFAIR.rates], 0.01
    )


def test_a_picture_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "p.svg"
    run(SETTINGS, Plan(blocks=2, nonces=64), picture=picture)
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    ("model", "plan", "says"),
    [
        ("fake?broken=1", {}, "asked not to load"),
        ("fake?max_seq_len=8", {}, "seq_len=256: .* computes 1 to 8 positions"),
    ],
)
def test_what_can_not_be_measured_is_a_matter_of_options(
    model: str, plan: dict[str, int], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        run(load_settings({}, engine="fake_engine:load", model=model), Plan(**plan))


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ({"valid_rate": 0.0}, "--valid-rate 0: must be above 0"),
        ({"valid_rate": 0.001, "nonces": 16}, "give at least --nonces 1250"),
    ],
)
def test_a_plan_that_measures_nothing_is_refused(plan: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Plan(**plan)  # type: ignore[arg-type]


def test_distances_that_are_none_are_an_error() -> None:
    """Given a model that gives NaN, then there is no r_target."""
    settings = load_settings({}, engine="fake_engine:load", model="fake?nan=7")
    with pytest.raises(EngineError, match="no finite distance for 10 of 64 nonces"):
        run(settings, Plan(blocks=2, nonces=64))
