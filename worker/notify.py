"""What systemd is told of this process: when it is ready, that it moves, that it ends.

It is sd_notify(3), and for a worker only. Without NOTIFY_SOCKET nothing is said.
"""

from __future__ import annotations

import logging
import os
import socket
import threading

log = logging.getLogger(__name__)

#: Seconds that a start may stand still, without a word of ours, and seconds between two words.
PATIENCE_S, WORD_S = 120, 5.0


class Supervisor:
    """Whoever started this process with a NOTIFY_SOCKET; no child of ours inherits that."""

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):  # a name that is in no directory
            self._address = "\0" + self._address[1:]
        self._started = threading.Event()

    def starting(self) -> None:
        """Ask for time until `ready` or `stopping`: a model, or a Redis, may take long.

        Whoever calls it bounds that time.
        """
        if self._address:
            threading.Thread(target=self._ask_for_time, name="poc-start", daemon=True).start()

    def ready(self) -> None:
        """The start is over."""
        self._started.set()
        self._say("READY=1")

    def alive(self) -> None:
        """Something moved: wait for the next of these."""
        self._say("WATCHDOG=1")

    def stopping(self) -> None:
        """The end has begun."""
        self._started.set()
        self._say("STOPPING=1")

    def _ask_for_time(self) -> None:
        while not self._started.is_set():
            self._say(f"EXTEND_TIMEOUT_USEC={PATIENCE_S * 1_000_000}")
            self._started.wait(WORD_S)

    def _say(self, word: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                # A supervisor that does not listen must not hold up what it looks after.
                out.setblocking(False)
                out.sendto(word.encode(), self._address)
        except OSError as error:
            log.warning("systemd can't be told %s: %s", word, error)
