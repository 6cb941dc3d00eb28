"""A receiver of callbacks on this machine."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from shared.errors import ConfigError

#: Path, headers and body of a POST to the status and the body of its answer.
Answer = Callable[[str, Message, bytes], tuple[int, bytes]]


@contextmanager
def receiving(host: str, answer: Answer) -> Iterator[str]:
    """The address of a receiver while the block runs; it calls `answer` in threads of its own.

    Raises `ConfigError` for a `host` that is not this machine's.
    """
    try:
        server = _Server((host, 0), answer)
    except OSError as error:
        raise ConfigError(
            f"callbacks can't be received at {host} ({error}); give an IPv4 address of this machine"
        ) from None
    with server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://{host}:{server.server_address[1]}"
        finally:
            server.shutdown()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], answer: Answer) -> None:
        self.answer = answer
        super().__init__(address, _Handler)

    def handle_error(self, *about: Any) -> None:
        """A sender that hung up is no news."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(*about)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        """Take a callback."""
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if len(body) < length:  # its sender was killed: nothing was received
            self.close_connection = True
            return
        status, said = self.server.answer(self.path, self.headers, body)
        self.send_response(status)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""
