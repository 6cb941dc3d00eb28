"""What the tests of a GPU compute: small, but of sizes that its kernels are made for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import driver
import transformers
from driver import Driver

from shared.schemes import Proof
from shared.schemes.artifact import ArtifactTerms

VOCAB_SIZE, SEQ_LEN = 32_000, 256
#: A quarter of the sequence.
SLIDING_WINDOW = 64
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "gemma3_text": lambda: transformers.Gemma3TextConfig(
        **SIZES,
        sliding_window=SLIDING_WINDOW,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
    ),
    "mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=SLIDING_WINDOW),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **SIZES, num_experts=32, num_experts_per_tok=4, moe_intermediate_size=768
    ),
}

job = partial(driver.job, seq_len=SEQ_LEN)

ARTIFACT: dict[str, Any] = {
    "scheme": ArtifactTerms.name,
    "parameters": ArtifactTerms().parameters,
}


def l2(one: Sequence[Proof], other: Sequence[Proof]) -> list[float]:
    """How far vectors are apart; those of two blocks are 1.4."""
    return [ArtifactTerms().apart(a, b) for a, b in zip(one, other, strict=True)]


def check_batches(driver: Driver, expected: Sequence[Proof], **changes: Any) -> None:
    """A nonce has the same bits alone and beside 6, 31 or 32 others: those of `expected`."""
    for batch in ([0], [32], range(7), range(26, 33), range(32)):
        alone = driver.engine.submit(job(*batch, **changes)).result()
        assert alone == [expected[nonce] for nonce in batch]
