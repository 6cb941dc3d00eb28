"""What tests have in common that send a server of ours whatever a client may send."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil
from hypothesis import HealthCheck, settings

#: The share of a profile's examples that each test takes.
SHARE = 0.25
few = settings(
    max_examples=max(1, round(settings().max_examples * SHARE)),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@dataclass(frozen=True)
class Served:
    """A process that must survive it all, and where it answers."""

    url: str
    pid: int
    log_path: Path

    def check(self) -> None:
        """It has failed at nothing."""
        assert psutil.pid_exists(self.pid)
        log = self.log_path.read_text()
        # uvicorn itself logs one when it has answered with 400 what it could not read further.
        assert log.count("Traceback") == log.count("h11._util.LocalProtocolError: ")


def request(path: str, *headers: str, method: str = "GET", body: bytes = b"") -> bytes:
    """A request as bytes."""
    lines = [f"{method} {path} HTTP/1.1", "Host: h", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def answer_to(sent: bytes, url: str) -> bytes:
    """What comes back on a connection of its own; nothing if the server hangs up."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        with contextlib.suppress(OSError):  # it may hang up before it has read all
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
        try:
            return b"".join(iter(lambda: connection.recv(65_536), b""))
        except ConnectionError:
            return b""
