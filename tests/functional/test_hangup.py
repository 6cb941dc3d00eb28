"""SIGHUP: what a terminal sends to a worker when it is closed."""

from __future__ import annotations

import os
import pty
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from shared.settings import Settings
from shared.store import Store
from support import ROOT, assert_gone, clean_environment, running

pytestmark = pytest.mark.functional

WORKER = [sys.executable, "-m", "worker.cli", "worker"]


def environment(settings: Settings, **variables: str) -> dict[str, str]:
    return clean_environment() | {
        "POC_NAMESPACE": settings.namespace,
        "POC_ENGINE": "fake_engine:load",
        "POC_WORKER_NAME": "w0@test",
        "PYTHONPATH": str(ROOT / "tests"),
        **variables,
    }


class Terminal:
    """A terminal in which `poc worker` runs, and shows its log."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.pid, self._master = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            os.execve(command[0], command, env)
        self.process = psutil.Process(self.pid)
        self.shown = b""

    def shows(self, text: bytes) -> None:
        """Read until `text` is there; a process that has ended is an OSError."""
        while text not in self.shown:
            self.shown += os.read(self._master, 65_536)

    def close(self) -> None:
        """As its window's button does."""
        os.close(self._master)


@pytest.fixture(params=["plain", "embedded"])
def terminal(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Terminal]:
    """With a worker that is ready, of a Redis that runs or of its own."""
    if request.param == "plain":
        env = environment(settings, POC_REDIS_URL=settings.redis_url)
        opened = Terminal(WORKER, env)
    else:
        opened = Terminal([*WORKER, "--embedded"], environment(settings))
    opened.shows(b"w0@test ready.")
    yield opened
    if opened.process.is_running():
        opened.process.kill()


def test_a_worker_ends_in_order_with_its_terminal(terminal: Terminal, store: Store) -> None:
    """It leaves, takes its own Redis along, and does not start itself anew in the background."""
    children = terminal.process.children(recursive=True)
    terminal.close()
    assert terminal.process.wait(timeout=30) == 0
    assert store.workers.listing() == []  # of a Redis of its own there is nothing left to ask
    assert_gone(children)


def test_a_worker_ends_with_its_embedded_redis(settings: Settings, tmp_path: Path) -> None:
    """Given that it is killed, which nobody else could start again, it says so and goes."""
    log = tmp_path / "log"
    command = [*WORKER, "--embedded"]
    with running(command, "w0@test ready.", log, env=environment(settings), cwd=ROOT) as (it, _):
        (server,) = (
            child for child in psutil.Process(it.pid).children() if "valkey" in child.name()
        )
        server.kill()
        assert it.wait(30) == 0
    assert "the embedded Redis has ended" in log.read_text()


def test_a_worker_under_nohup_stays(settings: Settings, store: Store, tmp_path: Path) -> None:
    env = environment(settings, POC_REDIS_URL=settings.redis_url)
    command = ["nohup", *WORKER]
    log = tmp_path / "log"
    with running(command, "w0@test ready.", log, env=env, cwd=ROOT) as (process, _):
        process.send_signal(signal.SIGHUP)
        process.terminate()
        assert process.wait(20) == 0
    assert log.read_text().count("shutdown (MainProcess)") == 1
