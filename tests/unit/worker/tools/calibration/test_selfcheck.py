"""Whether a node passes, with engines whose noise is known."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from fake_engine import fake_distance
from shared.config import PoCConfig
from shared.errors import ConfigError, Quarantined
from shared.settings import load_settings
from shared.store import Store
from support import changed
from worker.node.functional_check import BLOCK_HASH, NONCES, PUBLIC_KEY
from worker.tools.calibration.selfcheck import Plan, Report, check
from worker.tools.calibration.sides import Side
from worker.tools.calibration.verdict import figures, show, show_json

CONFIG = PoCConfig(block_hash="b", block_height=0, public_key="k", r_target=1.0)
KNOWN = [fake_distance(BLOCK_HASH, PUBLIC_KEY, nonce) for nonce in NONCES]


def checked(
    *others: str, model: str = "fake", n: int = 200, risk: Any = None, **more: Any
) -> Report:
    """A check of the fake engine, as seen by `others`."""
    settings = load_settings({}, engine="fake_engine:load", model=model, **more)
    return check(settings, Plan(CONFIG, 64, n, risk, [Side.of(each) for each in others]))


def test_a_node_that_all_agree_with_passes() -> None:
    """Unless others are named, one with other batches looks at it."""
    report = checked()
    assert [each.side.name for each in report.seen] == ["batch_size=7"]
    assert report.passes
    assert (report.worst.noise.equal, report.worst.flagged, report.worst.margin) == (64, 0, 0)


def test_noise_makes_a_fraud_of_an_honest_node() -> None:
    """Given a validator whose distances differ, then the worst of all sides counts."""
    report = checked("batch_size=3", "model=fake?noise=0.01")
    assert not report.passes
    assert report.worst.side.name == "model=fake?noise=0.01"
    assert report.worst.flagged > 0.05
    assert 0 < report.worst.margin < 0.1
    assert 0 < report.worst.cost < 0.1


def test_the_margin_that_it_names_makes_it_pass() -> None:
    """With the same noise, as if the node had set it."""
    margin = checked("model=fake?noise=0.01").worst.margin
    config = changed(CONFIG, submit_margin=margin)
    settings = load_settings({}, engine="fake_engine:load", model="fake")
    report = check(settings, Plan(config, 64, 200, None, [Side.of("model=fake?noise=0.01")]))
    assert report.passes
    assert report.worst.margin == margin


def test_risk_is_what_the_operator_accepts() -> None:
    """Given a small one, then what the network's threshold lets pass is too much."""
    assert checked("model=fake?noise=0.0005").passes
    assert not checked("model=fake?noise=0.0005", risk=1e-9).passes


def test_another_model_has_no_margin(capsys: pytest.CaptureFixture[str]) -> None:
    """And it is said in words and in JSON."""
    report = checked("model=fake?noise=2")
    assert math.isinf(report.worst.margin)
    show(report)
    assert "none helps against" in " ".join(capsys.readouterr().out.split())
    assert figures(report)["safe_submit_margin"] is None


def test_what_the_model_can_not_compute_is_refused_by_name() -> None:
    """Given vectors of more numbers than its hidden states have."""
    config = PoCConfig.model_validate(
        {"block_hash": "b", "block_height": 0, "public_key": "k", "scheme": "artifact"}
    )
    settings = load_settings({}, engine="fake_engine:load", model="fake")
    with pytest.raises(ConfigError, match="k_dim=12: the model's hidden states have only 1"):
        check(settings, Plan(config))


def test_known_distances_are_compared() -> None:
    """Those that are pinned; other ones mean that the device is wrong."""
    report = checked(model_distances=json.dumps(KNOWN))
    assert report.known == "agree with POC_MODEL_DISTANCES"
    with pytest.raises(Quarantined, match="POC_MODEL_DISTANCES has"):
        checked(model_distances=json.dumps([2 - each for each in KNOWN]))


def test_the_reference_in_redis_is_compared(redis_url: str) -> None:
    """Given a Redis that is named, then with the model's first worker there."""
    settings = load_settings({}, redis_url=redis_url)
    store = Store(settings)
    model = {"fingerprint": "fingerprint-of-fake"}
    store.workers.heartbeat("first", model, {"state": "idle"}, [], KNOWN)
    store.close()
    assert (
        checked(redis_url=redis_url).known == "agree with first, the first worker with this model"
    )


def test_a_side_that_was_asked_for_must_be_there() -> None:
    with pytest.raises(ConfigError, match="asked not to load"):
        checked("model=fake?broken=1")


def test_json_has_each_side(capsys: pytest.CaptureFixture[str]) -> None:
    """In one line."""
    show_json(checked("batch_size=3", "model=fake?noise=0.01"))
    (line,) = capsys.readouterr().out.splitlines()
    said = json.loads(line)
    assert said["passes"] is False
    assert [each["side"] for each in said["sides"]] == ["batch_size=3", "model=fake?noise=0.01"]
    assert said["sides"][0]["equal"] == 64
    assert said["probability_flagged"] == said["sides"][1]["probability_flagged"]


def test_a_report_says_who_would_accuse(capsys: pytest.CaptureFixture[str]) -> None:
    show(checked("model=fake?noise=0.01"))
    said = " ".join(capsys.readouterr().out.split())
    assert "you would be called a fraud" in said
    assert "is safe, and gives up" in said
