"""Workers that are forked from a process which has imported all that they need.

Most of a fake worker's start is imports. A fork of a process that has done them is a worker like
any other from there on, with an environment, a log and signals of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from worker.children import _die_with

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "celery.apps.worker",
        "celery.worker.components",
        "fake_engine",
        "kombu.transport.redis",
        "worker.cli.app",
        "worker.queue.app",
    ]
)


class Fork:
    """`poc` with `words`, in a process of its own; it has the face of `subprocess.Popen`."""

    def __init__(
        self, words: Sequence[str], *, env: Mapping[str, str], cwd: Path, log_path: Path
    ) -> None:
        log_path.touch()
        self._process = _CONTEXT.Process(
            target=_become, args=(list(words), dict(env), cwd, log_path), daemon=True
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """As Popen has it: minus the signal that killed it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit status, if it has ended."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status. Raises `TimeoutExpired`."""
        self._process.join(timeout)
        if (status := self.returncode) is None:
            raise subprocess.TimeoutExpired("poc", timeout or 0)
        return status

    def send_signal(self, which: int) -> None:
        """Nothing, if it has ended."""
        if self.poll() is None:
            os.kill(self.pid, which)

    def terminate(self) -> None:
        """As a supervisor does it."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """As a crash does it."""
        self.send_signal(signal.SIGKILL)


def _become(words: list[str], env: dict[str, str], cwd: Path, log_path: Path) -> None:
    if (ask_the_kernel := _die_with(os.getppid())) is not None:
        ask_the_kernel()
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT),
        (2, log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT),
    ):
        opened = os.open(path, flags, 0o666)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = ["poc", *words]

    from worker.cli import main

    main()
