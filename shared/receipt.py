"""What a node did in a round, for whoever has to believe it: a document that is signed as a whole.

It holds no nonces, but a digest of them all: whoever has the nonces sees that they are these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from pydantic import Field, ValidationError

from shared.envelope import Envelope
from shared.errors import InvalidRequest
from shared.overview import Bin, Sample
from shared.schemes import Proof
from shared.status import Frozen, Incident, RoundStatus

PAYLOAD_TYPE = "application/vnd.poc-worker.receipt+json"
#: How to come to the digest.
RULE = (
    "SHA-256 of one line for each valid nonce, in order of discovery: the nonce in decimal digits, "
    "a blank, its proof as Redis keeps it (a distance as Python's repr writes a float64, or a "
    "vector as base64), a line feed"
)


class Nonces(Frozen):
    """All valid nonces of a round with their proofs, as a digest."""

    count: int
    sha256: str
    rule: str = RULE

    @classmethod
    def of(cls, pages: Iterable[tuple[Sequence[int], Sequence[Proof]]]) -> Nonces:
        """The digest of nonces and proofs that come in pages; one page at a time is held."""
        digest, count = hashlib.sha256(), 0
        for nonces, proofs in pages:
            lines = (f"{n} {_text(p)}\n" for n, p in zip(nonces, proofs, strict=True))
            digest.update("".join(lines).encode())
            count += len(nonces)
        return cls(count=count, sha256=digest.hexdigest())


def _text(proof: Proof) -> str:
    return proof if isinstance(proof, str) else repr(proof)


class Gpu(Frozen):
    """A card, by name and number."""

    name: str
    uuid: str


class Device(Frozen):
    """What a worker computes with."""

    worker: str
    device: str
    model: str
    fingerprint: str
    tile: int
    gpus: list[Gpu]
    #: Of Python and of the packages that may move the last bits of a distance.
    versions: dict[str, str] = Field(default_factory=dict)


class Receipt(Frozen):
    """One round of one node, as its Redis had it at a time."""

    #: Of this form.
    version: int = 1
    #: What made it.
    software: str
    namespace: str
    #: Unix time by Redis' clock.
    made_at: float = Field(ge=0, le=1e11)
    #: Config, counts, times, rates, callbacks, and the profile of what computed it: the status
    #: without its list of nonces.
    round: RoundStatus
    nonces: Nonces
    #: The course of the round, oldest first.
    history: list[Sample]
    #: Its distances, in bins that touch; empty where no worker says how large the vocabulary is.
    histogram: list[Bin]
    #: The workers that lived when it was made, which are not always those of the round.
    workers: list[Device]
    #: Workers that had to end during the round, newest first.
    incidents: list[Incident] = Field(default_factory=list)

    def payload(self) -> bytes:
        """What is signed."""
        left_out = {"round": {"valid_nonces", "valid_distances", "valid_proofs"}}
        return self.model_dump_json(indent=1, exclude=left_out).encode()

    @classmethod
    def of(cls, envelope: Envelope) -> Receipt:
        """The receipt in an envelope, whose signature is another matter."""
        try:
            return cls.model_validate_json(envelope.open(PAYLOAD_TYPE))
        except ValidationError:
            raise InvalidRequest("holds no receipt that this version can read") from None
