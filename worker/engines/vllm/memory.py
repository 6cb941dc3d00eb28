"""How many sequences and tokens go into one forward, and what memory that takes."""

from __future__ import annotations

from typing import Any

from shared.errors import EngineError
from shared.settings import Settings
from worker.engines.base import DEFAULT_TILE
from worker.engines.checkpoint import longest
from worker.engines.vllm.installed import Device

#: Positions of a sequence in a round, as most rounds have them.
USUAL_LEN = 256
#: Tokens in one forward at least, unless the options say otherwise: 32 sequences of 256.
DEFAULT_TOKENS = 8192
#: Bytes that `worker.kernels` takes for each entry of a row's vocabulary, at most.
ENTRY_BYTES = 19
#: Tiles of which `auto` takes the smallest that is about as fast as any of them
#: (docs/benchmarks.md).
TILES = (32, 64, 128, 256)
#: Sequences in one forward that vLLM allows by itself.
DEFAULT_SEQUENCES = 128


def reserve_bytes(config: Any, *, tile: int, tokens: int, ranks: int, width: int) -> int:
    """Bytes that jobs need on each device beside what vLLM measures for its own forward.

    `tile` sequences and `tokens` tokens in one forward at most, `ranks` devices, `width` bytes
    in an element of the model. An upper bound of what the extension allocates:

    - scratch pages for keys and values: one layer's, blocks of at most 128 tokens, twice for
      models with two kinds of layers,
    - what a recorded forward keeps for itself between two layers, twice what one layer makes,
    - inputs of two tiles, the recorded forward's own, and a copy while it is recorded,
    - permutations of two tiles, `ENTRY_BYTES` for an entry of the vocabulary, and logits.
    """
    heads, head_dim = _heads(config, ranks)
    kinds = len(set(getattr(config, "layer_types", None) or [None]))
    scratch = kinds * (tokens + 128 * (tile + 1)) * 2 * heads * head_dim * width
    inputs = 4 * tokens * config.hidden_size * width
    experts = getattr(config, "num_experts_per_tok", 0)
    wide = max(config.intermediate_size, experts * getattr(config, "moe_intermediate_size", 0))
    layer = 2 * wide + 4 * config.hidden_size
    layer += (config.num_attention_heads // ranks + 2 * heads) * head_dim
    recorded = 2 * tokens * layer * width
    outputs = tile * config.vocab_size * (width + 2 * ENTRY_BYTES)
    return int(scratch + recorded + inputs + outputs + (256 << 20))


def tiles_of(
    settings: Settings, options: dict[str, Any], config: Any, device: Device, weights: int
) -> tuple[int, ...]:
    """The tiles to choose from, in rising order: those that options and memory have room for.

    `weights` are the bytes of the checkpoint. Raises `EngineError` if options cap the tile that was
    asked for.
    """

    def needs(tile: int) -> dict[str, int]:
        return {"max_num_seqs": tile, "max_num_batched_tokens": _positions(tile)}

    def capped(tile: int) -> dict[str, int]:
        return {k: v for k, v in needs(tile).items() if options.get(k, v) < v}

    if settings.tile != "auto":
        for name, needed in capped(settings.tile).items():
            raise EngineError(
                f"POC_TILE={settings.tile}: capped by {name}={options[name]} in POC_VLLM_OPTIONS; "
                f"set that to {needed} or more, leave it out, or lower POC_TILE"
            )
        return (settings.tile,)
    usual = min(DEFAULT_TILE[device.kind], options.get("max_num_seqs", DEFAULT_SEQUENCES))
    # Requests wait for a tile between two of their tokens.
    if device.kind != "cuda" or settings.serve_port is not None:
        return (usual,)
    ranks, width = settings.tensor_parallel, device.width
    room = settings.gpu_memory_utilization * device.total - weights / ranks
    # vLLM wants pages for one sequence of full length.
    room -= page_bytes(config, settings.max_model_len or longest(config), ranks, width)

    def fits(tile: int) -> bool:
        # vLLM's own forward takes about what jobs take beside it.
        reserve = reserve_bytes(
            config, tile=tile, tokens=_positions(tile), ranks=ranks, width=width
        )
        return 2 * reserve < room

    found = [tile for tile in TILES if not capped(tile) and fits(tile)]
    return tuple(found) or (usual,)


def page_bytes(config: Any, positions: int, ranks: int, width: int) -> int:
    """Bytes of all keys and values of a sequence of `positions`, on each of `ranks` devices."""
    heads, head_dim = _heads(config, ranks)
    return int(config.num_hidden_layers * 2 * heads * head_dim * width * positions)


def _heads(config: Any, ranks: int) -> tuple[int, int]:
    """Heads of keys and values on a device, and the width of one."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return max(1, config.num_key_value_heads // ranks), head_dim


def tokens_of(tile: int) -> int:
    """The positions that a tile may have, unless the options say otherwise."""
    return max(DEFAULT_TOKENS, _positions(tile))


def _positions(tile: int) -> int:
    """The positions of `tile` sequences of the usual length."""
    return tile * USUAL_LEN
