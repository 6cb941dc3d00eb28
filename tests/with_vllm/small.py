"""Tiny models of every architecture that vLLM is allowed, and settings for a small engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers

from shared.settings import Settings, load_settings

#: Longer than a block, so that a sequence's second block counts, and than the sliding window.
SEQ_LEN = 40
SLIDING_WINDOW = 9

SIZES: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
#: vLLM's attention on a CPU knows heads from 32 on.
HEADS: dict[str, Any] = {"head_dim": 32}
CONFIGS: dict[str, Callable[[], Any]] = {
    "gemma2": lambda: transformers.Gemma2Config(
        **SIZES, **HEADS, sliding_window=SLIDING_WINDOW, final_logit_softcapping=0.5
    ),
    "gemma3_text": lambda: transformers.Gemma3TextConfig(
        **SIZES,
        **HEADS,
        sliding_window=SLIDING_WINDOW,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "llama": lambda: transformers.LlamaConfig(**SIZES, **HEADS),
    "mistral": lambda: transformers.MistralConfig(**SIZES, **HEADS, sliding_window=SLIDING_WINDOW),
    "phi3": lambda: transformers.Phi3Config(**SIZES | {"hidden_size": 128}),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES | {"hidden_size": 128}),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, **HEADS),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **SIZES, **HEADS, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=64
    ),
}

#: A pool of few blocks, so that whatever writes into live ones hits a request's.
OPTIONS: dict[str, Any] = {
    "block_size": 32,
    "enable_prefix_caching": False,
    "enforce_eager": True,
    "num_gpu_blocks_override": 24,
}


def settings_of(model: Path | str, options: dict[str, Any] | None = None, **more: Any) -> Settings:
    """Settings of a small vLLM on the CPU."""
    given = {"tile": 4, "max_model_len": 128, "vllm_options": json.dumps(OPTIONS | (options or {}))}
    return load_settings({}, engine="vllm", model=str(model), **given | more)
