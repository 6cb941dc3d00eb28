"""What a scheme is: what a proof is, what counts, how a claim is judged.

Each scheme is one file beside this one, and one in `worker/schemes/` with its tensors. All others
carry proofs without looking in: they ask the `Terms` of a round's config.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from pydantic import Field, model_validator

from shared.wire import MAX_NONCE, MAX_PROOF_NONCES, Name, Nonce, Strict

if TYPE_CHECKING:
    from shared.config import PoCConfig

#: What a nonce gave, as JSON carries it.
Proof = float | str


class Batch(Strict, ABC):
    """Nonces of one block and key, and what is claimed for them."""

    public_key: Name
    block_hash: Name
    block_height: int = Field(ge=0, le=MAX_NONCE)
    nonces: list[Nonce] = Field(max_length=MAX_PROOF_NONCES)

    #: The scheme that judges it.
    scheme_name: ClassVar[str]
    #: Fields by which it is told from the batches of other schemes, unless it says `scheme`.
    marks: ClassVar[frozenset[str]]

    if TYPE_CHECKING:
        # Each scheme declares it behind its claims, so that JSON has them in that order.
        node_id: int

    @model_validator(mode="after")
    def _check_nonces(self) -> Self:
        if len(set(self.nonces)) != len(self.nonces):
            raise ValueError("a nonce is repeated")
        return self

    def __len__(self) -> int:
        return len(self.nonces)

    @property
    @abstractmethod
    def claims(self) -> Sequence[Proof] | None:
        """What is claimed for each nonce; None if nothing is, and the proofs are asked for."""


class Ended(NamedTuple):
    """How a validation ended, in the words that all schemes share."""

    nonces: int
    n_invalid: int
    #: How probable it is that an honest node has at least this many invalid nonces: the p-value.
    probability_honest: float
    fraud_detected: bool
    #: How far claims lie from what was recomputed, on average and at most; None where there is
    #: nothing to compare.
    apart_mean: float | None = None
    apart_max: float | None = None

    @classmethod
    def of(
        cls, nonces: int, n_invalid: int, probability: float, fraud: bool, apart: Sequence[float]
    ) -> Ended:
        """With `apart` of each nonce that can be compared."""
        mean, most = (fmean(apart), max(apart)) if apart else (None, None)
        return cls(nonces, n_invalid, probability, fraud, mean, most)


class Verdict(Strict, ABC):
    """The end of a validation, with all that it rests on."""

    @property
    @abstractmethod
    def ended(self) -> Ended | None:
        """What it came to; None if nothing was claimed, so that nobody is judged."""

    @property
    def is_fraud(self) -> bool:
        """Whether an honest node hardly ever has it this bad."""
        return self.ended is not None and self.ended.fraud_detected

    @property
    @abstractmethod
    def proofs(self) -> Sequence[Proof | None]:
        """What was recomputed, in the order of the batch's nonces; None for what could not be."""

    @property
    @abstractmethod
    def limits(self) -> str:
        """What it was judged by, in a few words; empty if nobody is judged."""

    if TYPE_CHECKING:
        # Each scheme declares them where JSON is to have them.
        public_key: str
        block_hash: str
        block_height: int
        nonces: list[int]
        profile: dict[str, str]

    def __len__(self) -> int:
        return len(self.nonces)


def whose(config: PoCConfig) -> dict[str, Any]:
    """Of which block and key a batch is, and which node's: the fields that all batches have."""
    return {
        "public_key": config.public_key,
        "block_hash": config.block_hash,
        "block_height": config.block_height,
        "node_id": config.node_id,
    }


class Body(NamedTuple):
    """What a receiver is told of computed nonces, as JSON text.

    One with `items` may be joined with others of the same `head` and `tail`: head, items with
    commas between them, tail.
    """

    head: str
    items: tuple[str, ...] = ()
    tail: str = ""


class Terms(Strict, ABC):
    """The fields of a round's config that are its scheme's own, and what follows from them.

    Those with a description are options of commands, which show it.
    """

    #: The name of the scheme on the wire.
    name: ClassVar[str]
    #: The fields that the status of a round shows.
    in_status: ClassVar[tuple[str, ...]]
    #: The largest nonce that counts.
    max_nonce: ClassVar[int] = MAX_NONCE
    #: Whether a proof is a distance in [0, 2], so that views can show how they are spread.
    has_distances: ClassVar[bool] = False
    #: The share of a batch that may be missing in a verdict: nonces that we could not compute.
    may_miss: ClassVar[float] = 0.0
    #: How many of a cheat's claims are taken to be wrong, where nobody says: more than honest ones.
    cheat_rate: ClassVar[float] = 0.05
    batch: ClassVar[type[Batch]]

    @classmethod
    def known(cls) -> set[str]:
        """The names of its fields on the wire, other names for them included."""
        return {*cls.model_fields}

    @classmethod
    def usual(cls) -> Self:
        """As they are where nothing is said, to look at fields that have a default: others lack."""
        construct: Any = cls.model_construct  # which mypy wants to have them
        return construct()  # type: ignore[no-any-return]

    @property
    def parameters(self) -> dict[str, int]:
        """Those of its fields that a proof depends on."""
        return {}

    def refusal_of_model(self, hidden_size: int) -> str | None:
        """Why a model of that width can't compute it; None if it can."""
        return None

    if TYPE_CHECKING:
        #: How often an honest claim is wrong: the p of the binomial test. Each scheme has one.
        p_mismatch: float

    @property
    @abstractmethod
    def fraud_below(self) -> float:
        """The probability below which that many wrong claims are a fraud."""

    @property
    @abstractmethod
    def limits(self) -> str:
        """What a claim is judged by, in a few words."""

    @property
    @abstractmethod
    def title(self) -> str:
        """Its fields in a few words, for logs."""

    @abstractmethod
    def counts(self, proof: Proof) -> bool:
        """Whether a nonce with this proof is valid: to be kept and delivered."""

    @abstractmethod
    def batch_of(self, config: PoCConfig, nonces: Sequence[int], proofs: Sequence[Proof]) -> Batch:
        """The batch that the node of `config` hands in."""

    @abstractmethod
    def body_of(self, config: PoCConfig, nonces: Sequence[int], proofs: Sequence[Proof]) -> Body:
        """What a receiver is told of them."""

    @abstractmethod
    def judge(
        self, batch: Any, proofs: Sequence[Proof | None], profile: dict[str, str] | None = None
    ) -> Verdict:
        """The verdict on a batch of this scheme by what was recomputed.

        `proofs` are in the order of its nonces, None for what could not be. `profile` is of what
        computed them. Raises `ValueError` if more is missing than may be.
        """

    def told(self, validation: str, verdict: Any) -> tuple[str, Body]:
        """How a receiver is told the `verdict` on a validation: path and body."""
        return "validated", Body(verdict.model_dump_json())

    def told_failed(self, validation: str, fields: Mapping[str, Any]) -> tuple[str, Body]:
        """How it is told that a validation ended without one; `fields` say why, and of which."""
        return "validated", Body(json.dumps(fields))

    @abstractmethod
    def is_wrong(self, claimed: Proof, recomputed: Proof) -> bool:
        """Whether a claim counts against who made it."""

    @abstractmethod
    def apart(self, one: Proof, other: Proof) -> float:
        """How far two proofs of one nonce lie from each other; 0 if they are the same."""

    @staticmethod
    @abstractmethod
    def verdict_from(fields: Any) -> Verdict:
        """What `judge` gave, from its JSON."""

    def refusal_of_batch(self, batch: Batch) -> str | None:
        """Why a batch of this scheme can't be judged by these terms; None if it can."""
        return None

    @staticmethod
    @abstractmethod
    def dumped(proof: Proof) -> str:
        """The proof as Redis keeps it."""

    @staticmethod
    @abstractmethod
    def loaded(text: str) -> Proof:
        """The proof that Redis keeps as `text`."""
