"""The transport connects to what it looked at, and to nothing that is closed."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
import trustme

from shared.receivers import Receivers
from worker.callbacks.guard import NotAllowed, guarded_transport

NAME = "node.example"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.server.hosts.append(str(self.headers["Host"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""


class _Server(ThreadingHTTPServer):
    """A receiver on 127.0.0.1, which notes the names that it is called by."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hosts: list[str] = []
        self.port = int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that trusts nobody is no news."""


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


class Names:
    """A name server: each question for NAME gets the next answer, the last one again and again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: list[list[str]] = []
        self.asked = 0
        real = socket.getaddrinfo

        def ask(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
            if host not in (NAME, NAME.encode()):
                return real(host, port, *args, **kwargs)
            answer = self.answers[min(self.asked, len(self.answers) - 1)]
            self.asked += 1
            return [each for ip in answer for each in real(ip, port, *args, **kwargs)]

        monkeypatch.setattr(socket, "getaddrinfo", ask)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


def get(url: str, allow: str | None = None, context: ssl.SSLContext | None = None) -> int:
    """The status that `url` answers with; whom to trust is in `context`."""
    trusted = context or httpx.create_ssl_context()

    async def ask() -> int:
        transport = guarded_transport(Receivers.of(allow), 1, trusted)
        async with httpx.AsyncClient(transport=transport, trust_env=False, timeout=10) as client:
            return (await client.get(url)).status_code

    return asyncio.run(ask())


def test_a_name_of_this_machine_is_reached(server: _Server, names: Names) -> None:
    names.answers = [["127.0.0.1"]]
    assert get(f"http://{NAME}:{server.port}/") == 204
    assert server.hosts == [f"{NAME}:{server.port}"]


def test_a_name_that_changes_is_asked_for_once(server: _Server, names: Names) -> None:
    """Given a name server that gives a closed address the second time, it is never connected to."""
    names.answers = [["127.0.0.1"], ["169.254.169.254"]]
    assert get(f"http://{NAME}:{server.port}/") == 204
    assert (names.asked, len(server.hosts)) == (1, 1)


@pytest.mark.parametrize("address", ["169.254.169.254", "fe80::1", "fd00:ec2::254", "0.0.0.0"])
def test_a_name_of_a_closed_address_is_refused(address: str, names: Names) -> None:
    names.answers = [[address]]
    with pytest.raises(NotAllowed, match=rf"{NAME} \({address}\) is "):
        get(f"http://{NAME}:9/")


def test_of_several_addresses_a_closed_one_is_passed_over(server: _Server, names: Names) -> None:
    names.answers = [["169.254.169.254", "127.0.0.1"]]
    assert get(f"http://{NAME}:{server.port}/") == 204


def test_of_several_addresses_a_dead_one_is_passed_over(server: _Server, names: Names) -> None:
    """Nobody listens on the first."""
    names.answers = [["127.0.0.2", "127.0.0.1"]]
    assert get(f"http://{NAME}:{server.port}/") == 204


@pytest.mark.parametrize(
    "host", ["2852039166", "0xa9fea9fe", "169.254.43518", "[::ffff:169.254.169.254]"]
)
def test_other_forms_of_a_closed_address_are_refused(host: str) -> None:
    """As the system's own resolver reads them."""
    with pytest.raises(NotAllowed, match="link-local"):
        get(f"http://{host}:9/")


def test_a_list_is_kept_to(server: _Server, names: Names) -> None:
    names.answers = [["127.0.0.1"]]
    url = f"http://{NAME}:{server.port}/"
    assert get(url, allow=NAME) == get(url, allow="127.0.0.0/8") == 204
    for allow in ("other.example", "10.0.0.0/8"):
        with pytest.raises(NotAllowed, match="not in POC_CALLBACK_ALLOW"):
            get(url, allow=allow)
    assert len(server.hosts) == 2


def test_a_name_that_there_is_not_is_trouble_that_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(httpx.ConnectError, match="Name or service not known"):
        get("http://nowhere.example/")


def test_tls_is_about_the_name_not_the_address(server: _Server, names: Names) -> None:
    """Given a certificate for the name, it counts for that name only, and needs a known CA."""
    names.answers = [["127.0.0.1"]]
    ca = trustme.CA()
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(NAME).configure_cert(ours)
    server.socket = ours.wrap_socket(server.socket, server_side=True)

    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        get(f"https://{NAME}:{server.port}/")

    trusting = ssl.create_default_context()
    ca.configure_trust(trusting)
    assert get(f"https://{NAME}:{server.port}/", context=trusting) == 204
    with pytest.raises(httpx.ConnectError, match="not valid for '127"):
        get(f"https://127.0.0.1:{server.port}/", context=trusting)
