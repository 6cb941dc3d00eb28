"""How a node is asked, and what is told of one that does not answer as it must."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from shared.errors import ConfigError, PoCError
from worker.tools.network import node
from worker.tools.network.node import Credentials, Node


@contextmanager
def answering(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """The address of a node that gives this answer to every GET."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def says(text: str, status: int = 200) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.end_headers()
        request.wfile.write(text.encode())

    return answer


def test_it_is_asked_with_the_token() -> None:
    heard = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        heard.append(request.headers["Authorization"])
        says('{"data": [{"id": "m"}]}')(request)

    with answering(answer) as url:
        assert Node(url, Credentials("secret")).model() == "m"
    assert heard == ["Bearer secret"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"data": []}', '{"data": [7]}', "\xff"])
def test_what_names_no_model_is_told(text: str) -> None:
    with answering(says(text)) as url, pytest.raises(PoCError, match="/v1/models names no model"):
        Node(url).model()


def test_an_answer_that_drips_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here of its headers, of which some bytes come each time that they are waited for."""
    monkeypatch.setattr(Node._ask, "__defaults__", (None, 0.3))

    def drip(request: BaseHTTPRequestHandler) -> None:
        with suppress(OSError):
            request.wfile.write(b"HTTP/1.1 200 OK\r\n")
            for _ in range(40):
                request.wfile.write(b"X: 1\r\n")
                time.sleep(0.05)

    with answering(drip) as url:
        began = time.monotonic()
        with pytest.raises(PoCError, match=r"no whole answer in 0\.3 s"):
            Node(url).model()
        assert time.monotonic() - began < 1.5


def test_a_password_in_its_address_is_not_shown() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://user:secret@127.0.0.1:{taken.getsockname()[1]}/"
    with pytest.raises(PoCError) as refused:
        Node(url).model()
    assert "secret" not in str(refused.value)
    assert Node(url).url == url.replace("user:secret@", "").rstrip("/")


@pytest.mark.parametrize(
    "url", ["", "10.0.0.1:8100", "ftp://n", "http://", "http://u:sec/ret@n", "http://u:1/ret@n"]
)
def test_what_is_no_address_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match="must be http://host:port") as refused:
        Node(url)
    assert "ret@" not in str(refused.value)


def test_a_node_without_our_status_api_does_not_say_how_much_it_has() -> None:
    for text in ("", '{"state": 7}'):
        with answering(says(text)) as url:
            assert Node(url).computed("b") is None
    with answering(says("none", status=404)) as url:
        assert Node(url).computed("b") is None


def test_files_that_are_no_certificates_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"/nowhere/ca\.pem: no certificates"):
        Credentials.of(ca=Path("/nowhere/ca.pem"))
    (empty := tmp_path / "empty.pem").touch()
    with pytest.raises(ConfigError, match=r"empty\.pem: no certificates"):
        Credentials.of(cert=empty, key=empty)
    with pytest.raises(ConfigError, match="give both, or neither"):
        Credentials.of(cert=empty)


def test_it_waits_as_long_as_the_published_controller() -> None:
    assert (node.INIT_S, node.REQUEST_S) == (900, 20)
