"""What a round is told to do (`PoCConfig`) and what it can be doing (`PoCState`)."""

from __future__ import annotations

from enum import StrEnum
from math import sqrt
from statistics import NormalDist
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

#: The published probability that an honest node's nonce is recomputed on the other side.
PROBABILITY_MISMATCH = 5e-4
#: The largest nonce: what a signed 64-bit integer holds, so that every language can carry it.
MAX_NONCE = 2**63 - 1
#: The largest batch. It bounds a callback message to about 200 kB.
MAX_BATCH_SIZE = 4096
#: The most valid nonces that a round may be allowed to hold.
MAX_VALID = 100_000_000
#: The largest network. With it a node's sequence is 2**43 positions long and never runs out.
MAX_NODE_COUNT = 1_000_000


def r_target_for(share: float, vocab_size: int) -> float:
    """The r_target below which about `share` of the nonces (0 to 1) of a random model lie.

    Distances are sqrt(2 - 2c), and c, the cosine of two directions that have nothing to do with
    each other, is close to normal with a variance of 1 / vocab_size. Trained models spread more
    from block to block, so for them it is a first guess.
    """
    # Of a handful of tokens even the least distance may be more common than that.
    return sqrt(max(0.0, 2 - 2 * NormalDist().inv_cdf(1 - share) / sqrt(vocab_size)))


def share_below(r_target: float, vocab_size: int) -> float:
    """About which share of the nonces, 0 to 1, lies below `r_target`: as `r_target_for` turned."""
    return NormalDist().cdf((r_target**2 / 2 - 1) * sqrt(vocab_size))


class PoCState(StrEnum):
    """The states of a round."""

    IDLE = "IDLE"
    GENERATING = "GENERATING"
    VALIDATING = "VALIDATING"
    STOPPED = "STOPPED"


def _http_url(url: str) -> str:
    if not url.isprintable() or " " in url:
        raise ValueError("a URL has no blanks and no control characters; write them as %20, ...")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError("only http:// and https:// can receive callbacks")
    if not parts.hostname:
        raise ValueError("a callback URL needs a host")
    if "@" in parts.netloc:
        raise ValueError(
            "a callback URL takes no user and password, since many see it; set POC_CALLBACK_SECRET "
            "on the workers, and the receiver knows them by their signature"
        )
    if parts.query or parts.fragment:
        raise ValueError("a callback URL takes no query and no fragment: a path is put behind it")
    _ = parts.port  # raises ValueError when it is not a port
    try:
        parts.hostname.encode("idna")
    except UnicodeError:
        raise ValueError(f"{parts.hostname[:80]!r} can't be the name of a host") from None
    return url.rstrip("/")


Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
#: An id that a caller may choose: part of key names, so only characters that need no quoting.
RoundId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
HttpUrl = Annotated[str, StringConstraints(max_length=2048), AfterValidator(_http_url)]


class Strict(BaseModel):
    """The base of everything on the wire: no unknown fields, no coercion, no NaN, immutable."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True
    )


class PoCConfig(Strict):
    """One round: what is hashed into the inputs, what counts as valid, and whose nonces."""

    block_hash: Name
    block_height: int = Field(ge=0, le=MAX_NONCE)
    public_key: Name
    #: A nonce is valid when its distance (0 to 2) is strictly below this.
    r_target: float = Field(gt=0, le=2)
    #: A validation is fraud when an honest node had it this bad with a lower probability.
    fraud_threshold: float = Field(default=0.01, gt=0, lt=1)
    node_id: int = Field(default=0, ge=0)
    node_count: int = Field(default=1, ge=1, le=MAX_NODE_COUNT)
    batch_size: int = Field(default=32, ge=1, le=MAX_BATCH_SIZE)
    seq_len: int = Field(default=256, ge=1, le=1_048_576)
    callback_url: HttpUrl | None = Field(
        default=None, validation_alias=AliasChoices("callback_url", "url")
    )
    #: Seconds that a callback is tried for before it is given up, visibly.
    callback_deadline_s: float = Field(default=3600, gt=0, le=604_800)
    #: Draw inputs from all 256 bits of the seed instead of 32 (see the generator).
    strong_rng: bool = False
    #: How often an honest nonce changes sides: the p of the binomial test.
    p_mismatch: float = Field(default=PROBABILITY_MISMATCH, gt=0, lt=1)
    #: What a validator allows a recomputed distance above r_target.
    dist_tolerance: float = Field(default=0, ge=0, le=2)
    #: How far below r_target a prover stays.
    submit_margin: float = Field(default=0, ge=0, lt=2)

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if self.node_id >= self.node_count:
            raise ValueError(f"node_id {self.node_id} is not in [0, node_count={self.node_count})")
        if self.submit_margin >= self.r_target:
            raise ValueError("submit_margin must be below r_target, or nothing can be valid")
        return self

    @property
    def valid_below(self) -> float:
        """The distance that a nonce must stay below to be submitted."""
        return self.r_target - self.submit_margin

    def nonces(self, start: int, count: int) -> tuple[int, ...]:
        """The nonces at `count` positions of this node's sequence from position `start` on."""
        first = self.node_id + start * self.node_count
        return tuple(range(first, first + count * self.node_count, self.node_count))
