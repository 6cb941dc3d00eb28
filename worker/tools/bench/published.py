"""The published algorithm, restated step by step: the reference, not what a worker runs.

It makes a batch nonce by nonce, with plain torch operations in int64 and float32, and waits for the
device once a batch. `worker.gpu_random` and `worker.kernels` give the same numbers in other ways.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Published:
    """The algorithm for a model: its sizes, where it computes, and its forward.

    `forward` maps inputs `dtype` [batch, seq_len, hidden_size] to the logits of the last positions,
    [batch, at least vocab_size], or to None on a device that has none.
    """

    hidden_size: int
    vocab_size: int
    device: torch.device
    dtype: torch.dtype
    forward: Callable[[Tensor], Tensor | None]

    @torch.inference_mode()
    def distances(
        self, block_hash: str, public_key: str, nonces: Sequence[int], seq_len: int, target: Tensor
    ) -> list[float]:
        """One distance a nonce of the batch; empty where there are no logits."""
        logits = self.forward(self.inputs(block_hash, public_key, nonces, seq_len))
        if logits is None:
            return []
        permutations = self.permutations(block_hash, public_key, nonces)
        found: list[float] = distances(logits[:, : self.vocab_size], permutations, target).tolist()
        return found

    def inputs(
        self, block_hash: str, public_key: str, nonces: Sequence[int], seq_len: int
    ) -> Tensor:
        """The inputs of a batch: `dtype` [len(nonces), seq_len, hidden_size]."""
        shape = seq_len, self.hidden_size
        batch = torch.empty(len(nonces), *shape, dtype=self.dtype, device=self.device)
        for row, nonce in enumerate(nonces):
            seed = _seed(f"{block_hash}_{public_key}_nonce{nonce}")
            batch[row] = _normal(seed, math.prod(shape), self.device).view(shape).to(self.dtype)
        return batch

    def permutations(self, block_hash: str, public_key: str, nonces: Sequence[int]) -> Tensor:
        """The permutations of a batch: int64 [len(nonces), vocab_size]."""
        batch = torch.empty(len(nonces), self.vocab_size, dtype=torch.int64, device=self.device)
        for row, nonce in enumerate(nonces):
            seed = _seed(f"{block_hash}_{public_key}_nonce_{nonce}_permutations")
            hashes = _murmur3(torch.arange(self.vocab_size, device=self.device), seed)
            batch[row] = torch.argsort(hashes, stable=True)
        return batch

    def target(self, block_hash: str) -> Tensor:
        """The direction of a block: float32 [vocab_size]."""
        normals = _normal(_seed(f"{block_hash}_target"), self.vocab_size, self.device)
        target: Tensor = normals / normals.norm()
        return target


def distances(logits: Tensor, permutations: Tensor, target: Tensor) -> Tensor:
    """Of logits [batch, vocab_size] and their permutations: float32 [batch], each in [0, 2]."""
    shuffled = logits.float().gather(1, permutations)
    directions = shuffled / shuffled.norm(dim=1, keepdim=True)
    found: Tensor = (directions - target).norm(dim=1)
    return found


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _murmur3(keys: Tensor, seed: int) -> Tensor:
    """MurmurHash3 of int64 keys, without the final exclusive-or with the length, as int64."""
    mixed = keys * 0xCC9E2D51 & _MASK
    mixed = (mixed << 15 | mixed >> 17) & _MASK
    hashes = mixed * 0x1B873593 & _MASK ^ seed
    hashes = (hashes << 13 | hashes >> 19) & _MASK
    hashes = hashes * 5 + 0xE6546B64 & _MASK
    hashes = (hashes ^ hashes >> 16) * 0x85EBCA6B & _MASK
    hashes = (hashes ^ hashes >> 13) * 0xC2B2AE35 & _MASK
    return hashes ^ hashes >> 16


def _uniform(seed: int, start: int, stop: int, device: torch.device) -> Tensor:
    hashes = _murmur3(torch.arange(start, stop, device=device), seed)
    return hashes.to(torch.float32) / 2.0**32


def _normal(seed: int, n: int, device: torch.device) -> Tensor:
    """float32 [n], by Box-Muller: all cosines, then all sines."""
    pairs = (n + 1) // 2
    u1 = _uniform(seed, 0, pairs, device).clamp(min=1e-10)
    u2 = _uniform(seed, pairs, 2 * pairs, device)
    radius, angle = torch.sqrt(-2.0 * torch.log(u1)), 2.0 * math.pi * u2
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])[:n]
