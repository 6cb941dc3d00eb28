"""The published scheme: a proof is a distance to the round's target, and small ones count."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from shared.odds import at_least
from shared.schemes.base import Batch, Body, Ended, Proof, Terms, Verdict, whose
from shared.wire import MAX_PROOF_NONCES, Name, Nonce

if TYPE_CHECKING:
    from shared.config import PoCConfig

#: The published probability that an honest node's nonce is recomputed on the other side.
PROBABILITY_MISMATCH = 5e-4


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


class ProofBatch(Batch):
    """Nonces and the distances that their finder claims for them."""

    scheme_name = "distance"
    marks = frozenset({"dist"})

    dist: list[float] = Field(max_length=MAX_PROOF_NONCES)
    node_id: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if len(self.nonces) != len(self.dist):
            raise ValueError(f"{len(self.nonces)} nonces but {len(self.dist)} distances")
        return self

    @property
    def claims(self) -> list[float]:
        """The distances."""
        return self.dist

    @classmethod
    def empty(cls) -> ProofBatch:
        """The batch of nothing: what a batch run outside GENERATING gives."""
        return ProofBatch.model_construct(
            public_key="", block_hash="", block_height=0, nonces=[], dist=[], node_id=0
        )

    @classmethod
    def of(cls, config: PoCConfig, nonces: Sequence[int], dist: Sequence[float]) -> Self:
        """The batch that the node of `config` submits."""
        return cls(**whose(config), nonces=list(nonces), dist=list(dist))

    def sub_batch(self, r_target: float) -> Self:
        """The nonces whose distance is strictly below `r_target`."""
        kept = [(n, d) for n, d in zip(self.nonces, self.dist, strict=True) if d < r_target]
        return self.model_copy(
            update={"nonces": [n for n, _ in kept], "dist": [d for _, d in kept]}
        )


class ValidatedBatch(Verdict):
    """The verdict on a `ProofBatch`."""

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

    @property
    def ended(self) -> Ended:
        """What it came to."""
        apart = [abs(a - b) for a, b in zip(self.received_dist, self.dist, strict=True)]
        judged = self.n_invalid, self.probability_honest, self.fraud_detected
        return Ended.of(len(self), *judged, apart)

    @property
    def proofs(self) -> list[float]:
        """The recomputed distances."""
        return self.dist

    @property
    def limits(self) -> str:
        """The target and its tolerance."""
        return _limits(self)

    @classmethod
    def judge(
        cls,
        batch: ProofBatch,
        dist: Sequence[float],
        config: PoCConfig | Distance,
        profile: dict[str, str] | None = None,
    ) -> Self:
        """Judge `batch` by the recomputed `dist` (finite, one per nonce) under `config`.

        A nonce is invalid when the received distance is not below r_target, or the recomputed
        one is above r_target + dist_tolerance. Source: the published one-sided binomial test.
        """
        if len(dist) != len(batch) or not all(isfinite(d) for d in dist):
            raise ValueError("a verdict needs one finite distance per nonce")
        terms = config if isinstance(config, Distance) else Distance.of(config)
        n_invalid = sum(map(terms.is_wrong, batch.dist, dist))
        probability = at_least(n_invalid, len(batch), terms.p_mismatch)
        return cls(
            public_key=batch.public_key,
            block_hash=batch.block_hash,
            block_height=batch.block_height,
            nonces=batch.nonces,
            received_dist=batch.dist,
            dist=list(dist),
            r_target=terms.r_target,
            fraud_threshold=terms.fraud_threshold,
            node_id=batch.node_id,
            n_invalid=n_invalid,
            probability_honest=probability,
            fraud_detected=probability < terms.fraud_threshold,
            p_mismatch=terms.p_mismatch,
            dist_tolerance=terms.dist_tolerance,
            submit_margin=terms.submit_margin,
            profile=profile or {},
        )


class Distance(Terms):
    """Nonces below a distance count."""

    name = "distance"
    in_status = ("r_target", "fraud_threshold", "submit_margin")
    has_distances = True
    batch = ProofBatch

    r_target: float = Field(
        gt=0, le=2, description="a nonce is valid when its distance, 0 to 2, is below this"
    )
    #: The probability is that of an honest node to have it this bad.
    fraud_threshold: float = Field(
        default=0.01, gt=0, lt=1, description="a batch is fraud below this probability"
    )
    #: The p of the binomial test.
    p_mismatch: float = Field(
        default=PROBABILITY_MISMATCH,
        gt=0,
        lt=1,
        description="how often an honest nonce changes sides",
    )
    dist_tolerance: float = Field(
        default=0, ge=0, le=2, description="what a validator allows above r-target"
    )
    submit_margin: float = Field(
        default=0, ge=0, lt=2, description="how far below r-target a prover stays"
    )

    @model_validator(mode="after")
    def _check_margin(self) -> Self:
        if self.submit_margin >= self.r_target:
            raise ValueError("submit_margin must be below r_target, or nothing can be valid")
        return self

    @classmethod
    def of(cls, config: PoCConfig) -> Self:
        """The terms of a round of this scheme."""
        if not isinstance(config.terms, cls):
            raise TypeError(f"a round of the scheme {config.scheme} has no distances")
        return config.terms

    @property
    def valid_below(self) -> float:
        """The distance that a nonce must stay below to be submitted."""
        return self.r_target - self.submit_margin

    @property
    def fraud_below(self) -> float:
        """The fraud_threshold."""
        return self.fraud_threshold

    @property
    def limits(self) -> str:
        """The target and its tolerance."""
        return _limits(self)

    @property
    def title(self) -> str:
        """The target."""
        return f"r_target {self.r_target:g}"

    def counts(self, proof: Proof) -> bool:
        """Whether the distance is small enough."""
        return float(proof) < self.valid_below

    def batch_of(
        self, config: PoCConfig, nonces: Sequence[int], proofs: Sequence[Proof]
    ) -> ProofBatch:
        """Nonces with their distances."""
        return ProofBatch.of(config, nonces, [float(d) for d in proofs])

    def body_of(self, config: PoCConfig, nonces: Sequence[int], proofs: Sequence[Proof]) -> Body:
        """A `ProofBatch`, by itself."""
        return Body(self.batch_of(config, nonces, proofs).model_dump_json())

    def judge(
        self,
        batch: ProofBatch,
        proofs: Sequence[Proof | None],
        profile: dict[str, str] | None = None,
    ) -> ValidatedBatch:
        """See `ValidatedBatch.judge`."""
        dist = [float("nan") if proof is None else float(proof) for proof in proofs]
        return ValidatedBatch.judge(batch, dist, self, profile)

    def is_wrong(self, claimed: Proof, recomputed: Proof) -> bool:
        """Received beyond the target, or recomputed too far beyond it."""
        limit = self.r_target + self.dist_tolerance
        return float(claimed) >= self.r_target or float(recomputed) > limit

    def apart(self, one: Proof, other: Proof) -> float:
        """The difference of two distances."""
        return abs(float(one) - float(other))

    @staticmethod
    def verdict_from(fields: Any) -> ValidatedBatch:
        """A `ValidatedBatch`."""
        return ValidatedBatch.model_validate(fields)

    @staticmethod
    def dumped(proof: Proof) -> str:
        """The shortest digits that give the same float64 again."""
        return repr(float(proof))

    @staticmethod
    def loaded(text: str) -> float:
        """The distance."""
        return float(text)


def _limits(of: Distance | ValidatedBatch) -> str:
    return (
        f"r_target {of.r_target:g}, p_mismatch {of.p_mismatch:g}, fraud_threshold "
        f"{of.fraud_threshold:g}, dist_tolerance {of.dist_tolerance:g}, submit_margin "
        f"{of.submit_margin:g}"
    )
