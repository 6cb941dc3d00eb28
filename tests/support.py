"""What tests of all kinds lean on."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

from shared.config import PoCConfig
from worker.children import end, spawn

T = TypeVar("T")

#: The source tree.
ROOT = Path(__file__).parents[1]


def changed(config: PoCConfig, **fields: Any) -> PoCConfig:
    """`config` with other fields, those of its scheme among them."""
    return PoCConfig(**config.model_dump() | fields)


def kept(found: Iterable[tuple[int, float]]) -> list[tuple[int, str]]:
    """Valid nonces with their distances, as a commit takes them."""
    return [(nonce, repr(distance)) for nonce, distance in found]


def wait_until(
    predicate: Callable[[], T],
    timeout: float = 10.0,
    description: str = "the condition",
    every: float = 0.01,
) -> T:
    """Poll `predicate` until it is true and return what it gave; fail after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain for {description}")
        time.sleep(every)
    return value


@contextlib.contextmanager
def running(
    command: Sequence[str | Path], sign: str, log: Path, *, timeout: float = 60.0, **options: Any
) -> Iterator[tuple[subprocess.Popen[bytes], re.Match[str]]]:
    """A process that has logged `sign`, a regular expression, and its match; ended in the end.

    `options` are those of `spawn`.
    """
    process = spawn(command, log_path=log, **options)

    def said() -> re.Match[str] | None:
        ended = process.poll()  # before its log is read, so that its last words are there
        found = re.search(sign, log.read_text())
        assert found or ended is None, f"{command} ended with {ended}: {log.read_text()}"
        return found

    try:
        yield process, wait_until(said, timeout, f"{command} to say {sign}")
    finally:
        end(process)


def assert_gone(processes: list[psutil.Process], within: float = 30.0) -> None:
    """All have ended, or do in time; this one's own server of forks, and trackers, may stay."""
    wait_until(lambda: not any(map(_lives, processes)), within, f"the end of {processes}")


def _lives(process: psutil.Process) -> bool:
    try:
        command = " ".join(process.cmdline())
        # A fork has its server's command line, but another parent.
        serves_us = "multiprocessing.forkserver" in command and process.ppid() == os.getpid()
        stays = serves_us or "resource_tracker" in command
        return process.status() != psutil.STATUS_ZOMBIE and not stays
    except psutil.NoSuchProcess:
        return False


def clean_environment(**variables: str) -> dict[str, str]:
    """This process' environment with `variables`, and no other setting of ours."""
    return {k: v for k, v in os.environ.items() if not k.startswith("POC_")} | variables


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def headings(page: Path) -> set[str]:
    """What the headings of a page are called in links, as GitHub does it."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in titles}


class Clock:
    """Stands in for the module `time`, and stands still until the test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + 1_000_000
