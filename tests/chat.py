"""What stands in for the vLLM of a worker: it is well, and streams an answer in two pieces."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

#: Seconds until its first piece. No model is faster, and Caddy 2.6 may cut an answer that begins
#: before it has seen the end of the request.
THINKS_S = 0.02
FIRST, LAST = b'data: {"piece": 1}\n\n', b"data: [DONE]\n\n"


class Chat(ThreadingHTTPServer):
    """It sends the last piece of an answer when it is let go."""

    daemon_threads = True

    def __init__(self, *, held: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.let_go, self.left = threading.Event(), threading.Event()
        if not held:
            self.let_go.set()
        #: (path, headers, body) of each request, in order.
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that hung up is told by `left`."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Chat

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, dict(self.headers), body))
        time.sleep(THINKS_S)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._send(FIRST)
        self.connection.settimeout(0.01)
        while not self.server.let_go.is_set():
            try:
                if not self.connection.recv(1):
                    self.server.left.set()
                    self.close_connection = True
                    return
            except TimeoutError:
                pass
        self.connection.settimeout(None)
        self._send(LAST)
        self._send(b"")

    def _send(self, piece: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))

    def log_message(self, *_: object) -> None:
        """Say nothing."""
