"""How a nonce becomes a proof: the one place for it, whatever computes the forward.

    nonces ──▶ tiles ──▶ inputs ──▶ forward ──▶ output ──▶ rows ──▶ proofs
                         scheme     engine      scheme     scheme

Work is cut into tiles of a constant shape, the last one padded, so that a nonce meets the same
kernels whatever batch it came in. An engine supplies the forward alone; the rest is a file of
`worker/schemes/`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from shared.schemes import Proof
from worker import cpu_random, gpu_random
from worker.engines.base import tile_of
from worker.job import Job
from worker.schemes import Deployed, Tensors, tensors_of
from worker.schemes.generator import generator_for

#: Inputs [tile, seq_len, hidden_size], which it may overwrite, to what a scheme reads of the last
#: positions: logits [tile, at least vocab_size], or hidden states [tile, hidden_size]; None on a
#: device that has no logits.
Forward = Callable[[Tensor], Tensor | None]

#: A job, some of its nonces and the size of their tile, to what `Tiles.rows` gives.
Compute = Callable[[Job, Sequence[int], int], Tensor | None]

#: Tiles whose inputs there is memory for: one computes, one waits behind it.
_AHEAD = 2


class Tiles:
    """Cuts jobs into tiles of at most `size` sequences, and computes these.

    `max_tokens` is how many positions a tile may have in all.
    """

    def __init__(
        self,
        size: int,
        deployed: Deployed,
        *,
        max_tokens: int | None = None,
        tensors_of: Callable[[str, Deployed], Tensors] = tensors_of,
    ) -> None:
        self.size, self._tensors_of = size, tensors_of
        self._max_tokens, self._deployed = max_tokens, deployed
        self._device = deployed.device
        self._tensors: dict[str, Tensors] = {}
        #: What the last tiles were computed from, and the event of their ends.
        self._made: deque[tuple[Any, ...]] = deque()
        streams: Any = torch.cuda.Stream  # without types
        self._side = streams(self._device) if self.generator == "triton" else None

    @property
    def generator(self) -> str:
        """What gives inputs their last bits: `triton` or `torch`."""
        made_by = generator_for(self._device)
        return "torch" if made_by in (gpu_random, cpu_random) else "triton"

    def tensors(self, scheme: str) -> Tensors:
        """Those of a scheme, made once. Raises `EngineError` for an unknown one."""
        if scheme not in self._tensors:
            self._tensors[scheme] = self._tensors_of(scheme, self._deployed)
        return self._tensors[scheme]

    def size_of(self, job: Job) -> int:
        """The sequences of a tile of `job`."""
        return tile_of(self.size, self._max_tokens, job.seq_len)

    def launch(self, job: Job, compute: Compute) -> Tensor | None:
        """The rows of all nonces of `job`, on the device: what `compute` gives for each tile."""
        size = self.size_of(job)
        return join([compute(job, nonces, size) for nonces in cut(job.nonces, size)])

    def proofs(self, rows: Tensor | None, job: Job) -> list[Proof | None]:
        """Wait for the rows of `job`; its proofs. None for the rows of no nonces, or of no rank."""
        return [] if rows is None else self.tensors(job.scheme).proofs(rows, job)

    @torch.inference_mode()
    def rows(self, job: Job, nonces: Sequence[int], forward: Forward, size: int) -> Tensor | None:
        """What a scheme reads of one tile, at most `size` nonces: [len(nonces), ...] on the device.

        None where the forward has no output. Does not wait for the device.
        """
        padded = [*nonces, *[nonces[-1]] * (size - len(nonces))]
        tensors = self.tensors(job.scheme)
        with self._ahead():
            inputs, made = tensors.make(job, padded)
        try:
            tensors.enter(job)
            output = forward(inputs)
            return None if output is None else tensors.read(output, made, job)[: len(nonces)]
        finally:
            self._keep(inputs, made)

    def forget(self) -> None:
        """Give the memory of past tiles back, once the device is through with them."""
        while self._made:
            self._made.popleft()[0].synchronize()

    @contextmanager
    def _ahead(self) -> Iterator[None]:
        """In it a GPU works while it still computes the tile before."""
        if self._side is None:
            yield
            return
        with torch.cuda.stream(self._side):
            if len(self._made) == _AHEAD:
                # Its memory is free after that, and this stream's: however many tiles a job has,
                # they take that of two.
                ended, *made = self._made.popleft()
                self._side.wait_event(ended)
                del made
            yield
        torch.cuda.current_stream(self._device).wait_stream(self._side)

    def _keep(self, *made: Any) -> None:
        """Keep what was made ahead until the device is through with it."""
        if self._side is not None:
            ended = torch.cuda.current_stream(self._device).record_event()
            self._made.append((ended, *made))


def cut(nonces: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """`nonces` in order, `size` at a time; the last part may have fewer."""
    for start in range(0, len(nonces), size):
        yield nonces[start : start + size]


def join(parts: Sequence[Tensor | None]) -> Tensor | None:
    """The rows of several tiles as one tensor; None if there are none."""
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None
