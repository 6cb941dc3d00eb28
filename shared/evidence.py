"""Evidence of a validation: all that its verdict rests on, so that others can look at it again.

It is kept of a validation that found fraud, and of one that could not compute. One JSON object: the
batch, what it is judged by, both sides' proofs, and what recomputed them.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from shared.config import PoCConfig
from shared.schemes import AnyBatch, Proof
from shared.wire import Strict


class Computer(Strict):
    """A worker that recomputed some of the nonces."""

    worker: str
    device: str
    #: What moves the last bits of a proof (`EngineInfo.profile`), and the model's fingerprint.
    profile: dict[str, str] = Field(default_factory=dict)
    #: Of Python and of the packages that compute.
    versions: dict[str, str] = Field(default_factory=dict)


class Evidence(Strict):
    """One validation. Times are Unix times of Redis' clock, or of the judging worker's."""

    format: Literal[2] = 2
    #: The task that asked for it.
    validation: str
    #: What was received, with the submitter's proofs.
    batch: AnyBatch
    #: What it is judged by, without who was told: a replay must tell nobody.
    config: PoCConfig
    #: Recomputed proofs, in the order of the batch's nonces; None where there is none.
    proofs: list[Proof | None]
    #: Why there is no verdict; empty if there is one.
    error: str = ""
    n_invalid: int | None = None
    probability_honest: float | None = None
    fraud_detected: bool | None = None
    computed_by: list[Computer] = Field(default_factory=list)
    opened_at: float | None = None
    judged_at: float

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if len(self.proofs) != len(self.batch):
            raise ValueError(f"{len(self.batch)} nonces but {len(self.proofs)} recomputed proofs")
        return self
