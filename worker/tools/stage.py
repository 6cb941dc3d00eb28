"""A node on this machine for those who want to see one: its processes, and what is said meanwhile.

The processes are the ones that production runs. They end with this one, however it ends.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
from rich.text import Text

from shared.errors import PoCError
from shared.settings import PREFIX, Settings
from shared.status import NodeStatus
from worker.children import end, spawn, vanishing_directory
from worker.tools.again import poc
from worker.tools.show import news

#: Seconds between two signs of life where nothing can move, as in a log.
SIGN_OF_LIFE_S = 5.0
#: Seconds that a process may take until it is ready; importing torch on a busy machine counts.
READY_S = 120.0


def on_stage(name: str, play: Callable[[Path, ExitStack], int]) -> int:
    """What `play` returns, given a directory of its own, and a stack for what it starts.

    All of that is ended in order, whether it returns, fails (then the end of each log is shown) or
    this process is told to end.
    """
    end_like_ctrl_c()
    try:
        with ExitStack() as stack:
            directory = stack.enter_context(vanishing_directory(f"{name}-"))
            try:
                status = play(directory, stack)
                say("ending what was started")
                with signs_of_life("waiting for its end"):
                    stack.close()
                return status
            except PoCError:
                _show_logs(directory)
                raise
            except KeyboardInterrupt:
                heard()
                say("ending what was started; this takes some seconds")
                raise
    finally:
        heard()


def end_like_ctrl_c() -> None:
    """Let SIGTERM and SIGHUP unwind what was started, as Ctrl-C does.

    Raised each second until it is heard: in a destructor or a callback it would be swallowed.
    """

    def interrupt(*_: Any) -> None:
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        raise KeyboardInterrupt

    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(each, interrupt)


def heard() -> None:
    """No more of it: another signal ends this process at once, and the kernel what it started."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_DFL)


# The processes.


class Api:
    """A status API, as its pollers see it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, trust_env=False, timeout=10)

    def status(self) -> NodeStatus:
        """The node now. Raises `PoCError` while it does not answer."""
        try:
            reply = self._http.get("/api/v1/pow/status").raise_for_status()
        except httpx.HTTPError as error:
            raise PoCError(f"the status API does not answer: {error}") from error
        return NodeStatus.model_validate_json(reply.content)

    def close(self) -> None:
        """Give the connection back."""
        self._http.close()


@contextmanager
def worker(settings: Settings, name: str, directory: Path, *, of: int = 1) -> Iterator[None]:
    """A worker on the CPU, which has its share of the cores as one `of` so many."""
    threads = str(max(1, (os.cpu_count() or 1) // of))
    env = {"POC_WORKER_NAME": name, "POC_DEVICE": "cpu", "OMP_NUM_THREADS": threads}
    with _process(name, ["worker"], settings, env, directory):
        yield


@contextmanager
def serving(
    name: str,
    command: list[str],
    settings: Settings,
    directory: Path,
    **variables: str,
) -> Iterator[str]:
    """Where `poc api` or `poc gateway` listens, on a port that the kernel chose."""
    variables[f"{PREFIX}{command[0].upper()}_PORT"] = "0"
    with _process(name, command, settings, variables, directory) as process:
        log = directory / f"{name}.log"
        found: list[str] = []

        def listens() -> bool:
            ended = process.poll() is not None  # before its log is read, with its last words
            found[:] = re.findall(r"listens on (http://[\d.]+:\d+)", log.read_text())
            return ended or bool(found)

        wait_for(listens, f"the {command[0]}")
        if not found:
            raise PoCError(f"{name} ended with status {process.returncode}")
        yield found[0]


@contextmanager
def _process(
    name: str, command: list[str], settings: Settings, extra: dict[str, str], directory: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """`poc <command>` with these settings, whatever the environment says."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
    env |= {
        "POC_REDIS_URL": settings.redis_url,
        "POC_NAMESPACE": settings.namespace,
        "POC_MODEL": str(settings.model),
        "POC_HEARTBEAT_S": "0.5",
        **extra,
    }
    process = spawn(
        poc(*command),
        env=env,
        log_path=directory / f"{name}.log",
        own_session=True,  # a Ctrl-C reaches this process, which ends the others in order
    )
    try:
        yield process
    finally:
        end(process)


def _show_logs(directory: Path) -> None:
    for log in sorted(directory.glob("*.log")):
        news.print(Text(f"{log.name} ends with:", style="bold red"))
        news.print(Text(log.read_text(errors="replace")[-2000:]))


# What is said.


def wait_for(done: Callable[[], bool], what: str) -> None:
    """Wait until `done`; what is not up yet counts as not done."""
    until = time.monotonic() + READY_S
    with signs_of_life(f"waiting for {what}"):
        while time.monotonic() < until:
            try:
                if done():
                    return
            except PoCError:
                pass
            time.sleep(0.1)
    raise PoCError(f"{what} took longer than {READY_S:g} s")


@contextmanager
def signs_of_life(text: str) -> Iterator[None]:
    """Say what goes on while the block runs: a spinner or, in a log, a line now and then."""
    if news.is_terminal:
        with news.status(text):
            yield
        return
    began, ended = time.monotonic(), threading.Event()

    def repeat() -> None:
        while not ended.wait(SIGN_OF_LIFE_S):
            say_so_far(began, text)

    threading.Thread(target=repeat, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def say_so_far(began: float, text: str) -> None:
    """A line of something that goes on since `began`."""
    news.print(Text(f"  {time.monotonic() - began:3.0f} s: {text}", style="dim"))


def say(text: str) -> None:
    """What comes next."""
    news.print(Text(f"» {text}", style="bold"), soft_wrap=True)
