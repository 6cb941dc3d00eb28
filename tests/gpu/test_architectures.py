"""Kinds of models on a GPU: vLLM in bfloat16 against a plain forward of transformers.

Prints the table of docs/numerics.md: dense, experts, sliding windows.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import transformers
from sizes import SEQ_LEN, VOCAB_SIZE, job

from shared.settings import load_settings
from support import assert_gone
from worker import gpu_random
from worker.engines.vllm.engine import VllmEngine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(300),
]

NONCES = 512
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
#: Measured on an H200 (2026-11): sd 3.3e-5 to 4.5e-5 between vLLM and transformers, 2.1e-5 to
#: 3.3e-5 from vLLM to float32; distances spread by 4e-3.
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


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_distances_equal_transformers(
    architecture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What differs is noise, alike in size for all; a nonce's bits don't depend on its batch.

    Prints what was measured.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = transformers.AutoModelForCausalLM.from_config(CONFIGS[architecture]())
    made.to(torch.bfloat16).save_pretrained(tmp_path)
    del made

    engine = _engine(tmp_path)
    try:
        ours = engine.submit(job(*range(NONCES))).result()
        unequal = sum(
            a != ours[nonce]
            for batch in ([0], [32], range(7), range(26, 33), range(33), range(32, 64))
            for nonce, a in zip(batch, engine.submit(job(*batch)).result(), strict=True)
        )
        children = psutil.Process().children(recursive=True)
    finally:
        engine.close()
    assert_gone(children)
    exact, theirs = (_reference(tmp_path, dtype) for dtype in (torch.float32, torch.bfloat16))
    spread = statistics.pstdev(exact)
    with capsys.disabled():
        print(f"\n{architecture}: distances spread by {spread:.2g}, {unequal} felt their batch")
        for name, left, right in (
            ("vLLM against transformers, both bfloat16", ours, theirs),
            ("vLLM against float32", ours, exact),
            ("transformers against float32", theirs, exact),
        ):
            deltas = [a - b for a, b in zip(left, right, strict=True)]
            noise, largest = statistics.pstdev(deltas), max(map(abs, deltas))
            print(f"  {name:42} sd {noise:.2g}, largest {largest:.2g}")
            assert noise < 0.1 * spread
    assert unequal == 0


def _engine(model: Path) -> VllmEngine:
    options = json.dumps({"enable_prefix_caching": False})
    return VllmEngine(
        load_settings(
            {},
            engine="vllm",
            model=str(model),
            max_model_len=1024,
            gpu_memory_utilization=0.3,
            vllm_options=options,
        )
    )


@torch.inference_mode()
def _reference(model: Path, dtype: torch.dtype) -> list[float]:
    """Not through the engine, which refuses mixtures of experts."""
    plain = transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=dtype, attn_implementation="eager", device_map="cuda"
    )
    size, width = plain.config.vocab_size, plain.config.hidden_size
    target = gpu_random.generate_target("b", size, "cuda")
    distances: list[float] = []
    for start in range(0, NONCES, 32):
        nonces = range(start, start + 32)
        inputs = gpu_random.generate_inputs("b", "k", nonces, width, SEQ_LEN, "cuda", dtype)
        logits = plain(inputs_embeds=inputs, logits_to_keep=1).logits[:, -1]
        permutations = gpu_random.generate_permutations("b", "k", nonces, size, "cuda")
        distances += gpu_random.compute_distances(logits, permutations, target).tolist()
    return distances
