"""The examples in other languages run a round with a real worker."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fake_engine import fake_distance
from shared.settings import Settings
from support import ROOT, clean_environment

pytestmark = pytest.mark.functional

EXAMPLES = ROOT / "examples"
#: The round that each of them asks for: where it ends, and its first valid nonce.
WANTED = 20
FIRST = next(n for n in range(1000) if fake_distance("ab12", "me", n) < 1.4)


#: For machines without redis-cli: the same words, sent by redis-py.
REDIS_CLI = """
import sys, redis
option, url, *words = sys.argv[1:]
assert option == "-u", option
print(redis.Redis.from_url(url, decode_responses=True).execute_command(*words) or "")
"""


@pytest.fixture
def settings(shared_settings: Settings, shared_worker: Any) -> Settings:
    """One worker for all of them."""
    return shared_settings


def run(command: list[str], settings: Settings, **variables: str) -> str:
    """What an example prints; it must succeed."""
    env = clean_environment(**variables) | {
        "POC_REDIS_URL": settings.redis_url,
        "POC_NAMESPACE": settings.namespace,
    }
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def shows_a_round(printed: str) -> None:
    """It ended by itself, and its first valid nonce came with its distance."""
    counts, first = printed.splitlines()
    state, checked, _, valid, _ = counts.replace(":", "").split()
    assert (state, int(checked) >= int(valid) >= WANTED) == ("STOPPED", True)
    nonce, distance = first.removeprefix("the first: ").split(" with distance ")
    assert int(nonce) == FIRST
    assert float(distance) == fake_distance("ab12", "me", FIRST)


def test_bash(settings: Settings, tmp_path: Path) -> None:
    """By redis-cli or what stands in for it; the answer is the task's, as Redis holds it."""
    path = os.environ["PATH"]
    if not (shutil.which("redis-cli") or shutil.which("valkey-cli")):
        stand_in = tmp_path / "redis-cli"
        stand_in.write_text(f"#!{sys.executable}\n{REDIS_CLI}")
        stand_in.chmod(0o755)
        path = f"{tmp_path}:{path}"
    answer = json.loads(run([str(EXAMPLES / "bash" / "round.sh")], settings, PATH=path))
    assert (answer["status"], answer["result"]["state"]) == ("SUCCESS", "STOPPED")
    assert answer["result"]["total_valid"] >= WANTED
    assert answer["result"]["valid_nonces"][0] == FIRST


def test_go(settings: Settings, tmp_path: Path) -> None:
    """With nothing but its standard library."""
    if not shutil.which("go"):
        pytest.skip("there is no Go compiler")
    built = tmp_path / "round"
    subprocess.run(
        ["go", "build", "-o", str(built), "."],
        cwd=EXAMPLES / "go",
        env=clean_environment(GOCACHE=str(tmp_path / "cache"), GOFLAGS="-mod=mod"),
        check=True,
        timeout=90,
    )
    shows_a_round(run([str(built)], settings))


def test_node(settings: Settings, tmp_path: Path) -> None:
    """With the package celery-node, in the version of the lock file."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("there is no Node with npm")
    here = tmp_path / "node"
    shutil.copytree(EXAMPLES / "node", here, ignore=shutil.ignore_patterns("node_modules"))
    installed = subprocess.run(
        ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=here,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    if installed.returncode:
        # Only where nobody can be asked: a lock file that does not fit is a failure.
        missing = any(word in installed.stderr for word in ("ENOTFOUND", "ECONN", "ETIMEDOUT"))
        assert missing, installed.stderr
        pytest.skip("npm can't reach its registry")
    shows_a_round(run(["node", str(here / "round.mjs")], settings))


def test_a_lock_file_names_no_registry() -> None:
    """Whoever installs takes the packages from where he always does."""
    lock = json.loads((EXAMPLES / "node" / "package-lock.json").read_text(encoding="utf-8"))
    packages = [each for name, each in lock["packages"].items() if name]
    assert packages
    assert all("integrity" in each and "resolved" not in each for each in packages)
