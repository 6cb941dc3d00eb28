"""What a round is told to do (`PoCConfig`) and what it can be doing (`PoCState`)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AliasChoices,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
    model_validator,
)

from shared.schemes import AnyTerms, Terms
from shared.schemes.distance import PROBABILITY_MISMATCH, r_target_for, share_below
from shared.wire import MAX_NONCE, Name, RoundId, Strict

__all__ = [
    "MAX_BATCH_SIZE",
    "MAX_NODE_COUNT",
    "MAX_NONCE",
    "MAX_SECONDS",
    "MAX_VALID",
    "PROBABILITY_MISMATCH",
    "Name",
    "PoCConfig",
    "PoCState",
    "RoundId",
    "Strict",
    "r_target_for",
    "share_below",
]

#: Stands in paths of errors where the fields of a scheme are, and is not shown.
TERMS = ":terms"

#: The largest batch. It bounds a callback message: to about 200 kB of distances, and to 300 kB of
#: vectors of 12 numbers, of which several batches are joined (see `_round.lua`).
MAX_BATCH_SIZE = 4096
#: The most valid nonces that a round may be allowed to hold.
MAX_VALID = 100_000_000
#: The longest generation that ends by itself: a year.
MAX_SECONDS = 31_536_000
#: The largest network. With it a node's sequence is 2**43 positions long and never runs out.
MAX_NODE_COUNT = 1_000_000


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


HttpUrl = Annotated[str, StringConstraints(max_length=2048), AfterValidator(_http_url)]


class PoCConfig(Strict):
    """One round: what is hashed into the inputs, whose nonces, and by which scheme they count.

    The fields of its scheme are given beside the others, and are read from `terms`.
    """

    # What is no field of its own is for the scheme, which refuses what it does not know.
    model_config = ConfigDict(extra="ignore")

    block_hash: Name
    block_height: int = Field(ge=0, le=MAX_NONCE)
    public_key: Name
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
    #: What is the scheme's own: see `shared.schemes`. Errors name its fields without this.
    terms: AnyTerms = Field(alias=TERMS)

    @model_validator(mode="before")
    @classmethod
    def _gather_terms(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        # Given both names of the receiver, nobody could say which one counts: one is refused.
        ours = _OWN - {"url"} if "callback_url" in data else _OWN
        own = {name: value for name, value in data.items() if name in ours}
        rest = {name: value for name, value in data.items() if name not in ours}
        if isinstance(rest.get("terms"), Terms):
            own["terms"] = rest.pop("terms")
            if rest:
                raise ValueError(f"{min(rest)}: is no field of a config beside its terms")
            return own
        return own | {TERMS: rest}

    @model_serializer(mode="wrap")
    def _lay_out_terms(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = plain(self)
        terms = fields.pop("terms", None) or fields.pop(TERMS, None) or {}
        return {"scheme": self.scheme, **fields, **terms}

    @model_validator(mode="after")
    def _check_node(self) -> Self:
        if self.node_id >= self.node_count:
            raise ValueError(f"node_id {self.node_id} is not in [0, node_count={self.node_count})")
        if self.node_id > self.terms.max_nonce:
            raise ValueError(f"node_id {self.node_id}: nonces end at {self.terms.max_nonce}")
        return self

    if not TYPE_CHECKING:
        # For callers: within the project it says `terms`, and which scheme's.
        def __getattr__(self, name: str) -> Any:
            terms = self.__dict__.get("terms")
            if terms is not None and name in type(terms).model_fields:
                return getattr(terms, name)
            return super().__getattr__(name)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As of any model, unchecked; what the `update` has of the scheme goes to the terms."""
        changes = dict(update or {})
        own = {name: changes.pop(name) for name in {*changes} & {*type(self.terms).model_fields}}
        if own:
            changes["terms"] = self.terms.model_copy(update=own)
        return super().model_copy(update=changes, deep=deep)

    @property
    def scheme(self) -> str:
        """What a proof is."""
        return self.terms.name

    @property
    def positions(self) -> int:
        """How long this node's sequence of nonces is."""
        return (self.terms.max_nonce - self.node_id) // self.node_count + 1

    def nonces(self, start: int, count: int) -> tuple[int, ...]:
        """The nonces at `count` positions of this node's sequence from position `start` on."""
        first = self.node_id + start * self.node_count
        return tuple(range(first, first + count * self.node_count, self.node_count))


#: What a config says for itself; all else is its scheme's.
_OWN = frozenset(PoCConfig.model_fields) - {"terms"} | {"url"}
