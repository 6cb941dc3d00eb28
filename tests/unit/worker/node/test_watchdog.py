"""The watchdog: a step that does not end ends the process, and nothing else does."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from shared.errors import Hung
from support import ROOT, wait_until
from worker.node.watchdog import Watchdog

DEADLINE = 0.4


@pytest.fixture
def hung() -> list[Hung]:
    """What `on_hung` was called with."""
    return []


@pytest.fixture
def watchdog(hung: list[Hung]) -> Iterator[Watchdog]:
    """One that looks every tenth of a second."""
    watchdog = Watchdog(DEADLINE, "POC_BATCH_DEADLINE", hung.append)
    watchdog.start()
    yield watchdog
    watchdog.stop()


def stands_still(watchdog: Watchdog, until: threading.Event) -> None:
    with watchdog.watching():
        until.wait(30)


def test_a_step_that_does_not_end(
    watchdog: Watchdog, hung: list[Hung], caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once, with the setting that says how long is too long, and where it hangs."""
    until = threading.Event()
    hanging = threading.Thread(target=stands_still, args=(watchdog, until))
    hanging.start()
    wait_until(lambda: hung, description="the bark")
    until.set()
    hanging.join()
    watchdog.join()
    assert [str(each) for each in hung] == ["no progress for 0.4 s (POC_BATCH_DEADLINE)"]
    (record,) = caplog.records
    assert record.levelname == "CRITICAL"
    assert "in stands_still\n    until.wait(30)" in record.getMessage()


def test_steps_that_end(watchdog: Watchdog, hung: list[Hung]) -> None:
    """Given many that take longer than the deadline together, then none of them hangs."""
    for _ in range(8):
        with watchdog.watching():
            time.sleep(DEADLINE / 4)
    assert hung == []


def test_each_look_at_what_moves_is_a_sign_of_life(hung: list[Hung]) -> None:
    """Given a step that ends and one that does not, then the signs end with the bark."""
    looks: list[int] = []
    watchdog = Watchdog(
        DEADLINE, "POC_BATCH_DEADLINE", hung.append, lambda: looks.append(len(hung))
    )
    watchdog.start()
    wait_until(lambda: looks, description="a look at nothing")
    until = threading.Event()
    hanging = threading.Thread(target=stands_still, args=(watchdog, until))
    hanging.start()
    watchdog.join(30)
    until.set()
    hanging.join()
    assert len(hung) == 1
    assert set(looks) == {0}
    watchdog.stop()


def test_time_between_two_steps(watchdog: Watchdog, hung: list[Hung]) -> None:
    """Nobody watches a loop that waits for work."""
    with watchdog.watching():
        pass
    time.sleep(2 * DEADLINE)
    assert hung == []


def test_a_step_that_fails_has_ended(watchdog: Watchdog, hung: list[Hung]) -> None:
    """As any other."""
    with pytest.raises(ZeroDivisionError), watchdog.watching():
        raise ZeroDivisionError
    time.sleep(2 * DEADLINE)
    assert hung == []


def test_it_can_be_stopped(hung: list[Hung]) -> None:
    """Before it was started, in the middle of a step, and twice."""
    Watchdog(DEADLINE, "POC_BATCH_DEADLINE", hung.append).stop()
    watchdog = Watchdog(DEADLINE, "POC_BATCH_DEADLINE", hung.append)
    watchdog.start()
    with watchdog.watching():
        watchdog.stop()
        watchdog.stop()
        time.sleep(2 * DEADLINE)
    assert not watchdog.is_alive()
    assert hung == []


SCRIPT = """
import ctypes, threading, time
from worker.node import watchdog

watchdog.GRACE_S = 0.5

def bark(error):
    {bark}

dog = watchdog.Watchdog(0.5, "POC_BATCH_DEADLINE", bark)
dog.start()
with dog.watching():
    time.sleep(0.3)  # it has looked by then
    {step}
"""


@pytest.mark.parametrize(
    ("bark", "step"),
    [
        ("raise SystemExit('never comes to it')", "ctypes.PyDLL(None).pause()"),
        ("threading.Event().wait()", "threading.Event().wait()"),
        ("raise ZeroDivisionError", "threading.Event().wait()"),
    ],
    ids=["Python stands still", "the goodbye hangs as well", "the goodbye fails"],
)
@pytest.mark.functional
def test_the_process_ends_when_the_watchdog_cannot(bark: str, step: str) -> None:
    """Status 1, and all threads say on standard error where they stand."""
    script = SCRIPT.format(bark=bark, step=step)
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == 1
    assert "Timeout (0:00:01)!" in ended.stderr
    assert "most recent call first" in ended.stderr
