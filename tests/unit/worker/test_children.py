"""Processes that others spawn for us end with us, from their first moment on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from support import wait_until

pytestmark = pytest.mark.functional

ROOT = Path(__file__).parents[3]
PARENT = """
import multiprocessing, os, sys, time
from worker.children import leashed

def child(): time.sleep(600)

if __name__ == "__main__":
    before = multiprocessing.spawn.get_executable()
    with leashed():
        process = multiprocessing.get_context("spawn").Process(target=child)
        process.start()
    assert multiprocessing.spawn.get_executable() == before
    print(process.pid, flush=True)
    time.sleep(600)
"""


def test_a_spawned_process_ends_with_its_parent(tmp_path: Path) -> None:
    """It has a session of its own, so no Ctrl-C at our terminal, and survives no kill -9 of us."""
    script = tmp_path / "a parent.py"
    script.write_text(PARENT)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, script], env=env, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        # First the leash, then the interpreter that multiprocessing asked for.
        wait_until(lambda: "spawn_main" in " ".join(child.cmdline()), 10, "the interpreter")
        wait_until(lambda: os.getsid(child.pid) == child.pid, 10, "a session of its own")
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    _, alive = psutil.wait_procs([child], timeout=10)
    assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []


FAMILY = """
import multiprocessing, os, subprocess, sys, time
from worker.children import kill_leashed, leashed

def child():
    # Nothing ends it with its parent, as a rank that hangs in its device.
    grandchild = subprocess.Popen(["sleep", "600"])
    print(os.getpid(), grandchild.pid, flush=True)
    time.sleep(600)

def unleashed(): time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with leashed():
        context.Process(target=child).start()
    other = context.Process(target=unleashed, daemon=True)
    other.start()
    sys.stdin.readline()
    kill_leashed()
    print(other.is_alive(), flush=True)
    sys.stdin.readline()
    other.kill()
"""


def test_all_that_was_spawned_can_be_killed_at_once(tmp_path: Path) -> None:
    """With what the children started; those without a leash are left alone."""
    script = tmp_path / "a parent.py"
    script.write_text(FAMILY)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    command = [sys.executable, script]
    with subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, text=True) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        family = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        parent.stdin.write("kill\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == "True\n"
        _, alive = psutil.wait_procs(family, timeout=10)
        assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []
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
    """Given one without a leash that asks for it, even while it stands still."""
    script = tmp_path / "a parent.py"
    script.write_text(STRANGERS)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, script], env=env, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        child.suspend()
        parent.kill()
        parent.wait()
    _, alive = psutil.wait_procs([child], timeout=10)
    assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []
