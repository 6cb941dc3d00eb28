"""What the receiver of the tools takes for a callback."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from email.message import Message

import httpx
import pytest

from shared.errors import ConfigError
from worker.tools.receiver import receiving

HOST = "127.0.0.1"


@pytest.fixture
def heard() -> list[tuple[str, str, bytes]]:
    """Path, key and body of all that was taken."""
    return []


@pytest.fixture
def url(heard: list[tuple[str, str, bytes]]) -> Iterator[str]:
    """Of one that has no time."""

    def answer(path: str, headers: Message, body: bytes) -> tuple[int, bytes]:
        heard.append((path, headers["idempotency-key"], body))
        return 503, b"later"

    with receiving(HOST, answer) as url:
        yield url


def test_a_post_gets_its_answer(url: str, heard: list[tuple[str, str, bytes]]) -> None:
    """On a connection that stays."""
    with httpx.Client(base_url=url, headers={"Idempotency-Key": "k"}) as sender:
        for _ in range(2):
            said = sender.post("/generated", content=b"{}")
            assert (said.status_code, said.text) == (503, "later")
    assert heard == [("/generated", "k", b"{}")] * 2


def test_a_body_that_ends_early_is_not_taken(url: str, heard: list[tuple[str, str, bytes]]) -> None:
    """Its sender was killed, and will send it again."""
    with socket.create_connection((HOST, httpx.URL(url).port or 0), 5) as sender:
        sender.sendall(b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n{}")
        sender.shutdown(socket.SHUT_WR)
        assert sender.recv(100) == b""
    assert not heard


def test_an_address_of_another_machine_is_refused() -> None:
    with (
        pytest.raises(ConfigError, match=r"at 192\.0\.2\.1 .*give an IPv4 address of this machine"),
        receiving("192.0.2.1", lambda *_: (200, b"")),
    ):
        pass
