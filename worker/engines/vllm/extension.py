"""What runs inside vLLM's worker process: nonces in, distances out, on the deployed model.

vLLM mixes `PoCWorkerExtension` into its worker (`worker_extension_cls`); the engine calls its
methods by name (`collective_rpc`), each on every rank of a tensor parallel group:

    nonces --tiles--> inputs --model, scratch pages--> last logits --permutations--> distances

Inputs are made on the device, so nothing but nonces and distances leaves the process.
`poc_launch` queues a job on the device and returns, `poc_collect` waits for it.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from worker import gpu_random
from worker.children import die_with_parent
from worker.engines.vllm import internals
from worker.engines.vllm.recording import Forward, Recorder

logger = logging.getLogger("vllm.poc")  # vLLM shows what is below its own name

#: Targets kept: a round's own, and those of the blocks that validators ask about.
_TARGETS_KEPT = 8

#: Attention backends whose forwards may be recorded: their metadata is flat, so that it can be kept
#: as it was built. FlashInfer's has a plan of its builder in it, which later builds change.
_RECORDABLE = frozenset({"FLASH_ATTN"})

# A rank of a tensor parallel group would notice the end of vLLM's engine only once it has loaded
# its part of the model, or never, if it hangs. vLLM imports this file before it loads.
die_with_parent()


class PoCWorkerExtension:
    """Mixed into vLLM's worker. Only what starts with `poc_`, so that no name of its own is hit."""

    def poc_prepare(self, tile: int) -> dict[str, Any]:
        """Allocate the scratch for tiles of at most `tile` sequences, for good; what vLLM is.

        Called once, before any job.
        """
        self.poc_device = _Device(self, tile)
        return self.poc_device.facts

    def poc_launch(self, ticket: int, job: dict[str, Any]) -> bool:
        """Queue `job` (the fields of `Job`) under `ticket`; whether the device still computes.

        Raises if the job could not be queued as a whole; then nothing is left of it.
        """
        return self.poc_device.launch(ticket, **job)

    def poc_collect(self, ticket: int) -> tuple[list[float], float]:
        """Wait for a job: its distances (empty on a rank without logits), its device seconds."""
        return self.poc_device.collect(ticket)


class _Device:
    """The deployed model and its scratch pages on one rank."""

    def __init__(self, worker: Any, tile: int) -> None:
        self._worker, self._device = worker, internals.device_of(worker)
        facts = internals.facts(worker)
        self._tile = min(tile, facts["max_sequences"])
        self._max_tokens: int = facts["max_tokens"]
        self._hidden_size, self._vocab_size = facts["hidden_size"], facts["vocab_size"]
        self._dtype: torch.dtype = getattr(torch, facts["dtype"])
        self._alone = facts["tensor_parallel"] == 1
        self._forward = Recorder(
            self._forward_of,
            records=self._device.type == "cuda"
            and facts["compiled"]
            and facts["attention"] in _RECORDABLE
            # Ranks would record their exchange as well, which vLLM has ways of its own for.
            and self._alone,
        )
        # More than enough: a block has at least one token.
        most_blocks = min(facts["max_model_len"], self._max_tokens)
        self._layers = internals.kv_layers(worker)
        self._groups = internals.kv_groups(worker, block_table_width=most_blocks)
        self._scratch = self._allocate()
        self._jobs: dict[int, _Job] = {}
        self._target = lru_cache(maxsize=_TARGETS_KEPT)(
            partial(gpu_random.generate_target, vocab_size=self._vocab_size, device=self._device)
        )
        self.facts = facts | {
            "tile": self._tile,
            "scratch_bytes": sum(
                pages.untyped_storage().nbytes() for pages in set(self._scratch.values())
            ),
        }

    def _allocate(self) -> dict[str, Tensor]:
        """Scratch pages by layer: one tensor for all layers whose pages look the same.

        A layer writes its keys and values and reads them right back, before the next layer
        begins, and all of it is in the order of one stream: they never meet.
        """
        shared: dict[Any, Tensor] = {}
        scratch = {}
        for group in self._groups:
            # A tile has at most that many tokens, and each sequence may leave its last block
            # partly empty; block 0 is never used.
            blocks = 1 + self._max_tokens // group.block_size + self._tile
            live_blocks = internals.live_blocks(self._worker, group)
            for name in group.layers:
                live = self._layers[name].kv_cache
                looks = (live.dtype, live.shape, live.stride(), live_blocks)
                if looks not in shared:
                    shared[looks] = internals.scratch_like(live, live_blocks, blocks)
                scratch[name] = shared[looks]
        return scratch

    @torch.inference_mode()
    def launch(
        self,
        ticket: int,
        block_hash: str,
        public_key: str,
        nonces: Sequence[int],
        seq_len: int,
        strong_rng: bool,
        whole_tiles: bool,
    ) -> bool:
        job = _Job(self._device)
        key = (block_hash, public_key, seq_len, strong_rng)
        # The ranks of a group must do the same: one that halves alone waits for ever.
        may_halve = self._alone and not whole_tiles
        try:
            tile = min(self._tile, self._max_tokens // seq_len)
            compute = self._compute_or_halve if may_halve else partial(self._compute, self._forward)
            parts = [
                compute(nonces[at : at + tile], tile, *key) for at in range(0, len(nonces), tile)
            ]
            job.close([part for part in parts if part is not None])
        except Exception as error:
            self._end_if_lost(error)
            raise
        self._jobs[ticket] = job
        return job.running

    def collect(self, ticket: int) -> tuple[list[float], float]:
        try:
            return self._jobs.pop(ticket).result()
        except Exception as error:
            self._end_if_lost(error)
            raise

    def _compute_or_halve(self, nonces: Sequence[int], tile: int, *key: Any) -> Tensor | None:
        """Distances of one tile; when memory runs out in it, of its halves."""
        try:
            return self._compute(self._forward, nonces, tile, *key)
        except torch.OutOfMemoryError as error:
            if tile == 1:
                raise
            reason = str(error).partition("\n")[0]
        # Out here, since the exception's traceback would keep the failed tile's tensors alive.
        half = -(-tile // 2)
        logger.error(
            "out of memory with %d sequences in one forward (%s): going on with %d. "
            "Their distances may differ in the last bits; lower POC_TILE on every worker",
            tile,
            reason,
            half,
        )
        self._forward.forget()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        parts = [
            self._compute(self._forward.plain, nonces[at : at + half], half, *key)
            for at in range(0, len(nonces), half)
        ]
        return torch.cat([part for part in parts if part is not None])

    def _compute(
        self,
        forward: Forward,
        nonces: Sequence[int],
        tile: int,
        block_hash: str,
        public_key: str,
        seq_len: int,
        strong_rng: bool,
    ) -> Tensor | None:
        """Distances of at most `tile` nonces, float32 [len(nonces)]; None without logits here."""
        padded = [*nonces, *[nonces[-1]] * (tile - len(nonces))]
        inputs = gpu_random.generate_inputs(
            block_hash,
            public_key,
            padded,
            self._hidden_size,
            seq_len,
            self._device,
            self._dtype,
            strong_rng=strong_rng,
        )
        logits = forward(inputs)
        if logits is None:
            return None
        permutations = gpu_random.generate_permutations(
            block_hash, public_key, padded, self._vocab_size, self._device
        )
        distances = gpu_random.compute_distances(
            logits[:, : self._vocab_size], permutations, self._target(block_hash)
        )
        return distances[: len(nonces)]

    def _forward_of(self, shape: torch.Size) -> Forward:
        """The forward of inputs of `shape` [tile, seq_len, hidden_size]."""
        metadata = [
            internals.prefill_metadata(group, shape[0], shape[1], self._device)
            for group in self._groups
        ]

        pages = set(self._scratch.values())

        def forward(inputs: Tensor) -> Tensor | None:
            # A kernel may read a last block to its end, and 0 * NaN is NaN: what an earlier tile
            # left there must not reach a healthy nonce.
            for each in pages:
                each.zero_()
            with internals.swapped(self._layers, self._scratch):
                return internals.last_logits(self._worker, inputs, self._groups, metadata)

        return forward

    def _end_if_lost(self, error: Exception) -> None:
        """End this process, which vLLM reports as a dead engine, if it can't go on as it is."""
        if self._device.type == "cuda":
            try:
                torch.cuda.synchronize(self._device)
            except Exception:
                logger.critical("the GPU is lost to this process: %s", error, exc_info=error)
                os._exit(1)
        if not self._alone:
            logger.critical("a rank failed, the others may wait for it: %s", error, exc_info=error)
            os._exit(1)


class _Job:
    """Distances on their way to the host, and how long the device took."""

    def __init__(self, device: torch.device) -> None:
        self._distances: Tensor | None = None
        self._began, self._seconds = time.perf_counter(), 0.0
        self._events: tuple[Any, Any] | None = None
        if device.type == "cuda":
            event: Any = torch.cuda.Event  # without types
            self._events = event(enable_timing=True), event(enable_timing=True)
            self._events[0].record()

    def close(self, parts: Sequence[Tensor]) -> None:
        """Note that `parts` are all there is; their way to the host is queued behind them."""
        distances = torch.cat(list(parts)) if parts else None
        if self._events and distances is not None:
            pinned = torch.empty(distances.shape, dtype=distances.dtype, pin_memory=True)
            distances = pinned.copy_(distances, non_blocking=True)
        self._distances = distances
        if self._events:
            self._events[1].record()
        self._seconds = time.perf_counter() - self._began

    @property
    def running(self) -> bool:
        """Whether the device still computes."""
        return self._events is not None and not self._events[1].query()

    def result(self) -> tuple[list[float], float]:
        """Wait; distances, NaN where logits were not finite, and the seconds on the device."""
        if self._events:
            start, end = self._events
            end.synchronize()
            self._seconds = start.elapsed_time(end) / 1000
        # float32 to Python float is exact.
        values: list[float] = [] if self._distances is None else self._distances.tolist()
        return [value if math.isfinite(value) else math.nan for value in values], self._seconds
