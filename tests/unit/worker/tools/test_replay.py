"""What a replay of evidence says is equal, and what is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.config import PoCConfig
from shared.data import ProofBatch, ValidatedBatch
from shared.evidence import Computer, Evidence
from worker.tools.replay import Replay

CONFIG = PoCConfig(block_hash="b", block_height=0, public_key="k", r_target=1.0)
BATCH = ProofBatch.of(CONFIG, [5, 6, 7], [0.5, 0.6, 0.7])


def replay(then: list[float | None], now: list[float], **more: Any) -> Replay:
    """Of three nonces, by a worker with tiles of 8, now of 16."""
    evidence = Evidence(
        validation="v",
        batch=BATCH,
        config=CONFIG,
        proofs=then,
        computed_by=[
            Computer(worker="w0", device="cpu", profile={"tile": "8", "dtype": "float32"}),
            Computer(worker="w1", device="cpu", profile={"tile": "4", "dtype": "float32"}),
        ],
        judged_at=0.0,
        **more,
    )
    profile = {"tile": "16", "dtype": "float32"}
    return Replay(evidence, ValidatedBatch.judge(BATCH, now, CONFIG, profile))


def test_the_same_bits_are_equal() -> None:
    again = replay([0.5, 0.6, 1.7], [0.5, 0.6, 1.7], fraud_detected=True, n_invalid=1)
    assert (again.equal, again.largest, again.changed_sides) == (3, 0.0, [])
    assert again.outcome == ("FRAUD", "FRAUD")


def test_what_differs_is_told() -> None:
    """By how much, which nonces changed sides, and what is set otherwise."""
    again = replay([0.5, 0.6, 1.25], [0.5, 0.625, 0.75], fraud_detected=True, n_invalid=1)
    assert (again.equal, again.largest, again.changed_sides) == (1, 0.5, [7])
    assert again.outcome == ("FRAUD", "honest")
    assert again.setting == {"tile": ("4, 8", "16")}


def test_what_had_no_distance_is_compared_with_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    again = replay([0.5, None, 0.7], [0.5, 0.6, 0.7], error="why")
    assert (again.equal, len(again.differences)) == (2, 2)
    assert again.outcome == ("could not compute", "honest")
    again.show(as_json=False)
    said = " ".join(capsys.readouterr().out.split())
    assert "2 of 2 recomputed proofs are the same to the last bit; 1 had none then" in said


def test_json_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    replay([0.5, 0.6, 0.7], [0.5, 0.6, 0.7], fraud_detected=True).show(as_json=True)
    (line,) = capsys.readouterr().out.splitlines()
    said = json.loads(line)
    assert (said["equal"], said["outcome_then"], said["outcome_now"]) == (3, "FRAUD", "honest")
    assert said["setting"]["tile"] == {"then": "4, 8", "now": "16"}
