"""What the README tells its readers to type works as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shared.config import PoCState
from shared.settings import Settings
from shared.store import Store
from support import wait_until

pytestmark = pytest.mark.functional

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

#: For machines without redis-cli: the same words, sent by redis-py.
REDIS_CLI = """
redis-cli() { "$PYTHON" -c 'import os, sys, redis
reply = redis.Redis.from_url(os.environ["POC_REDIS_URL"]).execute_command(*sys.argv[1:])
print(reply)' "$@"; }
"""


def block(language: str, word: str) -> str:
    """The README's only code block of that language with that word in it, for our namespace."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    (found,) = (each for each in blocks if word in each)
    return re.sub(r"\bpoc([.:])default\b", r"poc\1test", found)


def run(command: list[str], settings: Settings) -> str:
    """What `command` prints; it must succeed."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("POC_")} | {
        "POC_REDIS_URL": settings.redis_url,
        "POC_NAMESPACE": settings.namespace,
        "PYTHON": sys.executable,
    }
    done = subprocess.run(
        command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_message_pushed_by_hand(settings: Settings, store: Store, start_worker: Any) -> None:
    """Pushed as it is shown, it is carried out, and its key says so."""
    start_worker("w0", seconds=0.02)
    script = block("sh", "LPUSH") + "\necho id=$id"
    task = run(["bash", "-euc", REDIS_CLI + script], settings).rpartition("id=")[2].strip()
    wait_until(lambda: store.status().total_checked > 0, description="the round to run")
    meta = run(["bash", "-euc", f"{REDIS_CLI}redis-cli GET celery-task-meta-{task}"], settings)
    assert '"PROGRESS"' in meta


def test_the_commands_that_read(
    settings: Settings, store: Store, client: Any, start_worker: Any
) -> None:
    """Each of the reading commands names a key that is there."""
    start_worker("w0", seconds=0.02)
    config = {"block_hash": "b", "block_height": 1, "public_key": "k", "r_target": 1.9}
    client.generate(config)
    wait_until(lambda: store.status().total_valid > 0, description="a valid nonce")
    printed = run(["bash", "-euc", REDIS_CLI + block("sh", "HSCAN")], settings)
    assert "GENERATING" in printed
    assert str(store.status(newest=1).round_id) in printed


def test_the_example_in_python(settings: Settings, store: Store, start_worker: Any) -> None:
    """It runs to its end and judges its own nonces honest."""
    start_worker("w0", seconds=0.02)
    example = block("python", "PoCClient").replace("time.sleep(3)", "time.sleep(0.5)")
    counts, verdict = run([sys.executable, "-c", example], settings).splitlines()
    assert int(counts.split()[0]) > 0
    assert verdict.split() == ["0", "1.0", "False"]
    assert store.status().state == PoCState.STOPPED
