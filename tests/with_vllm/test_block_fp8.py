"""What vLLM makes of the checkpoints in float8 that benchmarks/block_fp8.py writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from benchmarks.block_fp8 import write

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def written(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts."""
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint("qwen3_moe"))
    directory = tmp_path_factory.mktemp("float8")
    write(model.state_dict(), model.config, directory)
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
    from vllm.model_executor.models.qwen3_moe import Qwen3MoeForCausalLM

    fields = json.loads((written / "config.json").read_text())["quantization_config"]
    whole = Fp8Config.from_config(fields).ignored_layers
    skipped = is_layer_skipped(layer, whole, Qwen3MoeForCausalLM.packed_modules_mapping)
    assert skipped is not is_quantized
