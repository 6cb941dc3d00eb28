"""What vLLM makes of the checkpoints in float8 that benchmarks/block_fp8.py writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from benchmarks.block_fp8 import write

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

#: How vLLM names the products that it joins.
JOINED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts of two layers."""
    config = transformers.Qwen3MoeConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=256,
        moe_intermediate_size=128,
        num_experts=4,
        num_experts_per_tok=2,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
    )
    with torch.random.fork_rng(devices=[]):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    directory = tmp_path_factory.mktemp("float8")
    write(model.state_dict(), config, directory)
    return directory


@pytest.mark.parametrize(
    ("layer", "is_quantized"),
    [
        ("model.layers.1.self_attn.qkv_proj", True),
        ("model.layers.1.self_attn.o_proj", True),
        ("model.layers.1.mlp.experts", True),
        ("model.layers.1.mlp.gate", False),
        ("lm_head", False),
    ],
)
def test_it_takes_as_quantized_what_is(written: Path, layer: str, is_quantized: bool) -> None:
    """A router that it took as quantized would choose experts by a scale that there is not."""
    from vllm.model_executor.layers.quantization.fp8 import Fp8Config
    from vllm.model_executor.layers.quantization.utils.quant_utils import is_layer_skipped

    fields = json.loads((written / "config.json").read_text())["quantization_config"]
    skipped = is_layer_skipped(layer, Fp8Config.from_config(fields).ignored_layers, JOINED)
    assert skipped is not is_quantized
