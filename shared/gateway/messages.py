"""What callers of the network send, and what it means here. Source: the network's second contract.

Unknown fields are ignored, as its own nodes do, except in `params` and `stat_test`: one that is
not obeyed there would change what is computed, or who is called a fraud. Of many wrong ones in a
list the first is named: a body has room for millions, and to name them all would take a minute.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
    model_validator,
    with_config,
)
from typing_extensions import TypedDict

from shared.config import MAX_NODE_COUNT, HttpUrl, PoCConfig
from shared.errors import InvalidRequest
from shared.requests import explain
from shared.schemes.artifact import (
    MAX_NONCE,
    ArtifactBatch,
    ArtifactTerms,
    ComputedArtifacts,
    ValidatedArtifacts,
)
from shared.wire import MAX_NONCE as MAX_HEIGHT
from shared.wire import Name, Strict

#: Fields of an object that may have no unknown ones, beyond which these are not even named.
MAX_FIELDS = 20


class _Closed(Strict):
    """What is unknown is refused."""

    @model_validator(mode="before")
    @classmethod
    def _check_size(cls, sent: Any) -> Any:
        if isinstance(sent, dict) and len(sent) > MAX_FIELDS:
            raise ValueError(f"has {len(sent)} fields, of which most are unknown")
        return sent


class Params(_Closed):
    """What the network agreed on."""

    model: Name = Field(description="the model's name on the network")
    seq_len: int = Field(ge=1, le=1_048_576, description="positions of one forward")


class _Open(BaseModel):
    """What is unknown is ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class _Asked(_Open):
    block_hash: Name
    block_height: int = Field(ge=0, le=MAX_HEIGHT)
    public_key: Name
    node_id: int = Field(ge=0)
    node_count: int = Field(ge=1, le=MAX_NODE_COUNT)
    params: Params
    url: HttpUrl | None = Field(default=None, description="where callbacks are posted")
    poc_stronger_rng: bool = Field(default=False, description="draw inputs from all 256 bits")

    @model_validator(mode="after")
    def _check_node(self) -> Self:
        if self.node_id >= self.node_count:
            raise ValueError(f"node_id {self.node_id} is not in [0, node_count={self.node_count})")
        return self

    def _config(self, terms: ArtifactTerms, **fields: Any) -> PoCConfig:
        return PoCConfig(
            block_hash=self.block_hash,
            block_height=self.block_height,
            public_key=self.public_key,
            seq_len=self.params.seq_len,
            callback_url=self.url,
            strong_rng=self.poc_stronger_rng,
            terms=terms,
            **fields,
        )


class InitBody(_Asked):
    """A round that generates until it is stopped."""

    def config(self, batch_size: int) -> PoCConfig:
        """The round's."""
        node = {"node_id": self.node_id, "node_count": self.node_count}
        return self._config(ArtifactTerms(), batch_size=batch_size, **node)


# A plain dict: 100,000 models would take a second to make, and nobody else is answered meanwhile.
@with_config(ConfigDict(extra="ignore", strict=True))
class Claim(TypedDict):
    """A nonce, and the vector that is claimed for it."""

    nonce: int
    vector_b64: str


class Claims(_Open):
    """What is to be judged."""

    artifacts: Annotated[list[Claim], FailFast()]


class StatTest(_Closed):
    """What claims are judged by; what is left out is as in a config of the scheme."""

    dist_threshold: float | None = Field(default=None, gt=0, le=2)
    p_mismatch: float | None = Field(default=None, gt=0, lt=1)
    p_value_threshold: float | None = Field(default=None, gt=0, lt=1)
    fraud_threshold: float | None = Field(
        default=None, gt=0, lt=1, description="another name of p_value_threshold, which counts more"
    )

    @property
    def terms(self) -> ArtifactTerms:
        """The same as a round has it."""
        return ArtifactTerms.model_validate(self.model_dump(exclude_none=True))


class GenerateBody(_Asked):
    """A job: some nonces, whose vectors are asked for, or are claimed and to be judged."""

    nonces: Annotated[list[Annotated[int, Field(ge=0, le=MAX_NONCE)]], FailFast()] = Field(
        min_length=1
    )
    wait: bool = Field(default=False, description="answer when it has ended")
    validation: Claims | None = None
    stat_test: StatTest | None = None
    batch_size: int | None = Field(
        default=None, description="not used: the node takes what its device can"
    )

    @property
    def size(self) -> int:
        """How many nonces it names, or claims; repeated ones count."""
        return max(len(self.nonces), len(self.validation.artifacts) if self.validation else 0)

    @property
    def batch(self) -> ArtifactBatch:
        """What a worker gets. The nonces may be of any of its owner's nodes.

        Raises `InvalidRequest` for a nonce that is repeated, for claims of other nonces than are
        named, and for what is no base64.
        """
        try:
            return ArtifactBatch(
                public_key=self.public_key,
                block_hash=self.block_hash,
                block_height=self.block_height,
                nonces=self.nonces,
                vectors=self._vectors(),
                node_id=self.node_id,
            )
        except ValidationError as error:
            why = re.sub(r"\bvectors\.(\d+)", self._name_of_vector, explain(error))
            raise InvalidRequest(why) from None

    def _name_of_vector(self, place: re.Match[str]) -> str:
        """What its sender called it."""
        return f"vector_b64 of nonce {self.nonces[int(place[1])]}"

    def _vectors(self) -> list[str] | None:
        """What is claimed, in the order of the nonces."""
        if self.validation is None:
            return None
        claims = self.validation.artifacts
        vectors = {each["nonce"]: each["vector_b64"] for each in claims}
        if vectors.keys() != set(self.nonces):
            raise InvalidRequest("validation.artifacts nonces must match nonces field")
        if len(vectors) != len(claims):
            raise InvalidRequest("validation.artifacts: a nonce is repeated")
        return [vectors[nonce] for nonce in self.nonces]

    def config(self, batch_size: int) -> PoCConfig:
        """What it is computed and judged by."""
        terms = self.stat_test.terms if self.stat_test else ArtifactTerms()
        return self._config(terms, batch_size=batch_size)


def answered(verdict: ValidatedArtifacts | ComputedArtifacts) -> dict[str, Any]:
    """A job's end as callers of the network read it."""
    if isinstance(verdict, ValidatedArtifacts):
        names = ("n_total", "n_mismatch", "mismatch_nonces", "p_value", "fraud_detected")
        return {name: getattr(verdict, name) for name in names}
    return {"artifacts": verdict.artifacts, "encoding": verdict.encoding.model_dump()}
