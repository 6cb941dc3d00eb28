"""Processes that others spawn for us end with us, from their first moment on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import psutil
import pytest

from support import ROOT, assert_gone, wait_until
from worker.children import on_end_signal

pytestmark = pytest.mark.functional


@pytest.fixture
def handlers() -> Iterator[None]:
    """Those of signals, as they were before the test."""
    numbers = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_a_signal_may_come_while_what_its_handler_takes_is_held() -> None:
    """By the main thread, which it interrupts: a second Ctrl-C comes while the first is handled."""
    lock, seen = threading.Lock(), SimpleQueue[signal.Signals]()

    def handler(number: signal.Signals) -> None:
        with lock:
            seen.put(number)

    on_end_signal(handler)
    with lock:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert [seen.get(timeout=5), seen.get(timeout=5)] == [signal.SIGTERM, signal.SIGINT]


def running_script(
    directory: Path, script: str, stdin: int | None = None, path: Path = ROOT
) -> subprocess.Popen[str]:
    """Python with `script`, whose output, and input, are ours; it finds modules in `path`."""
    path = directory / "a parent.py"
    path.write_text(script)
    return subprocess.Popen(
        [sys.executable, path],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{path}"},
        stdin=stdin,
        stdout=subprocess.PIPE,
        text=True,
    )


PARENT = """
import multiprocessing, os, sys, time
from worker.children import end_with_us

def child(): time.sleep(600)

if __name__ == "__main__":
    before = multiprocessing.spawn.get_executable()
    with end_with_us():
        process = multiprocessing.get_context("spawn").Process(target=child)
        process.start()
    assert multiprocessing.spawn.get_executable() == before
    print(process.pid, flush=True)
    time.sleep(600)
"""


def test_a_spawned_process_ends_with_its_parent(tmp_path: Path) -> None:
    """It has a session of its own, so no Ctrl-C at our terminal, and survives no kill -9 of us."""
    with running_script(tmp_path, PARENT) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        # First the launcher, then the interpreter that multiprocessing asked for.
        wait_until(lambda: "spawn_main" in " ".join(child.cmdline()), 10, "the interpreter")
        wait_until(lambda: os.getsid(child.pid) == child.pid, 10, "a session of its own")
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert_gone([child], within=10)


FAMILY = """
import multiprocessing, os, subprocess, sys, time
from worker.children import end_with_us, kill_spawned

def child():
    # Nothing ends it with its parent, as a rank that hangs in its device.
    grandchild = subprocess.Popen(["sleep", "600"])
    print(os.getpid(), grandchild.pid, flush=True)
    time.sleep(600)

def spawned_elsewhere(): time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with end_with_us():
        context.Process(target=child).start()
    other = context.Process(target=spawned_elsewhere, daemon=True)
    other.start()
    sys.stdin.readline()
    kill_spawned()
    print(other.is_alive(), flush=True)
    sys.stdin.readline()
    other.kill()
"""


def test_all_that_was_spawned_can_be_killed_at_once(tmp_path: Path) -> None:
    """With what the children started; those that were spawned elsewhere are left alone."""
    with running_script(tmp_path, FAMILY, stdin=subprocess.PIPE) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        family = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        parent.stdin.write("kill\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == "True\n"
        assert_gone(family, within=10)
        parent.communicate("end\n", timeout=30)
    assert len(family) == 2


STRANGERS = """
import multiprocessing, os, sys, time
from worker.children import die_with_parent

def child():
    die_with_parent()
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    die_with_parent()  # of no use to whoever was not spawned
    multiprocessing.get_context("spawn").Process(target=child).start()
    time.sleep(600)
"""


def test_a_process_that_others_spawned_ends_with_its_parent(tmp_path: Path) -> None:
    """Given one that asks for it by itself, even while it stands still."""
    with running_script(tmp_path, STRANGERS) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        child.suspend()
        parent.kill()
        parent.wait()
    assert_gone([child], within=10)


FORKING = """
import multiprocessing, os, sys, time
from worker.children import forks_of, kill_spawned

def child():
    print(os.getpid(), os.getppid(), os.getsid(0), os.environ["LATE"], flush=True)
    time.sleep(600)

if __name__ == "__main__":
    forks = forks_of("forked")
    os.environ["LATE"] = "late"
    forks.Process(target=child).start()
    if sys.stdin.readline() == "kill\\n":
        kill_spawned()
        print("killed", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("imports", [True, False], ids=["imported", "not imported"])
@pytest.mark.parametrize("end", ["of the parent", "of what was forked"])
def test_a_fork_ends_with_its_parent(end: str, imports: bool, tmp_path: Path) -> None:
    """It leads a session, has its parent's environment, and is killed with those it started.

    So does the process that it is a fork of. Whether that could import its module or not.
    """
    if imports:
        (tmp_path / "forked.py").write_text(
            "from worker.children import lead_and_follow\nlead_and_follow()\n"
        )
    with running_script(tmp_path, FORKING, stdin=subprocess.PIPE, path=tmp_path) as parent:
        assert parent.stdout is not None
        assert parent.stdin is not None
        pid, server, session, *late = parent.stdout.readline().split()
        assert (pid, late) == (session, ["late"])
        child, forked_from = psutil.Process(int(pid)), psutil.Process(int(server))
        if end == "of the parent":
            parent.send_signal(signal.SIGKILL)
            parent.wait()
            assert_gone([child, forked_from], within=10)
        else:
            parent.stdin.write("kill\n")
            parent.stdin.flush()
            assert parent.stdout.readline() == "killed\n"
            assert_gone([child], within=10)
            assert forked_from.is_running()
            parent.kill()
            assert_gone([forked_from], within=10)
