"""A scheme that nobody runs: what is judged of it. See `signs_tensors.py` for its tensors.

A proof is the signs of a nonce's first logits, as "+-+-". It counts if most of them are those that
are wanted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, StringConstraints

from shared.schemes import Batch, Body, Ended, Proof, Terms, Verdict
from shared.wire import Name

if TYPE_CHECKING:
    from shared.config import PoCConfig

Signs = Annotated[str, StringConstraints(pattern=r"^[+-]*$", max_length=64)]


class SignsBatch(Batch):
    """Nonces and their signs."""

    scheme_name = "signs"
    marks = frozenset({"signs"})

    scheme: Literal["signs"] = "signs"
    signs: list[Signs]
    node_id: int = 0

    @property
    def claims(self) -> list[str]:
        return self.signs


class SignsVerdict(Verdict):
    """It was fraud if more than a half of them are wrong."""

    public_key: Name
    block_hash: Name
    block_height: int
    nonces: list[int]
    signs: list[str]
    wrong: int
    profile: dict[str, str]

    @property
    def ended(self) -> Ended:
        n = len(self.nonces)
        return Ended(n, self.wrong, 1 - self.wrong / n, self.wrong > n / 2)

    @property
    def proofs(self) -> list[str]:
        return self.signs

    @property
    def limits(self) -> str:
        return "signs"


class SignsTerms(Terms):
    """How many signs there are, and which are wanted."""

    name = "signs"
    in_status = ("length", "wanted")
    max_nonce = 999
    batch = SignsBatch

    length: int = Field(default=8, ge=1, le=64)
    wanted: Literal["+", "-"] = "+"

    @property
    def parameters(self) -> dict[str, int]:
        return {"length": self.length}

    p_mismatch: float = 0.5

    @property
    def fraud_below(self) -> float:
        return 0.5

    @property
    def limits(self) -> str:
        return "half of them"

    @property
    def title(self) -> str:
        return f"{self.length} signs"

    def counts(self, proof: Proof) -> bool:
        return 2 * str(proof).count(self.wanted) > self.length

    def batch_of(
        self, config: PoCConfig, nonces: Sequence[int], proofs: Sequence[Proof]
    ) -> SignsBatch:
        return SignsBatch(
            public_key=config.public_key,
            block_hash=config.block_hash,
            block_height=config.block_height,
            nonces=list(nonces),
            signs=[str(each) for each in proofs],
            node_id=config.node_id,
        )

    def body_of(self, config: PoCConfig, nonces: Sequence[int], proofs: Sequence[Proof]) -> Body:
        return Body(json.dumps(dict(zip(map(str, nonces), proofs, strict=True))))

    def judge(
        self,
        batch: SignsBatch,
        proofs: Sequence[Proof | None],
        profile: dict[str, str] | None = None,
    ) -> SignsVerdict:
        signs = [str(each) for each in proofs]
        return SignsVerdict(
            **batch.model_dump(include={"public_key", "block_hash", "block_height", "nonces"}),
            signs=signs,
            wrong=sum(map(self.is_wrong, batch.signs, signs)),
            profile=profile or {},
        )

    def is_wrong(self, claimed: Proof, recomputed: Proof) -> bool:
        return claimed != recomputed

    def apart(self, one: Proof, other: Proof) -> float:
        return sum(a != b for a, b in zip(str(one), str(other), strict=True))

    @staticmethod
    def verdict_from(fields: Any) -> SignsVerdict:
        return SignsVerdict.model_validate(fields)

    @staticmethod
    def dumped(proof: Proof) -> str:
        return str(proof)

    @staticmethod
    def loaded(text: str) -> str:
        return text
