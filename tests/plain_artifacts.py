"""Artifacts of a model in plain words: hooks, loops and Python's floats, with no code of ours.

But for SHA-256 seeds, hashes and normals, which golden vectors hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from vectors import K
from worker import gpu_random


class PlainModel:
    """A checkpoint in one block: `vectors` of nonces."""

    def __init__(self, path: Path, dtype: torch.dtype = torch.float32) -> None:
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        self.hidden_size: int = self._model.config.hidden_size

    @torch.inference_mode()
    def vectors(
        self,
        block_hash: str,
        public_key: str,
        nonces: Sequence[int],
        seq_len: int,
        *,
        strong_rng: bool = False,
    ) -> list[list[float]]:
        """Of each nonce K numbers."""
        size, dtype = self.hidden_size, self._model.dtype
        inputs = gpu_random.generate_inputs(
            block_hash, public_key, nonces, size, seq_len, "cpu", dtype, strong_rng
        )
        hooks = [
            layer.register_forward_hook(
                _reflect(unit(f"{block_hash}_layer_{i}_householder", self.hidden_size))
            )
            for i, layer in enumerate(self._model.model.layers)
        ]
        hidden = self._model.model(inputs_embeds=inputs, use_cache=False)[0][:, -1].tolist()
        for hook in hooks:
            hook.remove()
        stem = f"{block_hash}_{public_key}_nonce_"
        return [finished(row, f"{stem}{n}") for row, n in zip(hidden, nonces, strict=True)]


def finished(hidden: Sequence[float], stem: str) -> list[float]:
    """From a last hidden state to what is sent. `stem` names block, key and nonce."""
    norm = math.sqrt(sum(each * each for each in hidden)) + 1e-8
    scores = gpu_random.murmur3_32(
        torch.arange(len(hidden)), gpu_random.seed(f"{stem}_pick_{K}")
    ).tolist()
    kth = sorted(scores)[K - 1]
    order = [at for at, score in enumerate(scores) if score < kth] + [scores.index(kth)]
    y = [hidden[at] / norm for at in order]
    for j in range(K - 1):
        w = unit(f"{stem}_haar_hh_{K}_{j}", K)
        along = sum(a * b for a, b in zip(y, w, strict=True))
        y = [a - 2 * along * b for a, b in zip(y, w, strict=True)]
    norm = math.sqrt(sum(each * each for each in y)) + 1e-8
    return [each / norm for each in y]


def unit(text: str, n: int) -> list[float]:
    """The direction that `text` draws, of length 1."""
    drawn = gpu_random.normal([gpu_random.seed(text)], n)[0].tolist()
    norm = math.sqrt(sum(each * each for each in drawn))
    return [each / norm for each in drawn]


def _reflect(v: list[float]) -> Any:
    def hook(_: nn.Module, __: Any, x: Tensor) -> Tensor:
        along = torch.tensor(v).to(x.dtype)
        return x - 2 * (x @ along).unsqueeze(-1) * along

    return hook
