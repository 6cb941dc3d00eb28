"""`poc`, and scripts, in forks of a process that has imported all that they need.

Most of a worker's start, and of a short command, is imports: torch and transformers take seconds. A
fork of a process that has done them is a process like any other from there on, with an environment,
streams and signals of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from worker.children import follow

_HERE = Path(__file__).parent
_CONTEXT = multiprocessing.get_context("forkserver")
#: What any of them needs, and what one with a model needs besides.
_ALWAYS = [
    "celery.apps.worker",
    "celery.worker.components",
    "fake_engine",
    "kombu.transport.redis",
    "shared.api",
    "shared.client",
    "shared.gateway",
    "worker.cli.app",
    "worker.queue.app",
]
_MODELS = [
    "transformers.models.qwen3.modeling_qwen3",
    "worker.engines.tile",
    "worker.engines.weights",
]
_CONTEXT.set_forkserver_preload([*_ALWAYS, *_MODELS])


def without_models() -> None:
    """Import less, where all engines are fake ones; before the first fork."""
    _CONTEXT.set_forkserver_preload(_ALWAYS)


class Fork:
    """`poc`, or a script, with `words` in a process of its own, with the face of `Popen`.

    It reads `stdin`, and appends what it says to `log_path`, but errors to `errors_path` if there
    is one.
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        log_path: Path,
        errors_path: Path | None = None,
        script: Path | None = None,
        stdin: Path = Path(os.devnull),
    ) -> None:
        log_path.touch()
        streams = (stdin, log_path, errors_path or log_path)
        self._process = _CONTEXT.Process(
            target=_become, args=(script, list(words), dict(env), cwd, streams), daemon=True
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


def run(
    words: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    script: Path | None = None,
    stdin: str = "",
    timeout: float = 60,
) -> subprocess.CompletedProcess[str]:
    """`poc`, or a script, with `words` to its end, as `subprocess.run` with captured output.

    Raises `TimeoutExpired`.
    """
    with tempfile.TemporaryDirectory() as directory:
        given, out, err = (Path(directory) / name for name in ("in", "out", "err"))
        given.write_text(stdin)
        process = Fork(
            words, env=env, cwd=cwd, log_path=out, errors_path=err, script=script, stdin=given
        )
        try:
            status = process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(words, status, out.read_text(), err.read_text())


def _become(
    script: Path | None,
    words: list[str],
    env: dict[str, str],
    cwd: Path,
    streams: tuple[Path, Path, Path],
) -> None:
    follow(os.getppid())  # a Ctrl-C is for whoever started it
    append = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    for descriptor, (path, flags) in enumerate(
        zip(streams, (os.O_RDONLY, append, append), strict=True)
    ):
        opened = os.open(path, flags, 0o666)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = [str(script or "poc"), *words]
    if script:
        # A script finds what lies beside it, and no module of the tests.
        elsewhere = [each for each in sys.path if not Path(each).is_relative_to(_HERE)]
        sys.path[:] = [str(script.parent), *elsewhere]
        runpy.run_path(str(script), run_name="__main__")
        return

    from worker.cli import main

    main()
