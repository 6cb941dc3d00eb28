"""What `poc bench` adds to vLLM's process: the published algorithm around our forward.

vLLM's process alone imports this.
"""

from __future__ import annotations

from collections.abc import Sequence

from shared.schemes import DEFAULT
from worker.engines.base import tile_of
from worker.engines.tile import cut
from worker.engines.vllm.extension import PoCWorkerExtension
from worker.tools.bench.published import Published


class PublishedExtension(PoCWorkerExtension):
    """The extension, with an opponent beside it."""

    def poc_published(
        self, block_hash: str, public_key: str, nonces: Sequence[int], seq_len: int
    ) -> list[float]:
        """Distances of `nonces`, a tile at a time, by the published algorithm."""
        ours = self.poc_rank.model
        its = ours.deployed
        published = Published(
            its.hidden_size, its.vocab_size, its.device, its.dtype, ours.forward(DEFAULT)
        )
        target = published.target(block_hash)
        size = tile_of(ours.facts["tile"], ours.max_tokens, seq_len)
        return [
            distance
            for tile in cut(nonces, size)
            for distance in published.distances(block_hash, public_key, tile, seq_len, target)
        ]
