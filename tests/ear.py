"""The socket of a supervisor such as systemd, and what it hears on it."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path


class Ear:
    """Listens on a path, which is to be the NOTIFY_SOCKET of a process."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.setblocking(False)
        self._heard: list[str] = []

    def heard(self) -> list[str]:
        """All that was said so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._heard.append(self._socket.recv(4096).decode())
        return self._heard

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()
