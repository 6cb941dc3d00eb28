"""What jobs need of a device, and the tiles that it has room for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwen3_8b import CONFIG
from shared.errors import EngineError
from shared.settings import load_settings
from worker.engines.vllm.installed import Device
from worker.engines.vllm.memory import reserve_bytes, tiles_of
from worker.engines.vllm.options import check_options


def test_what_jobs_need_of_a_gpu() -> None:
    """For Qwen3-8B about 2 GiB a GPU, and less where two share the heads."""
    one, two = (
        reserve_bytes(CONFIG, tile=32, tokens=8192, ranks=ranks, width=2) for ranks in (1, 2)
    )
    assert 1 << 30 < two < one < 5 << 29


class TestTiles:
    """Which tiles there are to choose from."""

    def tiles(self, *, kind: str = "cuda", total: int = 80, weights: int = 16, **more: Any) -> Any:
        """Of a device with `total` GiB, for weights of so many."""
        settings = load_settings({}, engine="vllm", **more)
        options = check_options(settings)
        device = Device(kind, total << 30, 2)
        return tiles_of(settings, options, CONFIG, device, weights << 30)

    def test_all_that_the_memory_has_room_for(self) -> None:
        """Fewer beside large weights or a long sequence's pages; 32 in any case."""
        assert self.tiles() == (32, 64, 128, 256)
        assert self.tiles(weights=40) == (32, 64, 128)
        assert self.tiles(weights=40, tensor_parallel=4) == (32, 64, 128, 256)
        assert self.tiles(max_model_len=262_144) == (32, 64, 128)
        assert self.tiles(total=16, weights=15) == (32,)

    def test_what_the_operators_options_allow(self) -> None:
        """A budget of vLLM's is theirs."""
        assert self.tiles(vllm_options='{"max_num_seqs": 100}') == (32, 64)
        assert self.tiles(vllm_options='{"max_num_batched_tokens": 16384}') == (32, 64)
        assert self.tiles(vllm_options='{"max_num_seqs": 8}') == (8,)
        assert self.tiles(vllm_options='{"max_num_seqs": 8}', serve_port=8000) == (8,)

    def test_requests_wait_for_no_large_tile(self) -> None:
        """Each of their tokens takes as long as one."""
        assert self.tiles(serve_port=8000) == (32,)

    def test_a_cpu_has_one(self) -> None:
        """There is nothing to gain."""
        assert self.tiles(kind="cpu") == (8,)

    def test_one_that_is_pinned(self) -> None:
        """It is measured against none."""
        assert self.tiles(tile="48") == (48,)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"max_num_seqs": 63}, "max_num_seqs=63 in POC_VLLM_OPTIONS; set that to 64 or more"),
            (
                {"max_num_batched_tokens": 8192},
                "max_num_batched_tokens=8192 in POC_VLLM_OPTIONS; set that to 16384 or more",
            ),
        ],
    )
    def test_one_that_is_capped_is_refused(self, options: dict[str, int], says: str) -> None:
        """In silence it would change nothing."""
        with pytest.raises(EngineError, match=f"POC_TILE=64: capped by {says}"):
            self.tiles(tile="64", vllm_options=json.dumps(options))
