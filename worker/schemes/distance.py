"""The published scheme: logits of the model as it is, permuted, and how far they are from a target.

    nonces ──▶ inputs ──▶ forward ──▶ last logits ──▶ distances
               generator  engine                      generator

The generator is `worker.kernels` on a GPU, `worker.cpu_random` on a CPU, and `worker.gpu_random`
elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

from torch import Tensor, nn

from shared.schemes import Proof
from worker import gpu_random
from worker.job import Job
from worker.schemes.base import Deployed, inputs_of
from worker.schemes.generator import generator_for

#: Targets kept: a round's own, and those of the blocks that validators ask about.
_TARGETS_KEPT = 8


class DistanceTensors:
    """See `Tensors`."""

    edits = False

    def __init__(self, deployed: Deployed) -> None:
        self._deployed, self._generator = deployed, generator_for(deployed.device)
        # Bound to values, not to self: a cycle would keep tensors until the next collection.
        self._target = lru_cache(maxsize=_TARGETS_KEPT)(
            partial(
                gpu_random.generate_target,
                vocab_size=deployed.vocab_size,
                device=deployed.device,
            )
        )

    def edit(self, index: int, layer: nn.Module) -> nn.Module:
        """The layer itself."""
        return layer

    def enter(self, job: Job) -> None:
        """Its forward depends on the inputs alone."""

    def leave(self) -> None:
        """Nothing is edited."""

    def make(self, job: Job, nonces: Sequence[int]) -> tuple[Tensor, Any]:
        """Inputs, and permutations of the vocabulary as the generator has them."""
        deployed = self._deployed
        inputs = inputs_of(job, nonces, deployed)
        permutations = self._generator.generate_permutations(
            job.block_hash, job.public_key, nonces, deployed.vocab_size, deployed.device
        )
        return inputs, permutations

    def read(self, output: Tensor, made: Any, job: Job) -> Tensor:
        """Distances: float32 [tile]."""
        distances: Tensor = self._generator.compute_distances(
            output[:, : self._deployed.vocab_size], made, self._target(job.block_hash)
        )
        return distances

    def proofs(self, rows: Tensor, job: Job) -> list[Proof | None]:
        """The distances; float32 to Python float is exact."""
        return [value if math.isfinite(value) else None for value in rows.tolist()]
