"""Evidence by the command line, of a real worker: kept, fetched and replayed."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import preloaded
from fake_engine import fake_distance
from shared.settings import Settings
from support import ROOT, clean_environment
from worker.children import end

pytestmark = pytest.mark.functional

CONFIG = {"block_hash": "b", "block_height": 1, "public_key": "k", "r_target": 1.99}
NONCES = list(range(8))
#: All below r_target, whatever the device gives.
HONEST = [nonce for nonce in range(100) if fake_distance("b", "k", nonce) < 1.99][:8]

Poc = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def poc(settings: Settings, tmp_path: Path) -> Poc:
    """Run `poc` with these arguments, where the files are."""
    env = clean_environment(
        POC_REDIS_URL=settings.redis_url, POC_NAMESPACE=settings.namespace, PYTHONPATH=str(ROOT)
    )
    return lambda *args: preloaded.run(args, env=env, cwd=tmp_path)


def validate(poc: Poc, directory: Path, r_target: float, dist: list[float]) -> tuple[int, str]:
    """Judge the batch of `HONEST` nonces; the exit status, and the id that its evidence has."""
    config = CONFIG | {"r_target": r_target}
    batch = {name: CONFIG[name] for name in ("block_hash", "block_height", "public_key")}
    (directory / "config").write_text(json.dumps(config))
    (directory / "batch").write_text(json.dumps(batch | {"nonces": HONEST, "dist": dist}))
    ran = poc("validate", "--batch", "batch", "--config", "config")
    named = re.search(r"poc evidence (\S+)", ran.stderr)
    return ran.returncode, named[1] if named else ran.stderr


def test_fraud_is_kept_and_replayed(
    start_worker: Callable[..., object], poc: Poc, tmp_path: Path
) -> None:
    """Given invented distances, then the file has both sides, and a replay gives the same bits."""
    start_worker("w0")
    status, task = validate(poc, tmp_path, 0.01, [0.001] * len(HONEST))
    assert status == 3
    kept = poc("evidence", task)
    assert kept.returncode == 0
    evidence = json.loads(kept.stdout)
    assert evidence["batch"]["dist"] == [0.001] * len(HONEST)
    assert evidence["proofs"] == [fake_distance("b", "k", nonce) for nonce in HONEST]
    (computer,) = evidence["computed_by"]
    assert computer["worker"] == "w0@test"
    assert computer["profile"]["engine"] == "fake"
    assert "python" in computer["versions"]
    (tmp_path / "evidence.json").write_text(kept.stdout)
    again = poc("validate", "--evidence", "evidence.json")
    assert again.returncode == 3
    assert "8 of 8 recomputed proofs are the same to the last bit" in again.stdout
    both = poc("validate", "--evidence", "evidence.json", "--replace")
    assert both.returncode == 2
    assert "--evidence brings its batch" in both.stderr


def test_what_could_not_be_computed_is_replayed_by_another_worker(
    start_worker: Callable[..., object], poc: Poc, tmp_path: Path
) -> None:
    """Given a device that gives no number for some nonces, then a healthy one finds it honest."""
    broken = start_worker("broken", nan=2)
    dist = [fake_distance("b", "k", nonce) for nonce in HONEST]
    status, task = validate(poc, tmp_path, 1.99, dist)
    assert status == 1
    end(broken.process)  # type: ignore[attr-defined]
    kept = poc("evidence", task).stdout
    evidence = json.loads(kept)
    assert evidence["error"].startswith("no finite numbers for ")
    assert None in evidence["proofs"]
    start_worker("healthy")
    (tmp_path / "evidence.json").write_text(kept)
    again = poc("validate", "--evidence", "evidence.json", "--json")
    assert again.returncode == 0
    said = json.loads(again.stdout)
    assert (said["outcome_then"], said["outcome_now"]) == ("could not compute", "honest")
    assert said["equal"] == said["computed_then"] == sum(d is not None for d in evidence["proofs"])


def test_of_an_honest_batch_there_is_none(
    start_worker: Callable[..., object], poc: Poc, tmp_path: Path
) -> None:
    """One line says of what there is some, and for how long."""
    start_worker("w0")
    assert validate(poc, tmp_path, 1.99, [fake_distance("b", "k", n) for n in HONEST]) == (0, "")
    ran = poc("evidence", "nobody")
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: no evidence of a validation nobody is kept; ")
