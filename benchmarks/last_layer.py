"""What forwards of our own gain: forwards whole, pruned and fused, by turns on a GPU.

    python benchmarks/gpu_round.py --make DIR --shape 0.6B
    python benchmarks/last_layer.py --model DIR

All forwards are of one process and one model, each recorded: vLLM's own; ours as one graph of the
same layers; ours in pieces, with its last layer pruned; and the same with the first half of each
MLP in one kernel, where the model has it. A figure is the median of a forward's turns, a ratio that
over turns side by side. Then the same nonces by each of them: how many have the same distance as by
vLLM's own, to the last bit, and how far others are from it.
Prints a table, and JSON last. Settings come from the environment (POC_GPU_MEMORY_UTILIZATION, ...);
four recordings need some GB beside vLLM's share.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

from shared.errors import ConfigError
from shared.settings import load_settings
from worker.engines.base import tile_of
from worker.engines.vllm.engine import VllmEngine
from worker.engines.vllm.options import extended_by
from worker.tools import script


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--tiles", type=script.sizes, default=(32, 128))
    parser.add_argument("--seq-len", type=script.size, default=256)
    parser.add_argument("--rounds", type=script.size, default=6)
    parser.add_argument("--seconds", type=script.seconds, default=1.0, help="of a turn")
    parser.add_argument(
        "--nonces", type=script.size, default=1024, help="whose distances are compared"
    )
    options = parser.parse_args()
    settings = load_settings(engine="vllm", model=options.model, tile=str(max(options.tiles)))
    # vLLM's process imports it by name, from beside this script.
    with extended_by("last_layer_extension.LastLayerExtension"):
        engine = VllmEngine(settings)
    figures: dict[str, Any] = {}
    try:
        _check_room(max(options.tiles), options.seq_len, engine.info.max_tokens)
        figures["compiled_s"] = engine.call("poc_first", options.tiles[0])
        print(f"ours compiled in {figures['compiled_s']:.1f} s")
        print(f"{'tile':>4}  {'forward':7} {'ms':>8} {'over vllm':>9}  {'equal bits':>12}  largest")
        for tile in options.tiles:
            given = tile, options.seq_len, options.rounds, options.seconds, options.nonces
            turns, distances = engine.call("poc_turns", *given)
            figures[str(tile)] = {
                name: _row(tile, name, turns, distances, options.seq_len) for name in turns
            }
    finally:
        engine.close()
    print(json.dumps(figures))


def _check_room(tile: int, seq_len: int, tokens: int | None) -> None:
    """Raise `ConfigError` if one forward has no room for a whole tile."""
    if tile_of(tile, tokens, seq_len) < tile:
        raise ConfigError(
            f"--seq-len {seq_len}: a tile of {tile} would have more than the {tokens} tokens of "
            "one forward; lower --tiles, or set max_num_batched_tokens in POC_VLLM_OPTIONS"
        )


def _row(
    tile: int,
    name: str,
    turns: dict[str, list[float]],
    distances: dict[str, list[float]],
    seq_len: int,
) -> dict[str, Any]:
    """Print a forward's line; its figures."""
    pairs = list(zip(distances[name], distances["vllm"], strict=True))
    row = {
        "seq_len": seq_len,
        "ms": 1000 * statistics.median(turns[name]),
        "over_vllm": statistics.median(
            own / other for own, other in zip(turns[name], turns["vllm"], strict=True)
        ),
        "equal": sum(a == b for a, b in pairs),
        "nonces": len(pairs),
        "largest": max(abs(a - b) for a, b in pairs),
        "sd": statistics.pstdev(a - b for a, b in pairs),
    }
    print(
        f"{tile:>4}  {name:7} {row['ms']:>8.3f} {row['over_vllm']:>9.4f}  "
        f"{row['equal']:>5} of {row['nonces']:<4}  {row['largest']:.2g} (sd {row['sd']:.2g})"
    )
    return row


if __name__ == "__main__":
    script.run(main)
