"""What is on stage ends in order, however that is told to."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys, time
from worker.tools.stage import end_like_ctrl_c, heard

end_like_ctrl_c()
try:
    os.kill(os.getpid(), int(sys.argv[1]))
    time.sleep(30)
except KeyboardInterrupt:
    heard()
    print("cleaned up")
"""


@pytest.mark.functional
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_signal_unwinds_what_was_started(number: signal.Signals) -> None:
    """As Ctrl-C does."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(int(number))],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "cleaned up\n"), done.stderr
