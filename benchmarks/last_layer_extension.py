"""What last_layer.py adds to vLLM's process, which alone imports this: it needs vLLM."""

from __future__ import annotations

import time
from typing import Any

import torch

from worker.engines.vllm import forwards
from worker.engines.vllm.extension import PoCWorkerExtension
from worker.engines.vllm.rank import Rank
from worker.job import Job
from worker.tools.bench.turns import in_turn


class LastLayerExtension(PoCWorkerExtension):
    """The extension, with several forwards side by side."""

    def poc_first(self, tile: int) -> float:
        """Seconds until our forward with the same layers has computed `tile` sequences.

        As long as the pruned one takes, which is compiled when the engine starts.
        """
        if self.poc_rank.model.facts["last_layer"] != "pruned":
            raise RuntimeError("the last layer is not pruned; the log says why")
        self.poc_tokens = self.poc_rank.model.max_tokens
        vars(self).pop("poc_rank").close()  # its memory
        self.poc_ours = {
            "ours": forwards.whole(self, _unedited),
            "pruned": forwards.pruned(self, _unedited),
            "fused": forwards.fused(self, _unedited),
        }
        began = time.perf_counter()
        rank = self._rank_of("ours", tile)
        rank.time(tile, 256, 1, "distance")
        seconds = time.perf_counter() - began
        rank.close()
        return seconds

    def poc_turns(
        self, tile: int, seq_len: int, rounds: int, seconds: float, nonces: int
    ) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """Seconds of a forward in each turn, and distances, by the forward's name."""
        named = ["vllm", *(name for name, own in self.poc_ours.items() if own)]
        ranks = {name: self._rank_of(name, tile) for name in named}
        counts = {
            name: max(1, int(seconds / (rank.time(tile, seq_len, 5, "distance") / 5)))
            for name, rank in ranks.items()
        }
        turns: dict[str, list[float]] = {name: [] for name in ranks}
        for turn in range(rounds):
            for name in in_turn(named, turn):
                spent = ranks[name].time(tile, seq_len, counts[name], "distance")
                turns[name].append(spent / counts[name])
        job = Job("last layer", "node", tuple(range(nonces)), seq_len)
        distances = {}
        for name, rank in ranks.items():
            rank.launch(0, job)
            distances[name] = rank.collect(0)[0]
        for rank in ranks.values():
            rank.close()  # what their recordings hold, before another tile's
        return turns, distances

    def _rank_of(self, name: str, tile: int) -> Any:
        rank = Rank(self, tile, self.poc_tokens, prunes=False)
        rank.model._own = lambda scheme: self.poc_ours.get(name)
        torch.cuda.synchronize()
        return rank


def _unedited(_: int, layer: Any) -> Any:
    return layer
