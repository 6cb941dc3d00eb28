"""What travels between nodes: a batch of proofs, and the verdict on one."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Annotated, Self

from pydantic import Field, model_validator

from shared.config import MAX_NONCE, PROBABILITY_MISMATCH, Name, PoCConfig, Strict
from shared.odds import at_least

__all__ = ["PROBABILITY_MISMATCH", "ProofBatch", "ValidatedBatch"]

#: The most nonces in one batch to validate: about 2.5 MB of JSON.
MAX_PROOF_NONCES = 65_536

Nonce = Annotated[int, Field(ge=0, le=MAX_NONCE)]


class ProofBatch(Strict):
    """Nonces and the distances that their finder claims for them."""

    public_key: Name
    block_hash: Name
    block_height: int = Field(ge=0, le=MAX_NONCE)
    nonces: list[Nonce] = Field(max_length=MAX_PROOF_NONCES)
    dist: list[float] = Field(max_length=MAX_PROOF_NONCES)
    node_id: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if len(self.nonces) != len(self.dist):
            raise ValueError(f"{len(self.nonces)} nonces but {len(self.dist)} distances")
        if len(set(self.nonces)) != len(self.nonces):
            raise ValueError("a nonce is repeated")
        return self

    def __len__(self) -> int:
        return len(self.nonces)

    @classmethod
    def empty(cls) -> ProofBatch:
        """The batch of nothing: what a batch run outside GENERATING gives."""
        return ProofBatch.model_construct(
            public_key="", block_hash="", block_height=0, nonces=[], dist=[], node_id=0
        )

    @classmethod
    def of(cls, config: PoCConfig, nonces: Sequence[int], dist: Sequence[float]) -> Self:
        """The batch that the node of `config` submits."""
        return cls(
            public_key=config.public_key,
            block_hash=config.block_hash,
            block_height=config.block_height,
            nonces=list(nonces),
            dist=list(dist),
            node_id=config.node_id,
        )

    def sub_batch(self, r_target: float) -> Self:
        """The nonces whose distance is strictly below `r_target`."""
        kept = [(n, d) for n, d in zip(self.nonces, self.dist, strict=True) if d < r_target]
        return self.model_copy(
            update={"nonces": [n for n, _ in kept], "dist": [d for _, d in kept]}
        )


class ValidatedBatch(Strict):
    """The verdict on a `ProofBatch`, with all that it rests on."""

    public_key: Name
    block_hash: Name
    block_height: int
    nonces: list[Nonce]
    received_dist: list[float]
    #: Recomputed distances, in the order of `nonces`.
    dist: list[float]
    r_target: float
    fraud_threshold: float
    node_id: int
    n_invalid: int
    #: How probable it is that an honest node has at least this many invalid nonces.
    probability_honest: float
    fraud_detected: bool
    p_mismatch: float
    dist_tolerance: float
    submit_margin: float
    #: What recomputed the distances: engine, dtype, tile, ... (see `EngineInfo.profile`).
    profile: dict[str, str] = Field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.nonces)

    @classmethod
    def judge(
        cls,
        batch: ProofBatch,
        dist: Sequence[float],
        config: PoCConfig,
        profile: dict[str, str] | None = None,
    ) -> Self:
        """Judge `batch` by the recomputed `dist` (finite, one per nonce) under `config`.

        A nonce is invalid when the received distance is not below r_target, or the recomputed
        one is above r_target + dist_tolerance. Source: the published one-sided binomial test.
        """
        if len(dist) != len(batch) or not all(isfinite(d) for d in dist):
            raise ValueError("a verdict needs one finite distance per nonce")
        limit = config.r_target + config.dist_tolerance
        n_invalid = sum(
            received >= config.r_target or recomputed > limit
            for received, recomputed in zip(batch.dist, dist, strict=True)
        )
        probability = at_least(n_invalid, len(batch), config.p_mismatch)
        return cls(
            public_key=batch.public_key,
            block_hash=batch.block_hash,
            block_height=batch.block_height,
            nonces=batch.nonces,
            received_dist=batch.dist,
            dist=list(dist),
            r_target=config.r_target,
            fraud_threshold=config.fraud_threshold,
            node_id=batch.node_id,
            n_invalid=n_invalid,
            probability_honest=probability,
            fraud_detected=probability < config.fraud_threshold,
            p_mismatch=config.p_mismatch,
            dist_tolerance=config.dist_tolerance,
            submit_margin=config.submit_margin,
            profile=profile or {},
        )
