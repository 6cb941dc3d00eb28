"""The deployed model on one rank: jobs are queued on its device, proofs come back.

The forward is the deployed model's, without its live pages: keys and values are read as they are
computed, or by way of scratch pages. Inputs are made on the device.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.errors import EngineError
from shared.schemes import Proof
from worker.engines import checkpoint
from worker.engines.checkpoint import first_line
from worker.engines.tensors import check_float8
from worker.engines.tensors import read as read_headers
from worker.engines.tile import Forward, Tiles, cut, join
from worker.engines.vllm import forwards, internals
from worker.engines.vllm.options import TILES, USUAL_LEN
from worker.engines.vllm.recording import FIRST_AFTER, Recorder
from worker.job import NO_BLOCK, Job
from worker.schemes import Deployed, Tensors, refused, tensors_of

log = logging.getLogger("vllm.poc")  # vLLM shows what is below its own name

#: Attention backends whose forwards may be recorded: their metadata is flat, so that it can be kept
#: as it was built. FlashInfer's has a plan of its builder in it, which later builds change.
_RECORDABLE = frozenset({"FLASH_ATTN"})

#: How far hidden states of a forward of our own may be from those of vLLM's, as a share of these.
#: In bfloat16 two honest forwards differ by 1 to 2%; edited layers give entirely other ones.
_SAME = 0.1


class Rank:
    """The deployed model and its scratch pages on one rank."""

    def __init__(self, worker: Any, tile: int, max_tokens: int, *, prunes: bool) -> None:
        self._worker, self.device = worker, internals.device_of(worker)
        facts = internals.facts(worker)
        if layers := internals.float8_layers(worker):
            directory = Path(worker.vllm_config.model_config.model)
            check_float8(read_headers(checkpoint.weight_files(directory)), layers)
        facts["max_tokens"] = min(facts["max_tokens"], max_tokens)
        self._max_tokens: int = facts["max_tokens"]
        self._hidden_size: int = facts["hidden_size"]
        self.dtype: torch.dtype = getattr(torch, facts["dtype"])
        self._tiles = Tiles(
            tile,
            Deployed(
                layers=facts["layers"],
                hidden_size=self._hidden_size,
                vocab_size=facts["vocab_size"],
                device=self.device,
                dtype=self.dtype,
            ),
            max_tokens=self._max_tokens,
            tensors_of=_tensors_of,
        )
        self._alone = facts["tensor_parallel"] == 1
        self._records = (
            self.device.type == "cuda"
            and facts["compiled"]
            and facts["attention"] in _RECORDABLE
            # Ranks would record their exchange as well, which vLLM has ways of its own for.
            and self._alone
        )
        # What is recorded for one scheme is never replayed beside that of another.
        self._pool = cache(torch.cuda.graph_pool_handle)
        self._forwards: dict[str, Recorder] = {}
        # More than enough: a block has at least one token.
        most_blocks = min(facts["max_model_len"], self._max_tokens)
        self._layers = internals.kv_layers(worker)
        self._groups = internals.kv_groups(worker, block_table_width=most_blocks)
        self._direct = internals.direct_attention(self._layers)
        self._scratch = {} if self._direct else self._allocate()
        self._launched: dict[int, tuple[Job, _Launched]] = {}
        self._prepared = False
        self._prunes = (
            prunes and self._alone and facts["compiled"] and facts["quantization"] == "none"
        )
        self.facts = facts | {
            **forwards.WHOLE,
            "tile": self._tiles.size,
            "generator": self._tiles.generator,
            "without": refused(internals.model_of(worker), self._tiles.tensors),
            "keys_and_values": "direct" if self._direct else "pages",
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
            blocks = 1 + self._max_tokens // group.block_size + self._tiles.size
            live_blocks = internals.live_blocks(self._worker, group)
            for name in group.layers:
                live = self._layers[name].kv_cache
                looks = (live.dtype, live.shape, live.stride(), live_blocks)
                if looks not in shared:
                    shared[looks] = internals.scratch_like(live, live_blocks, blocks)
                scratch[name] = shared[looks]
        return scratch

    def prepare(self, scheme: str) -> dict[str, Any]:
        """Compile the forward of a scheme; the facts, with what came of it."""
        own = self._own(scheme)
        self.facts |= forwards.WHOLE if own is None else own.facts
        self._prepared = True
        return self.facts

    def _own(self, scheme: str) -> forwards.OwnForward | None:
        """The forward of ours that a scheme has; None if it takes vLLM's.

        Made once in a process. Raises `EngineError` if it must have one, and there is none; from
        then on at once, unless it was memory that was missing. For want of memory a lesser one is
        taken by `prepare` alone, whose facts the profile has.
        """
        if scheme in self.facts["without"]:
            raise EngineError(self.facts["without"][scheme])
        tensors, known = self._tiles.tensors(scheme), vars(self._worker).setdefault("poc_own", {})
        if not self._prunes and not tensors.edits:
            return None
        if (scheme, self._prunes) not in known:
            known[scheme, self._prunes] = self._make(scheme, tensors)
        found: forwards.OwnForward | None = known[scheme, self._prunes]
        return found

    def _make(self, scheme: str, tensors: Tensors) -> forwards.OwnForward | None:
        why, out_of_memory = "", False
        ours = (forwards.fused, forwards.pruned) * self._prunes + (forwards.whole,) * tensors.edits
        for make in ours:
            try:
                own = make(self._worker, tensors.edit)
                if own is None:
                    continue
                self._check(own, scheme)
            except Exception as error:  # noqa: BLE001 - whatever a compiler makes of a model
                why = first_line(error)
                out_of_memory |= isinstance(error, torch.OutOfMemoryError)
                log.warning("no %s forward for %s: %s", make.__name__, scheme, why)
                if out_of_memory and self._prepared:
                    break  # the next one would not be what the profile says by now
            else:
                return own
        if not (tensors.edits or (out_of_memory and self._prepared)):
            return None
        why = f"the scheme {scheme} can't be computed with this model: {why}"
        if out_of_memory:
            self._forget()  # so that there may be more of it the next time
        else:
            self.facts["without"][scheme] = why
        raise EngineError(why)

    @torch.inference_mode()
    def _check(self, own: forwards.OwnForward, scheme: str) -> None:
        """Raise `RuntimeError` if it gives other values than vLLM's does, or edits nothing.

        The shape is that of most rounds whatever the tile: kernels are chosen for it.
        """
        tile = min(TILES[0], self._tiles.size, self._max_tokens)
        usual = USUAL_LEN if self.device.type == "cuda" else 8  # a CPU would take seconds
        seq_len = min(usual, self.facts["max_model_len"], self._max_tokens // tile)
        shape = torch.Size((tile, seq_len, self._hidden_size))
        inputs = torch.randn(shape, dtype=self.dtype, device=self.device)
        tensors, began = self._tiles.tensors(scheme), time.perf_counter()
        tensors.leave()
        whole = self._hidden_states(None, shape)(inputs.clone())
        apart = _difference(self._hidden_states(own, shape)(inputs.clone()), whole)
        if not apart < _SAME:  # nor NaN
            raise RuntimeError(f"hidden states are other ones than vLLM's, by {apart:.1%}")
        if tensors.edits:
            tensors.enter(Job(NO_BLOCK, "", (), seq_len))
            apart = _difference(self._hidden_states(own, shape)(inputs.clone()), whole)
            if not apart > _SAME:
                raise RuntimeError(f"edited layers change nothing: {apart:.1%}")
        log.info("a forward for %s is ready (after %.0f s)", scheme, time.perf_counter() - began)

    def time(self, tile: int, seq_len: int, count: int, scheme: str) -> float:
        """Seconds of `count` forwards of `tile` sequences in a row, recorded if they can be."""
        try:
            return self._time(tile, seq_len, count, scheme)
        except Exception as error:
            self._forget()
            self._end_if_lost(error)
            raise

    @torch.inference_mode()
    def _time(self, tile: int, seq_len: int, count: int, scheme: str) -> float:
        shape = tile, seq_len, self._hidden_size
        # Random, as in a round: what a GPU draws, and so its clock, depends on the numbers.
        inputs = torch.randn(shape, dtype=self.dtype, device=self.device)
        forward = self.forward(scheme)
        self._tiles.tensors(scheme).enter(Job(NO_BLOCK, "", (), seq_len))
        if forward.recorded != inputs.shape:
            self._forget()
            for _ in range(FIRST_AFTER):
                forward(inputs.clone())
        recorded = forward.recorded is not None
        launched = _Launched(self.device)
        for _ in range(count):
            forward(inputs if recorded else inputs.clone())  # a recording copies them itself
        launched.close(None)
        return launched.result()[1]

    def launch(self, handle: int, job: Job) -> bool:
        """Queue a job, all of it or nothing; whether the device still computes."""
        launched = _Launched(self.device)
        # The ranks of a group must do the same: one that halves alone waits for ever.
        may_halve = self._alone and not job.whole_tiles
        compute = self._compute_or_halve if may_halve else self._compute
        try:
            launched.close(self._tiles.launch(job, compute))
        except Exception as error:
            if job.scheme not in self.facts["without"]:  # which all ranks find out alike
                self._end_if_lost(error)
            raise
        self._launched[handle] = job, launched
        return launched.running

    def collect(self, handle: int) -> tuple[list[Proof | None], float]:
        """Wait for a job: its proofs, empty on a rank without logits, and its device seconds."""
        job, launched = self._launched.pop(handle)
        try:
            rows, seconds = launched.result()
            return self._tiles.proofs(rows, job), seconds
        except Exception as error:
            self._end_if_lost(error)
            raise

    def _compute(self, job: Job, nonces: Sequence[int], size: int) -> Tensor | None:
        """The rows of one tile."""
        return self._tiles.rows(job, nonces, self.forward(job.scheme), size)

    def _compute_or_halve(self, job: Job, nonces: Sequence[int], size: int) -> Tensor | None:
        """The rows of one tile; when memory runs out in it, of its halves."""
        try:
            return self._compute(job, nonces, size)
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise
            reason = str(error).partition("\n")[0]
        # Out here, since the exception's traceback would keep the failed tile's tensors alive.
        half = -(-size // 2)
        log.error(
            "out of memory with %d sequences in one forward (%s): going on with %d. "
            "Their last bits may differ; lower POC_TILE on every worker",
            size,
            reason,
            half,
        )
        self._tiles.forget()
        self._forget()
        plain = self.forward(job.scheme).plain
        return join([self._tiles.rows(job, part, plain, half) for part in cut(nonces, half)])

    def forward(self, scheme: str) -> Recorder:
        """The forward of a scheme, recorded once it may be. What it gives holds until the next."""
        if scheme not in self._forwards:
            # Here, and not at its first call: the check of a new one leaves another block in use
            # than that of the job it is called for.
            own = self._own(scheme)
            self._forwards[scheme] = Recorder(
                partial(self._forward_of, scheme, own), records=self._records, pool=self._pool
            )
        return self._forwards[scheme]

    def close(self) -> None:
        """Give its memory back as soon as nobody has it: its forwards point back at it."""
        self._forget()
        self._forwards.clear()

    def _forget(self) -> None:
        """Give the memory of what is recorded back."""
        for each in self._forwards.values():
            each.forget()

    def _forward_of(
        self, scheme: str, own: forwards.OwnForward | None, shape: torch.Size
    ) -> Forward:
        """The plain forward of a scheme for inputs of `shape` [tile, seq_len, hidden_size]."""
        hidden_states = self._hidden_states(own, shape)
        if self._tiles.tensors(scheme).edits:
            return hidden_states
        return lambda inputs: internals.logits_of(self._worker, hidden_states(inputs))

    def _hidden_states(
        self, own: forwards.OwnForward | None, shape: torch.Size
    ) -> Callable[[Tensor], Tensor]:
        """A forward of ours, or vLLM's, to hidden states after the norm, of the last positions."""
        metadata = [
            internals.prefill_metadata(group, shape[0], shape[1], self.device)
            for group in self._groups
        ]
        pages = set(self._scratch.values())

        def forward(inputs: Tensor) -> Tensor:
            # A kernel may read a last block to its end, and 0 * NaN is NaN: what an earlier tile
            # left there must not reach a healthy nonce.
            for each in pages:
                each.zero_()
            with self._apart():
                return internals.last_hidden(self._worker, inputs, self._groups, metadata, own)

        return forward

    def _apart(self) -> AbstractContextManager[None]:
        """The layers without their live pages."""
        if self._direct:
            return internals.swapped(self._layers, "impl", self._direct)
        return internals.swapped(self._layers, "kv_cache", self._scratch)

    def _end_if_lost(self, error: Exception) -> None:
        """End this process, which vLLM reports as a dead engine, if it can't go on as it is."""
        if self.device.type == "cuda":
            try:
                torch.cuda.synchronize(self.device)
            except Exception:
                log.critical("the GPU is lost to this process: %s", error, exc_info=error)
                os._exit(1)
        if not self._alone:
            log.critical("a rank failed, the others may wait for it: %s", error, exc_info=error)
            os._exit(1)


def _difference(found: Tensor, expected: Tensor) -> float:
    """How far values are from those expected, as a share of these."""
    difference = (found.float() - expected.float()).norm() / expected.float().norm()
    return float(difference)


#: Those of this process: what is compiled points at them.
_tensors_of = cache(tensors_of)


class _Launched:
    """Rows on their way to the host, and how long the device took."""

    def __init__(self, device: torch.device) -> None:
        self._rows: Tensor | None = None
        self._began, self._seconds = time.perf_counter(), 0.0
        self._events: tuple[Any, Any] | None = None
        if device.type == "cuda":
            event: Any = torch.cuda.Event  # without types
            self._events = event(enable_timing=True), event(enable_timing=True)
            self._events[0].record()

    def close(self, rows: Tensor | None) -> None:
        """Note that `rows` are all there is; their way to the host is queued behind them."""
        if self._events and rows is not None:
            pinned = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
            rows = pinned.copy_(rows, non_blocking=True)
        self._rows = rows
        if self._events:
            self._events[1].record()
        self._seconds = time.perf_counter() - self._began

    @property
    def running(self) -> bool:
        """Whether the device still computes."""
        return self._events is not None and not self._events[1].query()

    def result(self) -> tuple[Tensor | None, float]:
        """Wait; the rows on the host, and the seconds on the device."""
        if self._events:
            start, end = self._events
            end.synchronize()
            self._seconds = start.elapsed_time(end) / 1000
        return self._rows, self._seconds
