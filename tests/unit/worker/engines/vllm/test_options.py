"""What vLLM is started with, as far as that can be told without one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from worker.engines.vllm import options
from worker.engines.vllm.options import check_version, reserve_bytes


@pytest.mark.parametrize("version", ["0.26.0", "0.32.0+cpu", "0.33.1"])
def test_supported_versions(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "installed", lambda: ("vllm", version))
    assert check_version() == version


def test_what_jobs_need_of_a_gpu() -> None:
    """For Qwen3-8B about 2 GiB a GPU, and less where two share the heads."""
    config = SimpleNamespace(
        num_key_value_heads=8,
        num_attention_heads=32,
        head_dim=128,
        hidden_size=4096,
        intermediate_size=12_288,
        vocab_size=151_936,
    )
    one, two = (
        reserve_bytes(config, tile=32, tokens=8192, ranks=ranks, width=2) for ranks in (1, 2)
    )
    assert 1 << 30 < two < one < 5 << 29
