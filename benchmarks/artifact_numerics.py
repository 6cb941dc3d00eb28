"""How far vectors of the scheme `artifact` lie apart: dtypes, tiles, other weights, other nonces.

    python benchmarks/artifact_numerics.py                     # the 0.6B shape, on a GPU
    python benchmarks/artifact_numerics.py --device cpu --nonces 64 --shape small

A random Qwen3 in bfloat16 by the transformers engine, against what a validator, or a cheat, may
have instead. For each: L2, and how many nonces lie above the thresholds that the network uses.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from shared.schemes import Proof
from shared.schemes.artifact import ArtifactTerms
from worker.children import vanishing_directory
from worker.engines.transformers_engine import TransformersEngine
from worker.job import Job
from worker.tools.make_model import SHAPES, make_model

#: A node's own default, and what the network asks for.
THRESHOLDS = (0.02, 0.2, 0.4, 0.75)
SMALL: dict[str, Any] = {"hidden_size": 256, "layers": 8, "heads": 4, "kv_heads": 2}
TERMS = ArtifactTerms()


def main() -> None:
    """Read the command line, compute, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=[*SHAPES, "small"], default="0.6B")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--nonces", type=int, default=512)
    parser.add_argument("--seq-len", type=int, default=256)
    options = parser.parse_args()
    shape = SMALL if options.shape == "small" else SHAPES[options.shape]
    with vanishing_directory("poc-artifact-numerics-") as directory:
        whole = made(directory / "whole", shape, options.device)
        half = made(directory / "half", shape | {"layers": shape["layers"] // 2}, options.device)
        ours = vectors(whole, options)
        print(f"{'against':28}    mean  largest  above {', '.join(map(str, THRESHOLDS))}")
        for name, theirs in {
            "the same in tiles of 8": vectors(whole, options, tile=8),
            "float32": vectors(whole, options, dtype="float32"),
            "float16": vectors(whole, options, dtype="float16"),
            "weights rounded to fp8": vectors(rounded(whole), options),
            "half of the layers": vectors(half, options),
            "other nonces": ours[1:] + ours[:1],
        }.items():
            show(name, ours, theirs)


def made(path: Path, shape: dict[str, Any], device: str) -> Path:
    """A random model in bfloat16."""
    return make_model(path, **(shape | {"dtype": "bfloat16"}), device=device)


def rounded(model: Path) -> Path:
    """The same model, its products' weights as they are in float8 with a scale for each."""
    other = model.with_name("rounded")
    other.mkdir()
    for file in model.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    for file in other.glob("*.safetensors"):
        weights = load_file(file)
        for name, weight in weights.items():
            if name.endswith("proj.weight"):
                scale = weight.float().abs().amax() / 448
                small = (weight.float() / scale).to(torch.float8_e4m3fn)
                weights[name] = (small.float() * scale).to(weight.dtype)
        save_file(weights, file, metadata={"format": "pt"})
    return other


def vectors(model: Path, options: argparse.Namespace, **settings: Any) -> list[Proof | None]:
    """Of the first nonces."""
    engine = TransformersEngine(str(model), device=options.device, **settings)
    try:
        job = Job(
            "numerics",
            "node",
            tuple(range(options.nonces)),
            options.seq_len,
            scheme=TERMS.name,
            parameters=TERMS.parameters,
        )
        return engine.submit(job).result()
    finally:
        engine.close()


def show(name: str, ours: Sequence[Proof | None], theirs: Sequence[Proof | None]) -> None:
    """One line."""
    pairs = zip(ours, theirs, strict=True)
    apart = [math.inf if a is None or b is None else TERMS.apart(a, b) for a, b in pairs]
    above = ", ".join(str(sum(each > limit for each in apart)) for limit in THRESHOLDS)
    print(f"{name:28} {statistics.mean(apart):7.4f}  {max(apart):7.4f}  {above} of {len(apart)}")


if __name__ == "__main__":
    main()
