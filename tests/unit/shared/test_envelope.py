"""A signed document is believed as it was signed, and in no other form."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shared.envelope import Envelope
from shared.errors import InvalidRequest, NotGenuine

KEY = base64.b64encode(bytes(range(32))).decode()
OTHER = base64.b64encode(bytes(32)).decode()
TYPE, PAYLOAD = "http://example.com/HelloWorld", b"hello world"


def sealed(secret: str | None = KEY) -> Envelope:
    return Envelope.seal(TYPE, PAYLOAD, secret)


def changed(envelope: Envelope, **parts: Any) -> Envelope:
    """It as somebody may have edited its file."""
    return Envelope.read(json.dumps(json.loads(envelope.model_dump_json(by_alias=True)) | parts))


def test_it_comes_back_as_it_was() -> None:
    envelope = Envelope.read(sealed().model_dump_json(by_alias=True))
    assert envelope.open(TYPE) == PAYLOAD
    assert envelope.verify() == envelope.signatures[0].keyid
    assert envelope.verify(envelope.signatures[0].keyid) == envelope.signatures[0].keyid


def test_anybody_can_check_it() -> None:
    """With an Ed25519 library and the line that DSSE's own specification has as its example."""
    (signature,) = sealed().signatures
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(signature.keyid))
    signed = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    key.verify(base64.b64decode(signature.sig), signed)


@pytest.mark.parametrize(
    "parts",
    [
        {"payload": base64.b64encode(b"hello World").decode()},
        {"payload": base64.b64encode(PAYLOAD + b" ").decode()},
        {"payload": "no base64!"},
        {"payloadType": "http://example.com/Hello"},
        # The same bytes, cut in another place.
        {"payloadType": f"{TYPE} 11", "payload": base64.b64encode(b"hello world").decode()},
        {"signatures": [{"keyid": sealed().signatures[0].keyid, "sig": ""}]},
        {"signatures": [{"keyid": "", "sig": sealed().signatures[0].sig}]},
        {"signatures": [sealed().signatures[0].model_dump() | {"keyid": OTHER}]},
        # One that holds does not make up for another.
        {
            "signatures": [
                sealed().signatures[0].model_dump(),
                sealed(OTHER).signatures[0].model_dump() | {"sig": sealed().signatures[0].sig},
            ]
        },
    ],
)
def test_what_was_changed_is_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(NotGenuine, match="not as it was signed"):
        changed(sealed(), **parts).verify()


def test_without_a_signature_it_is_refused() -> None:
    with pytest.raises(NotGenuine, match="nobody vouches"):
        sealed(secret=None).verify()


def test_another_signer_is_refused() -> None:
    """However right its signature is."""
    wanted = sealed(OTHER).signatures[0].keyid
    with pytest.raises(NotGenuine, match="not signed by"):
        sealed().verify(wanted)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"payload": 1}', "\x00", "[" * 10_000])
def test_what_is_no_envelope_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="no signed document"):
        Envelope.read(text)


def test_another_type_is_not_opened() -> None:
    """A signature under something else is none under this."""
    with pytest.raises(InvalidRequest, match="HelloWorld"):
        sealed().open("application/json")
