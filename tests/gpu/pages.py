"""An extension that looks at live KV pages and breaks a GPU, for vLLM's own process."""

from __future__ import annotations

from typing import Any

import torch
from faulty_extension import FaultyExtension

from worker.engines.vllm import internals


class ComparingExtension(FaultyExtension):
    """The real one, with eyes on what must not change."""

    def poc_record(self, records: bool) -> bool:
        """Whether a forward was recorded; from now on forwards are, or are not."""
        forward = self.poc_rank.model.forward("distance")
        recorded = forward.recorded is not None
        forward.records = records
        if not records:
            forward.forget()
        return recorded

    def poc_direct(self, direct: bool) -> str:
        """Let attention read keys and values as they are computed, or from scratch pages."""
        model = self.poc_rank.model
        model._direct = internals.direct_attention(model._layers) if direct else None
        model._scratch = {} if direct else model._allocate()
        model.forget()
        return str(model.facts["keys_and_values"])

    def poc_write_live_pages(self) -> None:
        """Leave the scratch alone; what was recorded with it is forgotten."""
        super().poc_write_live_pages()
        self.poc_rank.model.forget()

    def poc_mend(self) -> None:
        """As it was."""
        super().poc_mend()
        self.poc_rank.model.forget()

    def poc_compare_pages(self, job: dict[str, Any]) -> tuple[list[float], bool, bool]:
        """Compute `job`: its distances, whether any live page is in use, whether any changed."""
        layers = self.poc_rank.model._layers.values()
        before = [layer.kv_cache.clone() for layer in layers]
        self.poc_launch(-1, job)
        distances, _ = self.poc_collect(-1)
        changed = any(
            not torch.equal(layer.kv_cache.view(torch.int16), copy.view(torch.int16))
            for layer, copy in zip(layers, before, strict=True)
        )
        return distances, any(bool(copy.any()) for copy in before), changed

    def poc_leave_memory(self, size: int) -> None:
        """Take all of the GPU's memory but `size` bytes; with a negative size, give it back."""
        self.poc_taken: Any = None
        torch.cuda.empty_cache()
        if size >= 0:
            free, _ = torch.cuda.mem_get_info()
            self.poc_taken = torch.empty(max(0, free - size), dtype=torch.uint8, device="cuda")

    def poc_free_memory(self, forget: bool) -> int:
        """Bytes of the GPU that are free; with `forget`, as before the first job."""
        if forget:
            self.poc_rank.model.forget()
            torch.cuda.empty_cache()
        torch.cuda.synchronize()
        return torch.cuda.mem_get_info()[0]

    def poc_lose_gpu(self) -> None:
        """A kernel reads out of bounds: every later call of CUDA in this process fails."""
        torch.zeros(4, device="cuda")[torch.tensor([9], device="cuda")]
