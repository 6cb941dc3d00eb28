"""What a scheme is on a device: its inputs, what happens after a layer, from an output to proofs.

Each scheme is one file beside this one, and one in `shared/schemes/` with what is judged. Engines
bring a forward, and ask nothing else of a scheme than this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from shared.schemes import Proof
from worker.job import Job
from worker.schemes.generator import generator_for


@dataclass(frozen=True, slots=True)
class Deployed:
    """A model on a device, as far as a scheme has to know it."""

    #: Decoder layers.
    layers: int
    hidden_size: int
    #: Length of its logits.
    vocab_size: int
    device: torch.device
    dtype: torch.dtype


def inputs_of(job: Job, nonces: Sequence[int], deployed: Deployed) -> Tensor:
    """The inputs of some of a job's nonces, alike in all schemes: see `generate_inputs`."""
    inputs: Tensor = generator_for(deployed.device).generate_inputs(
        job.block_hash,
        job.public_key,
        nonces,
        deployed.hidden_size,
        job.seq_len,
        deployed.device,
        deployed.dtype,
        strong_rng=job.strong_rng,
    )
    return inputs


class Tensors(Protocol):
    """A scheme on one device. It is asked by one thread, and waits for the device in `proofs`."""

    #: Whether it reads hidden states after the final norm, and changes what layers give (`edit`).
    #: Otherwise it reads logits, of the model as it is.
    edits: bool

    def edit(self, index: int, layer: nn.Module) -> nn.Module:
        """What stands in for decoder layer `index` in a forward of this scheme."""
        ...

    def enter(self, job: Job) -> None:
        """Bring up to date what the forwards of `job` depend on, in the order of the device."""
        ...

    def leave(self) -> None:
        """Let what `edit` gave do as the layers themselves, until `enter`."""
        ...

    def make(self, job: Job, nonces: Sequence[int]) -> tuple[Tensor, Any]:
        """The inputs of `nonces`, [len(nonces), seq_len, hidden_size], and what `read` takes."""
        ...

    def read(self, output: Tensor, made: Any, job: Job) -> Tensor:
        """What is left of an output, a float32 row for each nonce; NaN in it where none can be.

        `output` has logits or hidden states, [len(nonces), ...]. What is given must be no view of
        it: the next tile's may lie in the same memory.
        """
        ...

    def proofs(self, rows: Tensor, job: Job) -> list[Proof | None]:
        """The proofs of all nonces of `job` by their rows; None for one that has none."""
        ...
