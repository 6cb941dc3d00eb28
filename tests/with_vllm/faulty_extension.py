"""A worker extension that can be broken on purpose.

For vLLM's own processes alone, which find it on the path that pytest was given.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
import weakref
from collections.abc import Iterator
from typing import Any

import torch

from worker import cpu_random
from worker.engines.vllm import forwards, internals
from worker.tools.bench.published_extension import PublishedExtension

# Tests make forwards anew more often than the compiler expects of one function.
torch._dynamo.config.recompile_limit = 64

_REAL = {
    "fused": forwards.fused,
    "generate_inputs": cpu_random.generate_inputs,
    "last_hidden": internals.last_hidden,
    "pruned": forwards.pruned,
    "swapped": internals.swapped,
    "whole": forwards.whole,
}


@contextlib.contextmanager
def _not_swapped(*_: Any) -> Iterator[None]:
    yield


def _badly(scale: float | None) -> Any:
    """What makes a pruned forward that gives other values, or raises."""

    def broken(worker: Any, edit: Any) -> Any:
        own = _REAL["pruned"](worker, edit)
        real = own._tail

        def tail(*args: Any) -> Any:
            if scale is None:
                raise ValueError("there is no compiler")
            return real(*args) * scale

        own._tail = tail
        own.facts = own.facts | {"mlp": "fused"}
        return own

    return broken


class FaultyExtension(PublishedExtension):
    """The real one, with knobs."""

    def poc_mend(self) -> None:
        """As it was."""
        cpu_random.generate_inputs = _REAL["generate_inputs"]
        internals.last_hidden = _REAL["last_hidden"]
        internals.swapped = _REAL["swapped"]
        forwards.fused = _REAL["fused"]
        forwards.pruned = _REAL["pruned"]
        forwards.whole = _REAL["whole"]
        self.poc_rank.model.without.clear()
        self.poc_forget_forwards()

    def poc_forget_forwards(self) -> None:
        """Those of schemes are made anew."""
        vars(self).pop("poc_own", None)
        self.poc_rank.model._forwards.clear()

    def poc_outlives(self) -> bool:
        """Whether the model is still there once another one is prepared in its place."""
        before = weakref.ref(self.poc_rank.model)
        gc.disable()
        try:
            self.poc_prepare(4, 8192)
            return before() is not None
        finally:
            gc.enable()

    def poc_run_out_of_memory(self, times: int) -> None:
        """The next `times` attempts to make inputs find no memory."""
        left = times

        def generate_inputs(*args: Any, **options: Any) -> Any:
            nonlocal left
            if left:
                left -= 1
                raise torch.OutOfMemoryError("tried to allocate 9 GiB")
            return _REAL["generate_inputs"](*args, **options)

        cpu_random.generate_inputs = generate_inputs

    def poc_fail(self, message: str) -> None:
        """Every forward raises."""

        def last_hidden(*_: Any) -> Any:
            raise ValueError(message)

        internals.last_hidden = last_hidden

    def poc_poison(self, row: int, value: float) -> None:
        """One number of a row's hidden state is `value`."""

        def last_hidden(*args: Any) -> Any:
            hidden = _REAL["last_hidden"](*args)
            hidden[row, 7] = value
            return hidden

        internals.last_hidden = last_hidden

    def poc_dawdle(self, seconds: float) -> None:
        """Every forward takes that much longer."""

        def last_hidden(*args: Any) -> Any:
            time.sleep(seconds)
            return _REAL["last_hidden"](*args)

        internals.last_hidden = last_hidden

    def poc_write_live_pages(self) -> None:
        """Leave the scratch alone: what the forward writes hits the blocks of requests."""
        internals.swapped = _not_swapped

    def poc_poison_scratch(self) -> None:
        """As a nonce without finite numbers leaves it."""
        for pages in self.poc_rank.model._scratch.values():
            pages.fill_(float("nan"))

    def poc_shapes(self) -> list[list[int]]:
        """Shapes of the inputs of all forwards from now on, up to the call after this one."""
        seen: list[list[int]] = getattr(self, "poc_seen", [])
        self.poc_seen: list[list[int]] = []

        def last_hidden(worker: Any, inputs: Any, *args: Any) -> Any:
            self.poc_seen.append(list(inputs.shape))
            return _REAL["last_hidden"](worker, inputs, *args)

        internals.last_hidden = last_hidden
        return seen

    def poc_prune_badly(self, scale: float | None) -> None:
        """From the next `poc_prepare` on the pruned forward gives other values; None: it raises."""
        forwards.pruned = _badly(scale)
        self.poc_forget_forwards()

    def poc_fuse_badly(self, scale: float | None) -> None:
        """The like of the forward with fused MLPs, which a CPU does not have."""
        forwards.fused = _badly(scale)
        self.poc_forget_forwards()

    def poc_make_nothing(self, kind: str, out_of_memory: bool) -> None:
        """No forward of a kind can be made: `pruned`, or `whole`, which has edited layers."""
        self.poc_made = 0

        def nothing(*_: Any) -> Any:
            self.poc_made += 1
            raise torch.OutOfMemoryError("9 GiB") if out_of_memory else ValueError("no layers")

        setattr(forwards, kind, nothing)
        self.poc_forget_forwards()

    def poc_tries(self) -> int:
        """How often one was tried to be made since."""
        return self.poc_made

    def poc_rows(self, behind: int) -> int:
        """Rows that the second half of the last layer computes for `behind` sequences."""
        pruned, seen = self.poc_rank.model._own("distance"), []
        second = pruned._tail

        def counted(attended: Any, residual: Any) -> Any:
            seen.append(len(attended))
            return second(attended, residual)

        pruned._tail = counted
        try:
            self.poc_time(behind, 8, 1)
        finally:
            pruned._tail = second
        return sum(seen[-1 - (behind - 1) // forwards.ROWS :])

    def poc_kill(self) -> None:
        """This process ends at once."""
        os._exit(9)
