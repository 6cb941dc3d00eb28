"""A signal ends the wait for commands, so that a worker which is told to end begins at once."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from celery import bootsteps


class Wakeup(bootsteps.StartStopStep):  # type: ignore[misc]
    """Celery only takes a note of a signal, and looks at it when a wait of a second is over."""

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._read, self._write = os.pipe()
        for end in (self._read, self._write):
            os.set_blocking(end, False)

    def start(self, parent: Any) -> None:
        """Have the loop look at the pipe; with each connection anew, since its loop is."""
        if parent.hub is None or threading.current_thread() is not threading.main_thread():
            return
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        parent.hub.add_reader(self._read, os.read, self._read, 64)
