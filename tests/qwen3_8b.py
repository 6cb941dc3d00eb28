"""The sizes of Qwen3-8B, for what looks at a model's configuration alone."""

from __future__ import annotations

from types import SimpleNamespace

CONFIG = SimpleNamespace(
    num_key_value_heads=8,
    num_attention_heads=32,
    head_dim=128,
    hidden_size=4096,
    intermediate_size=12_288,
    num_hidden_layers=36,
    vocab_size=151_936,
    max_position_embeddings=40_960,
)
