"""A worker extension that can be broken on purpose.

For vLLM's own processes alone, which find it on the path that pytest was given.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

import torch

from worker import cpu_random
from worker.engines.vllm import internals
from worker.tools.bench.published_extension import PublishedExtension

_REAL = {
    "generate_inputs": cpu_random.generate_inputs,
    "last_logits": internals.last_logits,
    "swapped": internals.swapped,
}


@contextlib.contextmanager
def _not_swapped(*_: Any) -> Iterator[None]:
    yield


class FaultyExtension(PublishedExtension):
    """The real one, with knobs."""

    def poc_mend(self) -> None:
        """As it was."""
        cpu_random.generate_inputs = _REAL["generate_inputs"]
        internals.last_logits = _REAL["last_logits"]
        internals.swapped = _REAL["swapped"]

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

        def last_logits(*_: Any) -> Any:
            raise ValueError(message)

        internals.last_logits = last_logits

    def poc_poison(self, row: int, value: float) -> None:
        """One logit of a row is `value`."""

        def last_logits(*args: Any) -> Any:
            logits = _REAL["last_logits"](*args)
            logits[row, 7] = value
            return logits

        internals.last_logits = last_logits

    def poc_dawdle(self, seconds: float) -> None:
        """Every forward takes that much longer."""

        def last_logits(*args: Any) -> Any:
            time.sleep(seconds)
            return _REAL["last_logits"](*args)

        internals.last_logits = last_logits

    def poc_write_live_pages(self) -> None:
        """Leave the scratch alone: what the forward writes hits the blocks of requests."""
        internals.swapped = _not_swapped

    def poc_poison_scratch(self) -> None:
        """As a nonce without finite numbers leaves it."""
        for pages in self.poc_device._scratch.values():
            pages.fill_(float("nan"))

    def poc_shapes(self) -> list[list[int]]:
        """Shapes of the inputs of all forwards from now on, up to the call after this one."""
        seen: list[list[int]] = getattr(self, "poc_seen", [])
        self.poc_seen: list[list[int]] = []

        def last_logits(worker: Any, inputs: Any, *args: Any) -> Any:
            self.poc_seen.append(list(inputs.shape))
            return _REAL["last_logits"](worker, inputs, *args)

        internals.last_logits = last_logits
        return seen

    def poc_kill(self) -> None:
        """This process ends at once."""
        os._exit(9)
