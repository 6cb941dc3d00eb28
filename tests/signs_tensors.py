"""A scheme that nobody runs: its tensors, and an engine that brings it along.

A worker process loads both with `POC_ENGINE=signs_tensors:load`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shared import schemes
from shared.schemes import SCHEMES, Proof
from shared.settings import Settings
from signs_terms import SignsTerms
from worker import schemes as tensors
from worker.engines import Engine, transformers_engine
from worker.job import Job
from worker.schemes import Deployed
from worker.schemes.base import inputs_of


class SignsTensors:
    """See `Tensors`."""

    edits = False

    def __init__(self, deployed: Deployed) -> None:
        self._deployed = deployed

    def edit(self, index: int, layer: nn.Module) -> nn.Module:
        return layer

    def enter(self, job: Job) -> None:
        pass

    def leave(self) -> None:
        pass

    def make(self, job: Job, nonces: Sequence[int]) -> tuple[Tensor, None]:
        return inputs_of(job, nonces, self._deployed), None

    def read(self, output: Tensor, made: Any, job: Job) -> Tensor:
        return output[:, : job.parameters["length"]].to(torch.float32, copy=True)

    def proofs(self, rows: Tensor, job: Job) -> list[Proof | None]:
        return [signs(row) for row in rows.tolist()]


def signs(row: Sequence[float]) -> str | None:
    """Of the logits of a nonce."""
    return None if any(map(math.isnan, row)) else "".join("-" if x < 0 else "+" for x in row)


def load(settings: Settings) -> Engine:
    """The transformers engine, in a process that knows the scheme."""
    _register()
    return transformers_engine.load(settings)


@contextmanager
def registered() -> Iterator[None]:
    """In it, this process knows the scheme."""
    _register()
    try:
        yield
    finally:
        del SCHEMES[SignsTerms.name], tensors._MADE_BY[SignsTerms.name]


def _register() -> None:
    schemes.register(SignsTerms)
    tensors.register(SignsTerms.name, SignsTensors)
