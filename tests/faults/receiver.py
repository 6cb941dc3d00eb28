"""A callback receiver that has bad days."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from shared.listener import listen

#: What it may be besides well: how it then treats a message.
TROUBLES = ("down", "slow", "answers 500", "never ends its answer")
SLOW_S = 1.0


@dataclass
class Received:
    """All that was ever posted under one idempotency key."""

    path: str
    body: dict[str, Any]
    raw: bytes
    times: int = 0
    #: Other bodies under the same key: there must be none.
    others: list[bytes] = field(default_factory=list)


class Receiver:
    """Listens on one port for the whole run; `trouble` is one of TROUBLES, or None.

    A message counts as received when its answer was a 2xx, whether its sender heard that or not.
    Below `/moved` every answer is a redirect, for good.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._got: dict[str, dict[str, Received]] = defaultdict(dict)
        self.trouble: str | None = None
        #: Posts that were answered with a redirect, by path and key.
        self.redirected: set[tuple[str, str]] = set()
        probe = listen("127.0.0.1", 0)
        self.port: int = probe.getsockname()[1]
        self._server: _Server | None = None
        self._serve(probe)

    def url(self, name: str, *, moved: bool = False) -> str:
        """A callback URL for one round."""
        return f"http://127.0.0.1:{self.port}{'/moved' if moved else ''}/{name}"

    def got(self, path: str) -> dict[str, Received]:
        """What came to a path, by idempotency key."""
        with self._lock:
            return dict(self._got[path])

    def counts(self) -> tuple[int, int]:
        """Messages, and repeats of them."""
        with self._lock:
            all_got = [each for by_key in self._got.values() for each in by_key.values()]
            return len(all_got), sum(each.times - 1 for each in all_got)

    def forget(self) -> None:
        """Begin a new book."""
        with self._lock:
            self._got.clear()
            self.redirected.clear()

    def suffer(self, trouble: str | None) -> None:
        """Be in `trouble`, or well again."""
        self.trouble = trouble
        if trouble == "down":
            self.close()
        elif self._server is None:
            self._serve(listen("127.0.0.1", self.port))

    def close(self) -> None:
        """Refuse connections."""
        server, self._server = self._server, None
        if server:
            server.shutdown()
            server.server_close()

    def take(self, path: str, key: str, raw: bytes) -> None:
        """Write a message into the book."""
        with self._lock:
            known = self._got[path].setdefault(key, Received(path, json.loads(raw), raw))
            known.times += 1
            if raw != known.raw:
                known.others.append(raw)

    def _serve(self, sock: socket.socket) -> None:
        self._server = server = _Server(self, sock)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, receiver: Receiver, sock: socket.socket) -> None:
        super().__init__(sock.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = sock
        self.receiver = receiver

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A sender that goes away in the middle is what this is for."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        receiver = self.server.receiver
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        key, trouble = self.headers["Idempotency-Key"], receiver.trouble
        if self.path.startswith("/moved"):
            receiver.redirected.add((self.path, key))
            self._answer(302, Location=receiver.url("elsewhere"))
        elif trouble == "down":  # a connection from better days
            self.close_connection = True
        elif trouble == "answers 500":
            self._answer(500)
        elif trouble == "never ends its answer":
            self._drip(receiver)
        else:
            if trouble == "slow":
                time.sleep(SLOW_S)
            receiver.take(self.path, key, raw)
            self._answer(200)

    def _answer(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _drip(self, receiver: Receiver) -> None:
        """Headers that never end."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        with contextlib.suppress(OSError):
            while receiver.trouble == "never ends its answer":
                self.wfile.write(b"X-Still: here\r\n")
                time.sleep(0.2)
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Say nothing."""
