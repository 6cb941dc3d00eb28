"""The deployed model on one rank: its forward for each scheme, beside the requests it serves.

    vLLM's own          what it compiled for requests
    one of ours         `forwards`: edited layers, a pruned last one, fused MLPs

Either works without the live pages: keys and values are read as they are computed, or by way of
scratch pages.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from shared.errors import EngineError
from worker import schemes
from worker.engines import checkpoint
from worker.engines.checkpoint import first_line
from worker.engines.tensors import check_float8
from worker.engines.tensors import read as read_headers
from worker.engines.tile import Forward
from worker.engines.vllm import forwards, internals
from worker.engines.vllm.memory import TILES, USUAL_LEN
from worker.engines.vllm.recording import Recorder
from worker.job import NO_BLOCK, Job
from worker.schemes import Deployed, Tensors

log = logging.getLogger("vllm.poc")  # vLLM shows what is below its own name

#: Attention backends whose forwards may be recorded: their metadata is flat, so that it can be kept
#: as it was built. FlashInfer's has a plan of its builder in it, which later builds change.
_RECORDABLE = frozenset({"FLASH_ATTN"})

#: How far hidden states of a forward of our own may be from those of vLLM's, as a share of these.
#: In bfloat16 two honest forwards differ by 1 to 2%; edited layers give entirely other ones.
_SAME = 0.1

#: Those of this process: what is compiled points at them.
_tensors_of = cache(schemes.tensors_of)


class Model:
    """The deployed model, for tiles of at most `tile` sequences and `max_tokens` positions."""

    def __init__(self, worker: Any, tile: int, max_tokens: int, *, prunes: bool) -> None:
        self._worker, self._tile = worker, tile
        facts, device = internals.facts(worker), internals.device_of(worker)
        if layers := internals.float8_layers(worker):
            directory = internals.directory_of(worker)
            check_float8(directory, read_headers(checkpoint.weight_files(directory)), layers)
        #: Positions of a tile: those asked for, or as many as vLLM has room for.
        self.max_tokens: int = min(facts["max_tokens"], max_tokens)
        self.deployed = Deployed(
            layers=facts["layers"],
            hidden_size=facts["hidden_size"],
            vocab_size=facts["vocab_size"],
            device=device,
            dtype=getattr(torch, facts["dtype"]),
        )
        #: Whether this rank has no others.
        self.alone: bool = facts["tensor_parallel"] == 1
        self._records = (
            device.type == "cuda"
            and facts["compiled"]
            and facts["attention"] in _RECORDABLE
            # Ranks would record their exchange as well, which vLLM has ways of its own for.
            and self.alone
        )
        # What is recorded for one scheme is never replayed beside that of another.
        self._pool = cache(torch.cuda.graph_pool_handle)
        self._forwards: dict[str, Recorder] = {}
        # More than enough: a block has at least one token.
        most_blocks = min(facts["max_model_len"], self.max_tokens)
        self._layers = internals.kv_layers(worker)
        self._groups = internals.kv_groups(worker, block_table_width=most_blocks)
        self._direct = internals.direct_attention(self._layers)
        self._scratch = {} if self._direct else self._allocate()
        self._prepared = False
        self._prunes = (
            prunes and self.alone and facts["compiled"] and facts["quantization"] == "none"
        )
        #: The schemes that can't be computed, and why, as far as is known: a first job may tell.
        self.without = schemes.refused(internals.model_of(worker), self.tensors)
        #: What is known of it.
        self.facts = facts | {
            **forwards.WHOLE,
            "tile": tile,
            "max_tokens": self.max_tokens,
            "without": self.without,
            "keys_and_values": "direct" if self._direct else "pages",
            "scratch_bytes": sum(
                pages.untyped_storage().nbytes() for pages in set(self._scratch.values())
            ),
        }

    def tensors(self, scheme: str) -> Tensors:
        """Those of a scheme. Raises `EngineError` for an unknown one."""
        return _tensors_of(scheme, self.deployed)

    def prepare(self, scheme: str) -> dict[str, Any]:
        """Compile the forward of a scheme; the facts, with what came of it."""
        own = self._own(scheme)
        self.facts |= forwards.WHOLE if own is None else own.facts
        self._prepared = True
        return self.facts

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
        self.forget()
        self._forwards.clear()

    def forget(self) -> None:
        """Give the memory of what is recorded back."""
        for each in self._forwards.values():
            each.forget()

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
            blocks = 1 + self.max_tokens // group.block_size + self._tile
            live_blocks = internals.live_blocks(self._worker, group)
            for name in group.layers:
                live = self._layers[name].kv_cache
                looks = (live.dtype, live.shape, live.stride(), live_blocks)
                if looks not in shared:
                    shared[looks] = internals.scratch_like(live, live_blocks, blocks)
                scratch[name] = shared[looks]
        return scratch

    def _own(self, scheme: str) -> forwards.OwnForward | None:
        """The forward of ours that a scheme has; None if it takes vLLM's.

        Made once in a process. Raises `EngineError` if it must have one, and there is none; from
        then on at once, unless it was memory that was missing. For want of memory a lesser one is
        taken by `prepare` alone, whose facts the profile has.
        """
        if scheme in self.without:
            raise EngineError(self.without[scheme])
        tensors, known = self.tensors(scheme), vars(self._worker).setdefault("poc_own", {})
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
            self.forget()  # so that there may be more of it the next time
        else:
            self.without[scheme] = why
        raise EngineError(why)

    @torch.inference_mode()
    def _check(self, own: forwards.OwnForward, scheme: str) -> None:
        """Raise `RuntimeError` if it gives other values than vLLM's does, or edits nothing.

        The shape is that of most rounds whatever the tile: kernels are chosen for it.
        """
        tile = min(TILES[0], self._tile, self.max_tokens)
        usual = USUAL_LEN if self.deployed.device.type == "cuda" else 8  # a CPU would take seconds
        seq_len = min(usual, self.facts["max_model_len"], self.max_tokens // tile)
        shape = torch.Size((tile, seq_len, self.deployed.hidden_size))
        inputs = torch.randn(shape, dtype=self.deployed.dtype, device=self.deployed.device)
        tensors, began = self.tensors(scheme), time.perf_counter()
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

    def _forward_of(
        self, scheme: str, own: forwards.OwnForward | None, shape: torch.Size
    ) -> Forward:
        """The plain forward of a scheme for inputs of `shape` [tile, seq_len, hidden_size]."""
        hidden_states = self._hidden_states(own, shape)
        if self.tensors(scheme).edits:
            return hidden_states
        return lambda inputs: internals.logits_of(self._worker, hidden_states(inputs))

    def _hidden_states(
        self, own: forwards.OwnForward | None, shape: torch.Size
    ) -> Callable[[Tensor], Tensor]:
        """A forward of ours, or vLLM's, to hidden states after the norm, of the last positions."""
        metadata = [
            internals.prefill_metadata(group, shape[0], shape[1], self.deployed.device)
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


def _difference(found: Tensor, expected: Tensor) -> float:
    """How far values are from those expected, as a share of these."""
    difference = (found.float() - expected.float()).norm() / expected.float().norm()
    return float(difference)
