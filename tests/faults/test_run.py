"""A short run of the harness holds, and one with a defect in it does not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from faults.saboteur import PHASES
from support import ROOT

pytestmark = [pytest.mark.functional, pytest.mark.slow, pytest.mark.timeout(400)]


def run(*options: str) -> tuple[int, dict[str, Any], str]:
    """Exit status, report and all that was said."""
    done = subprocess.run(
        [sys.executable, "-m", "faults", "--no-huge", *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=380,
    )
    said = done.stdout + done.stderr
    *_, last = done.stdout.splitlines() or [""]
    # Without a report it has failed itself, and says why.
    assert last.startswith("{"), said
    return done.returncode, json.loads(last), said


def test_half_a_minute_of_faults_loses_nothing() -> None:
    """Given every persistence, kills and other faults, then all invariants hold."""
    status, report, said = run("--seconds", "16", "--seed", "1", "--workers", "2")
    assert status == 0, said
    assert report["faults"]["worker killed"] > 0
    assert report["checks"]["a round is exact"] >= len(PHASES)
    assert report["nonces"] > 0


def test_a_defect_ends_a_run() -> None:
    """Given a batch that counts twice, the run fails and names invariant, seed, round and fault."""
    sabotage = ("--sabotage", "count-twice", "--workers", "1")
    status, report, said = run("--seconds", "40", "--phase", "always", *sabotage)
    assert status == 1, said
    detail = report["broken"]["detail"]
    assert report["broken"]["invariant"] == "total_checked and total_valid equal a recount"
    assert "with seed 1" in said
    named = re.match(r"round (\S+) \(block\d+, batches of \d+\): \d+ positions too many", detail)
    assert named, detail
    assert f"{report['broken']['during']}; before it:" in said
    assert f"fault: sabotage count-twice of round {named[1]}" in said
