"""A controller to which callbacks are posted."""

from __future__ import annotations

import json
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Answer = int | str | tuple[int, str]


class Receiver(ThreadingHTTPServer):
    """It answers 200, or what `answers` holds, one a request.

    An answer is a status, a status with a body, "hang" (none until the receiver closes), "drip"
    (headers without an end), or "hold" (200 once it is let go).
    """

    daemon_threads = True

    def __init__(self, *answers: Answer, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__((host, port), _Handler)
        self.answers = deque(answers)
        self.always: Answer = 200
        #: A body that holds this gets 500, always.
        self.poison = b"no body holds this"
        self.closing, self.let_go = threading.Event(), threading.Event()
        #: (path, headers, body) of each request, in order.
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/poc"

    def bodies(self, path: str) -> list[dict[str, Any]]:
        """What was posted to `path`."""
        return [json.loads(body) for at, _, body in list(self.requests) if at == path]

    @property
    def nonces(self) -> list[int]:
        """What it was told, once each however often."""
        return sorted({n for body in self.bodies("/poc/generated") for n in body["nonces"]})

    def answer(self, path: str, body: bytes) -> Answer:
        """What a request gets; one at a time."""
        if self.poison in body:
            return 500
        return self.answers.popleft() if self.answers else self.always

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A sender that hung up is no news."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Receiver

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) < length:  # its sender was killed meanwhile: nothing was received
            self.close_connection = True
            return
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers), body))
            answer = self.server.answer(self.path, body)
        if answer == "hang":
            self.server.closing.wait(60)
            self.close_connection = True
        elif answer == "drip":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            while not self.server.closing.wait(0.02):
                self.wfile.write(b"X-More: 1\r\n")
        else:
            if answer == "hold":
                self.server.let_go.wait(60)
                answer = 200
            status, said = answer if isinstance(answer, tuple) else (int(answer), "{}")
            self.send_response(status)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said.encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""
