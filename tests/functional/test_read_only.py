"""Every process works where it may write nothing and has no privileges, as in its container.

A mount namespace makes all of this machine read-only for them, except a /tmp and a home of their
own. Whoever runs the tests must be allowed to make one: root, as in CI.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.client import PoCClient
from shared.settings import Settings
from shared.store import Store
from support import ROOT, clean_environment, free_port, wait_until
from worker.children import end, spawn
from worker.tools.make_model import make_model

pytestmark = [pytest.mark.functional, pytest.mark.slow]

CONFIG = {"block_hash": "b", "block_height": 1, "public_key": "k", "r_target": 1.4, "seq_len": 16}

#: $TMPDIR and $HOME are what docker-compose.yml mounts as tmpfs; `touch` proves the rest.
READ_ONLY = """
set -eu
mount -t tmpfs none "$TMPDIR"
mount -t tmpfs none "$HOME"
while read -r _ at _; do
  case $at in "$TMPDIR" | "$HOME") ;; *) mount -o remount,bind,ro "$at" 2>/dev/null || : ;; esac
done < /proc/mounts
for at in / /tmp /var/tmp "$PWD"; do
  if touch "$at/written" 2>/dev/null; then echo "$at can be written to"; exit 9; fi
done
exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
"""


@pytest.fixture(scope="module", autouse=True)
def _may_mount() -> None:
    command = ["unshare", "--mount", "true"]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if done.returncode:
        pytest.skip(f"no mount namespace may be made here: {done.stderr.decode().strip()}")


@pytest.fixture
def place(tmp_path: Path) -> dict[str, Path]:
    """The only directories that can be written to."""
    found = {"TMPDIR": tmp_path / "tmp", "HOME": tmp_path / "home"}
    for path in found.values():
        path.mkdir()
    return found


@contextlib.contextmanager
def confined(
    name: str, command: list[str], env: dict[str, str], place: dict[str, Path], tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """`python -m command` in a world that is read-only, and its log."""
    log = tmp_path / f"{name}.log"
    everything = clean_environment()
    everything |= env | {k: str(v) for k, v in place.items()} | {"PYTHONDONTWRITEBYTECODE": "1"}
    words = ["unshare", "--mount", "sh", "-c", READ_ONLY, "sh", sys.executable, "-m", *command]
    process = spawn(words, env=everything, cwd=ROOT, log_path=log)
    try:
        yield process, log
    finally:
        end(process, timeout=20)


def written(process: subprocess.Popen[bytes], place: dict[str, Path]) -> list[str]:
    """What a process has put where it can write."""
    # As the process sees them: for all others there is nothing.
    seen = [Path(f"/proc/{process.pid}/root{path}") for path in place.values()]
    assert all(path.is_mount() for path in seen)
    return [str(path) for each in seen for path in each.rglob("*")]


def test_a_round_where_nothing_can_be_written(
    settings: Settings, client: PoCClient, store: Store, place: dict[str, Path], tmp_path: Path
) -> None:
    """Given real workers, callbacks, API and Flower, they run, and leave no file behind."""
    model = make_model(tmp_path / "model")
    flower_port = free_port()
    env = {
        "POC_REDIS_URL": settings.redis_url,
        "POC_NAMESPACE": "test",
        "POC_API_PORT": "0",
        "CELERY_BROKER_URL": settings.redis_url,
        "FLOWER_BASIC_AUTH": "u:p",
        "FLOWER_ADDRESS": "127.0.0.1",
        "FLOWER_PORT": str(flower_port),
    }
    worker_env = env | {"POC_MODEL": str(model), "POC_DEVICE": "cpu", "POC_ENGINE": "transformers"}
    with contextlib.ExitStack() as stack:

        def start(name: str, env: dict[str, str], *command: str) -> Any:
            return stack.enter_context(confined(name, list(command), env, place, tmp_path))

        processes = {
            "worker": start("worker", worker_env, "worker.cli", "worker"),
            "api": start("api", env, "worker.cli", "api"),
            "callbacks": start("callbacks", env, "worker.cli", "callbacks"),
            "flower": start("flower", env, "celery", "flower"),
        }

        def said(name: str, what: str) -> str:
            process, log = processes[name]
            found = wait_until(
                lambda: re.search(what, log.read_text()) or process.poll() is not None, 90, name
            )
            assert isinstance(found, re.Match), log.read_text()
            return found[0]

        said("worker", "ready: worker")
        said("flower", "Connected to redis")
        api = said("api", r"http://127\S+")
        client.generate(CONFIG)
        wait_until(lambda: store.status().total_checked, 60, "a batch")
        stopped = client.stop()
        assert stopped.total_failed == 0
        status = httpx.get(f"{api}/api/v1/pow/status", trust_env=False).json()
        assert status["state"] == "STOPPED"
        tasks = wait_until(
            lambda: httpx.get(
                f"http://127.0.0.1:{flower_port}/api/tasks", auth=("u", "p"), trust_env=False
            ).json(),
            description="Flower to have heard of it",
        )
        assert "poc.generate" in {task["name"] for task in tasks.values()}
        for name, (process, log) in processes.items():
            assert process.poll() is None, log.read_text()
            status_file = Path(f"/proc/{process.pid}/status").read_text()
            assert re.search(r"CapEff:\s+0+\n", status_file)
            assert re.search(r"NoNewPrivs:\s+1\n", status_file)
            assert written(process, place) == [], name
        for _, log in processes.values():
            assert "Read-only file system" not in log.read_text()
            assert "Traceback" not in log.read_text()
