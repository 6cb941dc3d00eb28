"""How a nonce becomes a distance: the one place for it, whatever computes the forward.

    nonces ──▶ tiles ──▶ inputs ──▶ forward ──▶ last logits ──▶ distances
                         generator  engine                      generator

Work is cut into tiles of a constant shape, the last one padded, so that a nonce meets the same
kernels whatever batch it came in. An engine supplies the forward alone. The generator is
`worker.kernels` on a GPU, `worker.cpu_random` on a CPU, and `worker.gpu_random` elsewhere.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from worker import cpu_random, gpu_random
from worker.engines.base import Job, tile_of
from worker.schemes.generator import generator_for

#: Inputs [tile, seq_len, hidden_size], which it may overwrite, to the logits of the last positions,
#: [tile, at least vocab_size]; None on a device that has no logits.
Forward = Callable[[Tensor], Tensor | None]

#: A job, some of its nonces and the size of their tile, to what `Tiles.distances` gives.
Compute = Callable[[Job, Sequence[int], int], Tensor | None]

#: Tiles whose inputs and permutations there is memory for: one computes, one waits behind it.
_AHEAD = 2

#: Targets kept: a round's own, and those of the blocks that validators ask about.
_TARGETS_KEPT = 8


class Tiles:
    """Cuts jobs into tiles of at most `size` sequences, and computes these.

    `max_tokens` is how many positions a tile may have in all. `dtype` is the model's.
    """

    def __init__(
        self,
        size: int,
        *,
        hidden_size: int,
        vocab_size: int,
        device: torch.device,
        dtype: torch.dtype,
        max_tokens: int | None = None,
    ) -> None:
        self.size = size
        self._max_tokens = max_tokens
        self._hidden_size, self._vocab_size = hidden_size, vocab_size
        self._device, self._dtype = device, dtype
        self._generator = generator_for(device)
        #: What the last tiles were computed from, and the event of their ends.
        self._made: deque[tuple[Any, ...]] = deque()
        streams: Any = torch.cuda.Stream  # without types
        self._side = streams(device) if self.generator == "triton" else None
        # Bound to values, not to self: a cycle would keep tensors until the next collection.
        self._target = lru_cache(maxsize=_TARGETS_KEPT)(
            partial(gpu_random.generate_target, vocab_size=vocab_size, device=device)
        )

    @property
    def generator(self) -> str:
        """What gives inputs and distances their last bits: `triton` or `torch`."""
        return "torch" if self._generator in (gpu_random, cpu_random) else "triton"

    def size_of(self, job: Job) -> int:
        """The sequences of a tile of `job`."""
        return tile_of(self.size, self._max_tokens, job.seq_len)

    def launch(self, job: Job, compute: Compute) -> Tensor | None:
        """Distances of all nonces of `job`, on the device: what `compute` gives for each tile."""
        size = self.size_of(job)
        return join([compute(job, nonces, size) for nonces in cut(job.nonces, size)])

    @torch.inference_mode()
    def distances(
        self, job: Job, nonces: Sequence[int], forward: Forward, size: int
    ) -> Tensor | None:
        """Distances of one tile, at most `size` nonces: float32 [len(nonces)], on the device.

        None where the forward has no logits. Does not wait for the device.
        """
        padded = [*nonces, *[nonces[-1]] * (size - len(nonces))]
        given = job.block_hash, job.public_key, padded
        with self._ahead():
            inputs = self._generator.generate_inputs(
                *given,
                self._hidden_size,
                job.seq_len,
                self._device,
                self._dtype,
                strong_rng=job.strong_rng,
            )
            permutations = self._generator.generate_permutations(
                *given, self._vocab_size, self._device
            )
        try:
            logits = forward(inputs)
            if logits is None:
                return None
            distances: Tensor = self._generator.compute_distances(
                logits[:, : self._vocab_size], permutations, self._target(job.block_hash)
            )
            return distances[: len(nonces)]
        finally:
            self._keep(inputs, permutations)

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
    """The distances of several tiles as one tensor; None if there are none."""
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


def to_floats(distances: Tensor | None) -> list[float]:
    """Wait for `distances`; NaN where logits were not finite. float32 to Python float is exact."""
    values: list[float] = [] if distances is None else distances.tolist()
    return [value if math.isfinite(value) else math.nan for value in values]
