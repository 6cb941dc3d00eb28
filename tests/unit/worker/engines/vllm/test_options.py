"""What vLLM is started with, and which of it is refused: without vLLM itself."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from shared.errors import EngineError
from shared.settings import load_settings
from worker.engines.vllm import options as module
from worker.engines.vllm.options import (
    DEFAULT_TOKENS,
    check_options,
    check_version,
    reserve_bytes,
)


@pytest.mark.parametrize("version", ["0.26.0", "0.32.0+cpu", "0.33.1"])
def test_supported_versions(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "installed", lambda: ("vllm", version))
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


def test_an_option_of_the_operators_stands_beside_our_defaults() -> None:
    settings = load_settings({}, engine="vllm", vllm_options='{"seed": 7}')
    assert check_options(settings) == {"max_num_batched_tokens": DEFAULT_TOKENS, "seed": 7}


@pytest.mark.parametrize("version", ["0.25.1", "0.34.0rc1", "1.0"])
def test_other_versions_are_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to install."""
    monkeypatch.setattr(module, "installed", lambda: ("vllm", version))
    with pytest.raises(EngineError, match=rf"vLLM {version} is not supported.*'\.\[vllm\]'"):
        check_version()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float32"}, "dtype is a setting; use POC_DTYPE"),
        ({"trust_remote_code": True}, "trust_remote_code can't be set; what can is .*block_size"),
        ({"max_num_batched_tokens": True}, "max_num_batched_tokens is no number of 1 or more"),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens is no number of 1 or more"),
    ],
)
def test_options_that_are_not_the_operators(options: dict[str, Any], message: str) -> None:
    """Seen before vLLM is imported."""
    settings = load_settings({}, engine="vllm", vllm_options=json.dumps(options))
    with pytest.raises(EngineError, match=f"^POC_VLLM_OPTIONS: {message}"):
        check_options(settings)
