"""Seeded random checkpoints: a model for tests, demos and benchmarks without a download.

Random weights prove nothing about a language model, but a round over them exercises every part
of the system, and the same arguments give the same fingerprint.
"""

from __future__ import annotations

from pathlib import Path

from shared.errors import ConfigError

#: What a checkpoint leaves in its directory, and so what overwriting one removes first: a stale
#: shard or index beside the new weights would be loaded instead of them.
_CHECKPOINT_FILES = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
)

_DTYPES = ("float32", "bfloat16", "float16")


def make_model(
    path: str | Path,
    *,
    hidden_size: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int | None = None,
    intermediate_size: int = 128,
    vocab_size: int = 1024,
    max_positions: int = 4096,
    seed: int = 0,
    dtype: str = "float32",
    overwrite: bool = False,
) -> Path:
    """Write a random Qwen3 checkpoint to the directory `path` and return it.

    The defaults load in a blink. `head_dim` is `hidden_size / heads` unless given (real Qwen3
    models have 128). The same arguments write the same weights; another `dtype` rounds them.
    Raises `ConfigError` for sizes that make no model, and for a directory that is not empty
    unless `overwrite` says to replace the checkpoint in it.
    """
    directory = Path(path)
    _check_directory(directory, overwrite)
    sizes = {
        "hidden_size": hidden_size,
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "intermediate_size": intermediate_size,
        "vocab_size": vocab_size,
        "max_positions": max_positions,
    }
    for name, value in sizes.items():
        if value < 1:
            raise ConfigError(f"{name}={value}: must be at least 1")
    if heads % kv_heads:
        raise ConfigError(f"heads={heads}: must be a multiple of kv_heads={kv_heads}")
    if head_dim is None:
        if hidden_size % heads:
            raise ConfigError(
                f"hidden_size={hidden_size}: must be a multiple of heads={heads}, or give head_dim"
            )
        head_dim = hidden_size // heads
    if head_dim < 2 or head_dim % 2:
        raise ConfigError(f"head_dim={head_dim}: must be even, since rotary positions turn pairs")
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype={dtype!r}: must be one of {', '.join(_DTYPES)}")

    # Imported here, so that the command line that offers this starts without torch.
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=intermediate_size,
        vocab_size=vocab_size,
        max_position_embeddings=max_positions,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):  # the caller's random state is none of our business
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config).to(getattr(torch, dtype))
    directory.mkdir(parents=True, exist_ok=True)
    for pattern in _CHECKPOINT_FILES:
        for stale in directory.glob(pattern):
            stale.unlink()
    model.save_pretrained(directory)
    return directory


def _check_directory(directory: Path, overwrite: bool) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ConfigError(f"{directory}: is a file; give a directory for the checkpoint")
    if any(directory.iterdir()) and not overwrite:
        raise ConfigError(
            f"{directory}: is not empty; give another directory, or ask to overwrite the checkpoint"
        )
