"""The first half of an MLP: one kernel, beside the product and its activation one after the other.

    python benchmarks/gated.py --hidden-size 4096 --intermediate-size 12288

The activation is a kernel that torch compiles, as vLLM has it. The product alone is what one kernel
can hope for. Each is a CUDA graph. All take turns, and a ratio is the median over turns side by
side. Prints a table, and JSON last.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from shared.errors import ConfigError
from worker.engines.clock import keep_busy
from worker.engines.vllm.gated import fits, gated
from worker.tools import script
from worker.tools.bench.turns import interleave
from worker.tools.extras import require_gpu


@dataclass(frozen=True, slots=True)
class Way:
    """One way to compute it, recorded."""

    name: str
    graph: Any

    def turn(self, seconds: float) -> tuple[float, float]:
        """Times and seconds."""
        return keep_busy(self.graph.replay, seconds, torch.device("cuda"))


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden-size", type=script.size, default=1024)
    parser.add_argument("--intermediate-size", type=script.size, default=3072)
    parser.add_argument("--tokens", type=script.size, default=32_768, help="in one forward")
    parser.add_argument("--seconds", type=script.seconds, default=0.3, help="of a turn")
    parser.add_argument("--rounds", type=script.size, default=6)
    options = parser.parse_args()
    require_gpu("the kernel")
    made = torch.Generator("cuda").manual_seed(0)
    values, weight = (
        torch.randn(rows, options.hidden_size, generator=made, device="cuda").bfloat16()
        / options.hidden_size**0.5
        for rows in (options.tokens, 2 * options.intermediate_size)
    )
    if not fits(weight):
        raise ConfigError("the kernel is for Hopper, and for sizes that its blocks divide")
    activated = torch.compile(_activated, dynamic=False)
    ways = [
        Way("product, activation", _recorded(lambda: activated(linear(values, weight)))),
        Way("product alone", _recorded(lambda: linear(values, weight))),
        Way("one kernel", _recorded(lambda: gated(values, weight))),
    ]
    turns = interleave(ways, options.seconds, options.rounds)
    figures = {}
    print(f"{'':20} {'ms':>8} {'of product, activation':>24}")
    for way in ways:
        share = 1 / turns[way.name].over(turns[ways[0].name])
        figures[way.name] = {"ms": 1000 / turns[way.name].median, "share": share}
        print(f"{way.name:20} {figures[way.name]['ms']:8.3f} {share:24.3f}")
    print(json.dumps(vars(options) | figures))


def _recorded(compute: Callable[[], Tensor]) -> Any:
    for _ in range(3):  # what is compiled at the first call
        compute()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        compute()
    return graph


def _activated(both: Tensor) -> Tensor:
    gate, up = both.chunk(2, dim=-1)
    return silu(gate.float()).to(gate.dtype) * up


if __name__ == "__main__":
    script.run(main)
