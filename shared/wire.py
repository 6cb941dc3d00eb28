"""What everything that comes over the wire is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

#: The largest nonce: what a signed 64-bit integer holds, so that every language can carry it.
MAX_NONCE = 2**63 - 1
#: The most nonces in one batch to validate: about 6 MB of JSON with a vector each.
MAX_PROOF_NONCES = 100_000

Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
#: An id that a caller may choose: part of key names, so only characters that need no quoting.
RoundId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Nonce = Annotated[int, Field(ge=0, le=MAX_NONCE)]


class Strict(BaseModel):
    """The base of everything on the wire: no unknown fields, no coercion, no NaN, immutable."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True
    )
