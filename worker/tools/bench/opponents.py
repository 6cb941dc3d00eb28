"""What a worker is compared with: the published algorithm, and what the device can do at most."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor

from shared.config import PoCConfig
from shared.errors import ConfigError, EngineError
from worker.engines import Engine, EngineInfo, checkpoint, weights
from worker.engines.base import tile_of
from worker.engines.checkpoint import first_line
from worker.engines.clock import keep_busy
from worker.engines.vllm.engine import ARCHITECTURES, VllmEngine
from worker.tools.bench.published import Published

#: The extension of vLLM that has the published algorithm beside ours.
EXTENSION = f"{__package__}.published_extension.PublishedExtension"

#: Rows and columns of the matrices that show what a device can do.
MATRIX = {"cpu": 1024, "cuda": 8192}
#: Batches for each call of vLLM's process, whose answer takes about a millisecond.
BATCHES_A_CALL = 8


def device_of(info: EngineInfo) -> torch.device:
    """Where an engine computes, by its own word. Raises `ConfigError` for one that does not say."""
    try:
        return torch.device(info.device.partition(" ")[0])
    except RuntimeError:
        raise ConfigError(
            f"opponents need the device of the engine, and it says {info.device!r}; "
            "leave --against out"
        ) from None


def dtype_of(info: EngineInfo) -> torch.dtype:
    """What an engine computes in; float32 unless it says so."""
    dtype: torch.dtype = getattr(torch, info.profile.get("dtype", "float32"))
    return dtype


def published_of(info: EngineInfo) -> Published:
    """The published algorithm on a copy of the engine's model: its forward, as transformers has it.

    Raises `EngineError` for a checkpoint that is computed otherwise there, as one in float8 is, and
    `ConfigError` if there is no room for the copy.
    """
    device, dtype = device_of(info), dtype_of(info)
    directory = checkpoint.find(info.model)
    config = checkpoint.read_config(directory, checkpoint.DENSE, quantized=False)
    try:
        model = weights.load(directory, config, info.profile.get("dtype", "float32"), device)
    except EngineError as error:
        raise _no_room(error) from None

    def forward(inputs: Tensor) -> Tensor:
        output = model(inputs_embeds=inputs, use_cache=False, logits_to_keep=1)
        logits: Tensor = output.logits[:, -1]
        return logits

    return Published(info.hidden_size, info.vocab_size, device, dtype, forward)


def _no_room(error: Exception) -> ConfigError:
    return ConfigError(
        "the published algorithm needs a copy of the model beside the engine's: "
        f"{first_line(error).rstrip('.')}. POC_GPU_MEMORY_UTILIZATION=0.6, say, leaves room for it "
        "beside vLLM; or measure without it: --against limit, and no --gpu"
    )


class PublishedAlgorithm:
    """The published algorithm: `batch` gives the distances of `size` nonces at a time."""

    def __init__(self, name: str, batch: Callable[[Sequence[int]], list[float]], size: int) -> None:
        self.name, self._batch, self._size = name, batch, size
        self._starts = count(0, size)

    def turn(self, seconds: float) -> tuple[float, float]:
        """Nonces of whole batches, and the seconds that they took."""
        nonces, began = 0, time.perf_counter()
        try:
            while not nonces or time.perf_counter() - began < seconds:
                start = next(self._starts)
                self._batch(range(start, start + self._size))
                nonces += self._size
        except torch.OutOfMemoryError as error:
            raise _no_room(error) from None
        return nonces, time.perf_counter() - began


def on_its_forward(published: Published, config: PoCConfig) -> PublishedAlgorithm:
    """The algorithm as it is published: a whole batch in one forward of transformers."""
    return PublishedAlgorithm("published", _batch(published, config), config.batch_size)


def on_our_forward(
    published: Published | None, config: PoCConfig, engine: Engine
) -> PublishedAlgorithm | None:
    """The same around the engine's own forward, tile by tile; None where we can't reach that."""
    name, info = "published_our_forward", engine.info
    if isinstance(engine, VllmEngine):
        tile = tile_of(info.tile, info.max_tokens, config.seq_len)
        return PublishedAlgorithm(
            name,
            lambda nonces: engine.call(
                "poc_published",
                config.block_hash,
                config.public_key,
                list(nonces),
                config.seq_len,
            ),
            BATCHES_A_CALL * tile,
        )
    if published and info.profile.get("engine") == "transformers":  # whose forward is that very one
        return PublishedAlgorithm(name, _batch(published, config), info.tile)
    return None


def _batch(published: Published, config: PoCConfig) -> Callable[[Sequence[int]], list[float]]:
    target = published.target(config.block_hash)
    given = config.block_hash, config.public_key
    return lambda nonces: published.distances(*given, nonces, config.seq_len, target)


class Limit:
    """Forwards at the pace of one product of large matrices.

    It counts the operations of a forward that computes all positions in all layers, and the head
    for the last one.
    """

    name = "limit"

    def __init__(self, info: EngineInfo, seq_len: int) -> None:
        config = checkpoint.read_config(checkpoint.find(info.model), ARCHITECTURES, quantized=True)
        self.flops_a_nonce = flops_a_nonce(config, seq_len)
        self._device, self._ranks = device_of(info), int(info.profile.get("tensor_parallel", "1"))
        self._size = MATRIX[self._device.type]
        shape = self._size, self._size
        one, other = (
            torch.randn(shape, dtype=dtype_of(info), device=self._device) for _ in range(2)
        )
        product = torch.empty_like(one)
        self._multiply = lambda: torch.mm(one, other, out=product)

    def turn(self, seconds: float) -> tuple[float, float]:
        """Nonces whose forwards have as many operations, and the seconds that these took."""
        products, spent = keep_busy(self._multiply, seconds, self._device)
        return products * 2 * self._size**3 * self._ranks / self.flops_a_nonce, spent


def flops_a_nonce(config: Any, seq_len: int) -> int:
    """Floating-point operations of one sequence's forward, of matrix products alone."""
    hidden, layers = config.hidden_size, config.num_hidden_layers
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or hidden // heads
    projections = hidden * width * (2 * heads + 2 * (config.num_key_value_heads or heads))
    if experts := getattr(config, "num_experts_per_tok", 0):
        mlp = hidden * (3 * experts * config.moe_intermediate_size + config.num_experts)
    else:
        mlp = 3 * hidden * config.intermediate_size
    # A position looks at itself and those before it, and both products have width * heads.
    attention = heads * width * seq_len * (seq_len + 1)
    head = hidden * config.vocab_size
    return int(2 * (layers * (seq_len * (projections + mlp) + attention) + head))
