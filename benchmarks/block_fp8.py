"""Checkpoints in float8, with a scale for each block of 128 x 128, as Qwen3 is published in it.

    python benchmarks/block_fp8.py --shape 8B --layers 8 DIR     # dense, as Qwen3-8B
    python benchmarks/block_fp8.py --shape experts DIR           # 8 layers of Qwen3-30B-A3B
    poc bench --gpu --model DIR

Random weights of the shape, made on the GPU, quantized as the published ones are: each product but
the head and the router, by the largest number of its block. The config names what is not quantized.
With `--plain DIR` the same weights are written in bfloat16 beside it, to compare with.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from worker.tools import script
from worker.tools.extras import require_gpu
from worker.tools.make_model import SHAPES

#: Rows and columns that share a scale, and the largest float8 (e4m3).
BLOCK, LARGEST = 128, 448.0


def main() -> None:
    """Read the command line, and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--shape", choices=[*SHAPES, "experts"], default="8B")
    parser.add_argument(
        "--layers", type=script.size, help="of the shape, if not all: they are alike"
    )
    parser.add_argument("--plain", type=Path, metavar="DIR", help="the same weights in bfloat16")
    options = parser.parse_args()
    require_gpu("a model to quantize")
    config = config_of(options.shape, options.layers)
    with torch.random.fork_rng(devices=[0]), torch.device("cuda"):
        torch.cuda.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if options.plain:
        model.save_pretrained(options.plain)
    write(model.state_dict(), config, options.directory)


def config_of(shape: str, layers: int | None = None) -> Any:
    """The config of a published shape, with so many layers; `experts` has 8 of its 48 else."""
    if shape == "experts":
        return transformers.Qwen3MoeConfig(
            vocab_size=151_936,
            hidden_size=2048,
            num_hidden_layers=layers or 8,
            num_attention_heads=32,
            num_key_value_heads=4,
            head_dim=128,
            num_experts=128,
            num_experts_per_tok=8,
            moe_intermediate_size=768,
            intermediate_size=6144,
            norm_topk_prob=True,
            max_position_embeddings=40_960,
            tie_word_embeddings=False,
        )
    sizes = SHAPES[shape]
    return transformers.Qwen3Config(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["hidden_size"],
        num_hidden_layers=layers or sizes["layers"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["kv_heads"],
        head_dim=sizes["head_dim"],
        intermediate_size=sizes["intermediate_size"],
        max_position_embeddings=sizes["max_seq_len"],
        tie_word_embeddings=False,
    )


def write(weights: dict[str, Tensor], config: Any, directory: Path) -> None:
    """A checkpoint of `weights`, its products quantized."""
    found: dict[str, Tensor] = {}
    left = []
    for name, weight in weights.items():
        for each, part in parts(name, weight):
            if each.endswith("proj.weight"):
                found[each], found[f"{each}_scale_inv"] = quantized(part)
            else:
                found[each] = part
                left.append(each.removesuffix(".weight"))
    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: each.contiguous().cpu() for name, each in found.items()},
              directory / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    config.architectures = [
        "Qwen3MoeForCausalLM" if config.model_type == "qwen3_moe" else "Qwen3ForCausalLM"
    ]
    config.dtype = torch.bfloat16
    fields = config.to_dict() | {
        "quantization_config": {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [BLOCK, BLOCK],
            "modules_to_not_convert": left,
        }
    }
    text = json.dumps(fields, default=lambda value: str(value).removeprefix("torch."))
    (directory / "config.json").write_text(text, encoding="utf-8")


def parts(name: str, weight: Tensor) -> list[tuple[str, Tensor]]:
    """Views of a weight by their published names: experts are stacked in newer transformers."""
    if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
        return [(name, weight)]
    stem, which = name.rsplit(".", 1)
    if which == "down_proj":
        return [(f"{stem}.{i}.down_proj.weight", each) for i, each in enumerate(weight)]
    return [
        (f"{stem}.{i}.{half}.weight", part)
        for i, each in enumerate(weight)
        for half, part in zip(("gate_proj", "up_proj"), each.chunk(2), strict=True)
    ]


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`weight` [rows, columns] in float8, and what to multiply each block with."""
    rows, columns = weight.shape
    height, width = -(-rows // BLOCK), -(-columns // BLOCK)
    padded = torch.zeros(height * BLOCK, width * BLOCK, device=weight.device)
    padded[:rows, :columns] = weight.float()
    blocks = padded.view(height, BLOCK, width, BLOCK)
    scales = blocks.abs().amax(dim=(1, 3)).clamp(min=1e-12) / LARGEST
    small = (blocks / scales[:, None, :, None]).view_as(padded)[:rows, :columns]
    return small.to(torch.float8_e4m3fn), scales


if __name__ == "__main__":
    script.run(main)
