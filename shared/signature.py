"""The signature of callbacks, so that a receiver knows who sent them: Standard Webhooks.

    webhook-id: the message's id, the same in each attempt (it is the Idempotency-Key)
    webhook-timestamp: Unix seconds of the attempt
    webhook-signature: v1,<base64 of HMAC-SHA256(secret, "<id>.<timestamp>.<body>")>

https://www.standardwebhooks.com lists libraries that verify it in many languages; `verify` does
it here. The secret is base64 of 24 to 64 random bytes, with or without `whsec_` before it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Mapping

from shared.errors import InvalidRequest

#: Seconds that a message's time may be away from the receiver's clock.
TOLERANCE_S = 300.0
_PREFIX = "whsec_"
#: Random bytes of a secret, and of a key of Ed25519 (`shared.envelope`).
_SECRET_BYTES = range(24, 65)
KEY_BYTES = range(32, 33)


def read_secret(text: str, sizes: range = _SECRET_BYTES) -> bytes:
    """The key in `text`, of as many bytes as `sizes` allow.

    Raises `ValueError` that says how to make one, and never shows it.
    """
    try:
        key = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) not in sizes:
        many = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        raise ValueError(
            f"must be base64 of {many} random bytes; make one with: openssl rand -base64 32"
        )
    return key


def sign(secret: str, id: str, timestamp: int, body: str) -> dict[str, str]:
    """The headers of an attempt at Unix time `timestamp` to send `body`."""
    message = f"{id}.{timestamp}.{body}".encode()
    digest = hmac.new(read_secret(secret), message, hashlib.sha256).digest()
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": "v1," + base64.b64encode(digest).decode(),
    }


def verify(secret: str, headers: Mapping[str, str], body: str, now: float | None = None) -> str:
    """The id of a message that was signed with `secret` at about `now` (default: the clock's).

    Header names count in lower case. Raises `InvalidRequest` for what is not to be trusted.
    """
    given = {name.lower(): value for name, value in headers.items()}
    try:
        key, sent, signatures = (given[f"webhook-{n}"] for n in ("id", "timestamp", "signature"))
    except KeyError as error:
        raise InvalidRequest(f"the message has no header {error.args[0]}") from None
    if not (sent.isascii() and sent.isdigit() and len(sent) < 16):
        raise InvalidRequest("webhook-timestamp is no time in Unix seconds")
    expected = sign(secret, key, int(sent), body)["webhook-signature"].encode()
    # Several, with blanks between, while a secret is being changed.
    if not any(hmac.compare_digest(each.encode(), expected) for each in signatures.split(" ")):
        raise InvalidRequest("the signature is not of this message and secret")
    if abs((time.time() if now is None else now) - int(sent)) > TOLERANCE_S:
        raise InvalidRequest(f"the message is older or newer than {TOLERANCE_S:g} s")
    return key
