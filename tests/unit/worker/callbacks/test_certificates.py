"""Receivers that ask for a certificate, and those that have one of a private authority."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from receiver import Receiver
from shared.errors import ConfigError
from shared.settings import Settings, load_settings
from worker.callbacks.attempt import Answer, client_for, post, tls_for


@pytest.fixture
def authority() -> trustme.CA:
    """Of the receiver and of those that it knows."""
    return trustme.CA()


@pytest.fixture
def receiver(authority: trustme.CA) -> Iterator[Receiver]:
    """One that takes messages over TLS, of those alone whom its authority knows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    with Receiver() as made:
        made.socket = context.wrap_socket(made.socket, server_side=True)
        yield made


@pytest.fixture
def settings(authority: trustme.CA, tmp_path: Path) -> Callable[..., Settings]:
    """Those of a sender: `trusts` its receiver, and `shows` a certificate of an authority."""

    def settings(*, trusts: bool = True, shows: trustme.CA | None = None) -> Settings:
        given: dict[str, str] = {}
        if trusts:
            given["callback_tls_ca"] = str(tmp_path / "ca.pem")
            authority.cert_pem.write_to_path(given["callback_tls_ca"])
        if shows:
            own = shows.issue_cert("worker.example")
            given["callback_tls_cert"] = str(tmp_path / "own.pem")
            given["callback_tls_key"] = str(tmp_path / "own.key")
            own.cert_chain_pems[0].write_to_path(given["callback_tls_cert"])
            own.private_key_pem.write_to_path(given["callback_tls_key"])
        return load_settings({}, **given)

    return settings


def sent(settings: Settings, receiver: Receiver) -> Answer:
    """What came of one message."""

    async def send() -> Answer:
        async with client_for(settings, 1, tls_for(settings)) as client:
            url = receiver.url.replace("http:", "https:")
            return await post(client, settings, url, "key", "{}")

    return asyncio.run(send())


def test_one_that_asks_for_a_certificate_is_shown_it(
    receiver: Receiver, settings: Callable[..., Settings], authority: trustme.CA
) -> None:
    assert sent(settings(shows=authority), receiver) == Answer()
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("shows", [None, trustme.CA()], ids=["none", "a stranger's"])
def test_one_that_does_not_know_us_is_tried_again(
    receiver: Receiver, settings: Callable[..., Settings], shows: trustme.CA | None
) -> None:
    """Who runs it may mend that before the deadline."""
    answer = sent(settings(shows=shows), receiver)
    assert answer.retry
    assert "Error" in answer.error
    assert receiver.requests == []


def test_one_of_a_private_authority_is_not_trusted_by_itself(
    receiver: Receiver, settings: Callable[..., Settings], authority: trustme.CA
) -> None:
    answer = sent(settings(trusts=False, shows=authority), receiver)
    assert answer.retry
    assert "CERTIFICATE_VERIFY_FAILED" in answer.error


@pytest.mark.parametrize("name", ["callback_tls_cert", "callback_tls_ca"])
def test_a_file_that_is_not_there_is_named(name: str) -> None:
    given = {name: "/nowhere"} | ({"callback_tls_key": "/nowhere"} if "cert" in name else {})
    with pytest.raises(ConfigError, match=f"POC_{name.upper()}=/nowhere: there is no such file"):
        tls_for(load_settings({}, **given))


def test_certificate_and_key_come_together() -> None:
    with pytest.raises(ConfigError, match="POC_CALLBACK_TLS_CERT and POC_CALLBACK_TLS_KEY: set"):
        load_settings({}, callback_tls_cert="own.pem")
