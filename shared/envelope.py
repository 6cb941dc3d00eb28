"""A signed document: a DSSE envelope with one Ed25519 signature, which anybody can check.

    {"payloadType": "...", "payload": "<base64>", "signatures": [{"keyid": "...", "sig": "..."}]}

What is signed is "DSSEv1 <length> <type> <length> <payload>", blanks between them, lengths in
bytes: https://github.com/secure-systems-lab/dsse. So the payload is kept as the bytes that it was,
and no two programs need to agree on how JSON is written. `keyid` is the public key, base64 of its
32 bytes.
"""

from __future__ import annotations

import base64
import binascii
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import InvalidRequest, NotGenuine
from shared.signature import KEY_BYTES, read_secret
from shared.status import printable


class Signature(BaseModel):
    """One signature; with `keyid` it can be checked, and by it the signer is known."""

    model_config = ConfigDict(frozen=True)

    keyid: str
    sig: str


class Envelope(BaseModel):
    """A payload, and a signature of it or none."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    payload_type: str = Field(alias="payloadType")
    payload: str
    signatures: list[Signature] = Field(max_length=10)

    @classmethod
    def seal(cls, payload_type: str, payload: bytes, secret: str | None) -> Self:
        """An envelope of `payload`, signed if there is a secret: base64 of 32 bytes."""
        signatures = []
        if secret:
            key = Ed25519PrivateKey.from_private_bytes(read_secret(secret, KEY_BYTES))
            public = key.public_key().public_bytes_raw()
            sig = key.sign(_signed(payload_type, payload))
            signatures = [Signature(keyid=_encode(public), sig=_encode(sig))]
        return cls(payload_type=payload_type, payload=_encode(payload), signatures=signatures)

    @classmethod
    def read(cls, text: str) -> Self:
        """The envelope that `text` holds. Raises `InvalidRequest` if it is none."""
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            raise InvalidRequest(
                "is no signed document: it lacks payloadType, payload or signatures"
            ) from None

    def open(self, payload_type: str) -> bytes:
        """The payload, whoever signed it. Raises `InvalidRequest` for one of another type."""
        if self.payload_type != payload_type:
            raise InvalidRequest(f"holds {self.payload_type!r:.100}, not {payload_type}")
        return _decode(self.payload)

    def verify(self, signer: str | None = None) -> str:
        """The public key of who signed it, which must be `signer` if that is given.

        Raises `NotGenuine` if it is not signed, not by the signer, or not as it was signed.
        """
        if not self.signatures:
            raise NotGenuine("it is not signed: nobody vouches for it")
        signed = _signed(self.payload_type, _decode(self.payload))
        keys = [each.keyid for each in self.signatures]
        if signer is not None and signer not in keys:
            raise NotGenuine(
                f"it is not signed by {signer:.100}, but by {printable(keys[0][:100])}"
            )
        for each in self.signatures:
            if signer in (None, each.keyid) and not _holds(each, signed):
                raise NotGenuine("its signature does not hold: it is not as it was signed")
        return signer or keys[0]


def _holds(signature: Signature, signed: bytes) -> bool:
    try:
        key = Ed25519PublicKey.from_public_bytes(_decode(signature.keyid))
        key.verify(_decode(signature.sig), signed)
    except (InvalidSignature, ValueError):
        return False
    return True


def _signed(payload_type: str, payload: bytes) -> bytes:
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: str) -> bytes:
    """What `text` stands for; nothing if it is no base64."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
