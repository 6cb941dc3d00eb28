"""The vectorised generator and distance against the published ones, nonce by nonce, on a device.

    python benchmarks/generator.py --vocab-size 151936
    python benchmarks/generator.py --device cuda

Each part of a nonce but its forward: inputs, permutation, distance. Both sides take turns, and the
ratio is the median over turns side by side. On a GPU ours are the kernels that rounds use, and the
time that they alone take is shown as well. Prints a table, and JSON last.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from worker.tools import script
from worker.tools.bench.turns import interleave
from worker.tools.extras import require_gpu


@dataclass(frozen=True, slots=True)
class Part:
    """Something that is computed for `nonces` at a time."""

    name: str
    nonces: int
    compute: Callable[[], Any]
    device: Any

    def turn(self, seconds: float) -> tuple[float, float]:
        """Nonces and seconds."""
        from worker.engines.clock import keep_busy

        count, spent = keep_busy(self.compute, seconds, self.device)
        return count * self.nonces, spent


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocab-size", type=script.size, default=151_936)
    parser.add_argument("--hidden-size", type=script.size, default=1024)
    parser.add_argument("--seq-len", type=script.size, default=256)
    parser.add_argument("--nonces", type=script.size, default=8, help="in a tile")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seconds", type=script.seconds, default=1.0, help="of a turn")
    parser.add_argument("--rounds", type=script.size, default=5)
    options = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    on_gpu = options.device == "cuda"
    if on_gpu:
        require_gpu(f"--device {options.device}")
    for name, (ours, published) in _parts(options).items():
        turns = interleave([ours, published], options.seconds, options.rounds)
        mine, theirs = turns[ours.name], turns[published.name]
        figures[name] = {
            "ours": round(mine.median, 2),
            "published": round(theirs.median, 2),
            "ratio": round(mine.over(theirs), 2),
        }
        if on_gpu:
            figures[name]["kernels_ms"] = round(_kernels_ms(ours.compute), 4)
    more = f" {'ms of our kernels':>18}" if on_gpu else ""
    print(f"{'nonces per second':20} {'ours':>10} {'published':>10} {'ratio':>7}{more}")
    for name, each in figures.items():
        more = f" {each['kernels_ms']:18.3f}" if on_gpu else ""
        rates = f"{each['ours']:10,.1f} {each['published']:10,.1f} {each['ratio']:7.2f}"
        print(f"{name:20} {rates}{more}")
    print(json.dumps(vars(options) | figures))


def _kernels_ms(compute: Callable[[], Any], times: int = 20) -> float:
    """Milliseconds that the GPU's kernels take for one tile, whatever its host takes."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    compute()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(times):
            compute()
        torch.cuda.synchronize()
    return sum(each.self_device_time_total for each in seen.key_averages()) / times / 1000


def _parts(options: argparse.Namespace) -> dict[str, tuple[Part, Part]]:
    """Of each part: ours and the published one."""
    import torch

    from worker.schemes.generator import generator_for
    from worker.tools.bench.published import Published, distances

    device, count = torch.device(options.device), options.nonces
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    given = "bench", "bench", range(count)
    sizes = options.hidden_size, options.seq_len
    ours: Any = generator_for(device)
    published = Published(
        options.hidden_size, options.vocab_size, device, dtype, lambda inputs: inputs
    )
    logits = torch.randn(count, options.vocab_size, device=device, dtype=dtype)
    target = published.target("bench")
    made = ours.generate_permutations(*given, options.vocab_size, device)
    plain = published.permutations(*given)

    def inputs() -> Any:
        return ours.generate_inputs(*given, *sizes, device, dtype)

    def permutations() -> Any:
        return ours.generate_permutations(*given, options.vocab_size, device)

    def ours_whole() -> Any:
        inputs()
        return ours.compute_distances(logits, permutations(), target).tolist()

    def published_whole() -> Any:
        published.inputs(*given, options.seq_len)
        return distances(logits, published.permutations(*given), target).tolist()

    both = {
        "inputs": (inputs, lambda: published.inputs(*given, options.seq_len)),
        "permutation": (permutations, lambda: published.permutations(*given)),
        "distance": (
            lambda: ours.compute_distances(logits, made, target),
            lambda: distances(logits, plain, target),
        ),
        "all but the forward": (ours_whole, published_whole),
    }
    return {
        name: (
            Part("ours", count, mine, device),
            Part("published", count, theirs, device),
        )
        for name, (mine, theirs) in both.items()
    }


if __name__ == "__main__":
    script.run(main)
