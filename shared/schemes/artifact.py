"""The scheme that the live network runs: a proof is a short vector, and every one counts.

A vector is a handful of float16 numbers, little endian, as base64: some dimensions of the last
hidden state, rotated. A claim is right if it lies close to what is recomputed. Source of rules and
names: the network's second proof of compute, as its nodes and its controller speak it.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from math import dist, inf, isfinite
from struct import unpack
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    ConfigDict,
    FailFast,
    Field,
    StringConstraints,
    model_validator,
    with_config,
)
from typing_extensions import TypedDict

from shared.odds import at_least
from shared.schemes.base import Batch, Body, Ended, Proof, Terms, Verdict, whose
from shared.wire import MAX_PROOF_NONCES, Name, Nonce, Strict

if TYPE_CHECKING:
    from shared.config import PoCConfig

#: Receivers keep nonces as signed 32-bit integers.
MAX_NONCE = 2**31 - 1
#: Numbers in a vector, unless a config asks for others.
K_DIM = 12
#: What stands for the count of judged nonces where nothing was judged.
NO_TOTAL = "not computed"
#: The most numbers in a vector: far beyond what any network asks for.
MAX_K_DIM = 1024


def _is_base64(text: str) -> str:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is no base64 (standard alphabet, padded)") from None
    return text


#: The names by which a config may give the threshold of fraud; the first counts more.
_THRESHOLDS = ("p_value_threshold", "fraud_threshold")

#: A vector as it travels.
Vector = Annotated[str, StringConstraints(max_length=8 * MAX_K_DIM), AfterValidator(_is_base64)]


class Encoding(Strict):
    """How the bytes of a vector are to be read."""

    dtype: Literal["f16"] = "f16"
    k_dim: int = Field(default=K_DIM, ge=1, le=MAX_K_DIM)
    endian: Literal["le"] = "le"


# A plain dict: 100,000 models would take a second to make.
@with_config(ConfigDict(extra="forbid", strict=True))
class Artifact(TypedDict):
    """A nonce and its vector, as receivers get them."""

    nonce: Annotated[Nonce, Field(le=MAX_NONCE)]
    vector_b64: Vector


class _Artifacts(Strict):
    artifacts: Annotated[list[Artifact], FailFast()] = Field(max_length=MAX_PROOF_NONCES)


def numbers_of(vector: str, k_dim: int) -> tuple[float, ...] | None:
    """The `k_dim` numbers of a vector; None for another length, NaN or infinities."""
    raw = base64.b64decode(vector)
    if len(raw) != 2 * k_dim:
        return None
    numbers = unpack(f"<{k_dim}e", raw)
    return numbers if all(map(isfinite, numbers)) else None


class ArtifactBatch(Batch):
    """Nonces and the vectors that are claimed for them; without vectors, to ask for them.

    Vectors come in the order of the nonces (`vectors`), or each with its own (`artifacts`).
    """

    scheme_name = "artifact"
    marks = frozenset({"vectors", "artifacts", "encoding"})

    scheme: Literal["artifact"] = "artifact"
    nonces: list[Annotated[Nonce, Field(le=MAX_NONCE)]] = Field(max_length=MAX_PROOF_NONCES)
    vectors: list[Vector] | None = Field(default=None, max_length=MAX_PROOF_NONCES)
    encoding: Encoding | None = None
    node_id: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _read_artifacts(cls, data: Any) -> Any:
        """Nonces and vectors from `artifacts`, which then are of just these nonces."""
        if not isinstance(data, Mapping):
            return data
        rest = {name: value for name, value in data.items() if name != "artifacts"}
        if data.get("artifacts") is None:
            return rest
        if data.get("vectors") is not None:
            raise ValueError("vectors and artifacts say the same: send one of them")
        given = _Artifacts.model_validate({"artifacts": data["artifacts"]}).artifacts
        claimed = {each["nonce"]: each["vector_b64"] for each in given}
        if len(claimed) != len(given):
            raise ValueError("artifacts: a nonce is repeated")
        nonces = rest.setdefault("nonces", list(claimed))
        # What is no number may be nothing that a set can hold.
        if not (
            isinstance(nonces, Sequence)
            and all(isinstance(nonce, int) for nonce in nonces)
            and set(nonces) == claimed.keys()
        ):
            raise ValueError("artifacts: their nonces must be those of the field nonces")
        return rest | {"vectors": [claimed[nonce] for nonce in nonces]}

    @model_validator(mode="after")
    def _check_pairs(self) -> ArtifactBatch:
        if self.vectors is not None and len(self.vectors) != len(self.nonces):
            raise ValueError(f"{len(self.nonces)} nonces but {len(self.vectors)} vectors")
        return self

    @property
    def claims(self) -> list[str] | None:
        """The vectors."""
        return self.vectors


class _Recomputed(Verdict):
    """What both answers have: the batch, and what was recomputed of it."""

    public_key: Name
    block_hash: Name
    block_height: int
    nonces: list[Nonce]
    node_id: int
    #: Recomputed vectors in the order of `nonces`; None for what could not be computed.
    vectors: list[str | None]
    encoding: Encoding
    #: What recomputed them: engine, dtype, tile, ... (see `EngineInfo.profile`).
    profile: dict[str, str] = Field(default_factory=dict)

    @property
    def proofs(self) -> list[str | None]:
        """The recomputed vectors."""
        return self.vectors

    @property
    def not_computed(self) -> list[int]:
        """The nonces without one."""
        return [n for n, v in zip(self.nonces, self.vectors, strict=True) if v is None]


class ComputedArtifacts(_Recomputed):
    """The answer to a batch without claims: its vectors."""

    @property
    def artifacts(self) -> list[dict[str, Any]]:
        """Each nonce that could be computed with its vector, as receivers get them."""
        pairs = zip(self.nonces, self.vectors, strict=True)
        return [{"nonce": nonce, "vector_b64": each} for nonce, each in pairs if each is not None]

    @property
    def ended(self) -> None:
        """Nobody is judged."""

    @property
    def limits(self) -> str:
        """Nothing was claimed."""
        return ""


class ValidatedArtifacts(_Recomputed):
    """The verdict on claimed vectors."""

    received_vectors: list[str]
    #: How far each claim lies from what was recomputed; None where one of the two is missing.
    l2: list[float | None]
    #: Nonces that were recomputed, and those of them whose claim is wrong.
    n_total: int
    n_mismatch: int
    mismatch_nonces: list[int]
    #: How probable it is that an honest node has at least this many wrong.
    p_value: float
    fraud_detected: bool
    dist_threshold: float
    p_mismatch: float
    p_value_threshold: float
    #: The name by which the threshold was given: see `ArtifactTerms`.
    threshold_key: str

    @property
    def ended(self) -> Ended:
        """What it came to."""
        apart = [each for each in self.l2 if each is not None]
        return Ended.of(self.n_total, self.n_mismatch, self.p_value, self.fraud_detected, apart)

    @property
    def limits(self) -> str:
        """How far a claim may be off, and how many may be."""
        return _limits(self)


class ArtifactTerms(Terms):
    """Every nonce that was computed counts, by its vector."""

    name = "artifact"
    in_status = ("k_dim", "dist_threshold", "p_mismatch", "p_value_threshold")
    max_nonce = MAX_NONCE
    may_miss = 0.1
    cheat_rate = 0.2
    batch = ArtifactBatch

    k_dim: int = Field(default=K_DIM, ge=1, le=MAX_K_DIM, description="numbers in a vector")
    dist_threshold: float = Field(
        default=0.4,
        gt=0,
        le=2,
        description="a vector is wrong when it lies farther, 0 to 2, from the recomputed one",
    )
    #: The p of the binomial test.
    p_mismatch: float = Field(
        default=0.1, gt=0, lt=1, description="how often an honest claim is wrong"
    )
    #: A validation is fraud when an honest node had it this bad with a lower probability.
    #: `fraud_threshold` is another name for it; given both, this one counts.
    p_value_threshold: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        validation_alias=AliasChoices(*_THRESHOLDS),
        description="a batch is fraud below this probability",
    )
    #: Which of the two names was used, if any.
    threshold_key: Literal["", "p_value_threshold", "fraud_threshold"] = ""

    @model_validator(mode="before")
    @classmethod
    def _note_key(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        if "threshold_key" in data:  # as dumped: then the threshold is there, by its own name
            if "p_value_threshold" not in data:
                raise ValueError("threshold_key: is noted, not given; give what it names")
            return data
        given = next((name for name in _THRESHOLDS if name in data), "")
        other = {*_THRESHOLDS} - {given}
        found = {name: value for name, value in data.items() if name not in other}
        return found | {"threshold_key": given}

    @classmethod
    def known(cls) -> set[str]:
        """Its fields, and the other name of one."""
        return super().known() | {"fraud_threshold"}

    @property
    def encoding(self) -> Encoding:
        """How its vectors are to be read."""
        return Encoding(k_dim=self.k_dim)

    @property
    def parameters(self) -> dict[str, int]:
        """The length of a vector."""
        return {"k_dim": self.k_dim}

    def refusal_of_model(self, hidden_size: int) -> str | None:
        """A vector has no more numbers than a hidden state."""
        if self.k_dim <= hidden_size:
            return None
        return f"k_dim={self.k_dim}: the model's hidden states have only {hidden_size} numbers"

    def refusal_of_batch(self, batch: Batch) -> str | None:
        """Its vectors must be encoded as ours are."""
        encoding = batch.encoding if isinstance(batch, ArtifactBatch) else None
        if encoding is None or encoding == self.encoding:
            return None
        return f"encoding: {encoding.model_dump()} is not that of the config, k_dim={self.k_dim}"

    @property
    def fraud_below(self) -> float:
        """The p_value_threshold."""
        return self.p_value_threshold

    @property
    def limits(self) -> str:
        """How far a claim may be off, and how many may be."""
        return _limits(self)

    @property
    def title(self) -> str:
        """The vectors."""
        return f"vectors of {self.k_dim}"

    def counts(self, proof: Proof) -> bool:
        """Always."""
        return True

    def batch_of(
        self, config: PoCConfig, nonces: Sequence[int], proofs: Sequence[Proof]
    ) -> ArtifactBatch:
        """Nonces with their vectors."""
        return ArtifactBatch(
            **whose(config),
            nonces=list(nonces),
            vectors=[str(proof) for proof in proofs],
            encoding=self.encoding,
        )

    def body_of(self, config: PoCConfig, nonces: Sequence[int], proofs: Sequence[Proof]) -> Body:
        """As the network's receivers read it; bodies of one round may be joined."""
        head = ArtifactHead(**whose(config), encoding=self.encoding).model_dump_json()
        # Base64 and decimal digits need no quoting.
        items = (
            f'{{"nonce":{nonce},"vector_b64":"{proof}"}}'
            for nonce, proof in zip(nonces, proofs, strict=True)
        )
        return Body(f'{head[:-1]},"artifacts":[', tuple(items), "]}")

    def judge(
        self,
        batch: ArtifactBatch,
        proofs: Sequence[Proof | None],
        profile: dict[str, str] | None = None,
    ) -> ValidatedArtifacts | ComputedArtifacts:
        """Compare claims with what was recomputed; nonces that could not be are left out.

        A claim of another length, or with what is no number, is wrong. Source: the network's
        one-sided binomial test.
        """
        if len(proofs) != len(batch):
            raise ValueError("a verdict needs one vector per nonce")
        recomputed = [None if proof is None else str(proof) for proof in proofs]
        if recomputed.count(None) > self.may_miss * len(batch):
            raise ValueError("too many nonces were not computed for a verdict")
        known: dict[str, Any] = {
            **batch.model_dump(include={"public_key", "block_hash", "block_height", "node_id"}),
            "nonces": batch.nonces,
            "vectors": recomputed,
            "encoding": self.encoding,
            "profile": profile or {},
        }
        if batch.vectors is None:
            return ComputedArtifacts(**known)
        pairs = zip(batch.vectors, recomputed, strict=True)
        l2 = [None if ours is None else self.apart(theirs, ours) for theirs, ours in pairs]
        mismatch = [
            nonce
            for nonce, apart in zip(batch.nonces, l2, strict=True)
            if apart is not None and self._is_far(apart)
        ]
        n_total = len(batch) - recomputed.count(None)
        p_value = at_least(len(mismatch), n_total, self.p_mismatch)
        return ValidatedArtifacts(
            **known,
            received_vectors=batch.vectors,
            l2=[None if each is None or each == inf else each for each in l2],
            n_total=n_total,
            n_mismatch=len(mismatch),
            mismatch_nonces=mismatch,
            p_value=p_value,
            fraud_detected=p_value < self.p_value_threshold,
            dist_threshold=self.dist_threshold,
            p_mismatch=self.p_mismatch,
            p_value_threshold=self.p_value_threshold,
            threshold_key=self.threshold_key,
        )

    def told(
        self, validation: str, verdict: ValidatedArtifacts | ComputedArtifacts
    ) -> tuple[str, Body]:
        """A verdict to `validated`; vectors that were asked for to `generated`, as any others."""
        if isinstance(verdict, ValidatedArtifacts):
            told = verdict.model_dump(mode="json") | {"request_id": validation}
            return "validated", Body(json.dumps(told))
        head = verdict.model_dump(mode="json", include={*ArtifactHead.model_fields})
        told = head | {"request_id": validation, "artifacts": verdict.artifacts}
        return "generated", Body(json.dumps(told))

    def told_failed(self, validation: str, fields: Mapping[str, Any]) -> tuple[str, Body]:
        """As a verdict that no receiver takes for one.

        The network's receiver reads a missing `n_total` as 0, and that as a vote against the node.
        A text in its place it refuses.
        """
        said = {"request_id": validation, "n_total": NO_TOTAL}
        return "validated", Body(json.dumps({**fields, **said}))

    def is_wrong(self, claimed: Proof, recomputed: Proof) -> bool:
        """Of another length, or with what is no number, or too far off."""
        return self._is_far(self.apart(claimed, recomputed))

    def _is_far(self, apart: float) -> bool:
        return apart > self.dist_threshold

    def apart(self, one: Proof, other: Proof) -> float:
        """The L2 of two vectors; infinite if one of them can't be compared."""
        vectors = [numbers_of(str(each), self.k_dim) for each in (one, other)]
        found = [each for each in vectors if each is not None]
        return dist(*found) if len(found) == len(vectors) else inf

    @staticmethod
    def verdict_from(fields: Any) -> ValidatedArtifacts | ComputedArtifacts:
        """A verdict, or the vectors that were asked for."""
        judged = isinstance(fields, Mapping) and "mismatch_nonces" in fields
        return (ValidatedArtifacts if judged else ComputedArtifacts).model_validate(fields)

    @staticmethod
    def dumped(proof: Proof) -> str:
        """The base64."""
        return str(proof)

    @staticmethod
    def loaded(text: str) -> str:
        """The vector."""
        return text


class ArtifactHead(Strict):
    """What a receiver is told beside the artifacts."""

    public_key: Name
    block_hash: Name
    block_height: int
    node_id: int
    encoding: Encoding


def _limits(of: ArtifactTerms | ValidatedArtifacts) -> str:
    return (
        f"dist_threshold {of.dist_threshold:g}, p_mismatch {of.p_mismatch:g}, "
        f"{of.threshold_key or 'p_value_threshold'} {of.p_value_threshold:g}"
    )
