"""Seeded random checkpoints: a model for tests, demos and benchmarks without a download.

Random weights prove nothing about a language model, but a round over them exercises every part
of the system, and the same arguments give the same fingerprint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shared.errors import ConfigError
from worker.tools.extras import require_installed

_QWEN3: dict[str, Any] = {
    "vocab_size": 151_936,
    "head_dim": 128,
    "kv_heads": 8,
    "max_seq_len": 40_960,
    "dtype": "bfloat16",
}
#: The sizes of published Qwen3 models, as arguments of `make_model`.
SHAPES: dict[str, dict[str, Any]] = {
    "0.6B": _QWEN3 | {"hidden_size": 1024, "layers": 28, "heads": 16, "intermediate_size": 3072},
    "8B": _QWEN3 | {"hidden_size": 4096, "layers": 36, "heads": 32, "intermediate_size": 12_288},
}

_DTYPES = ("float32", "bfloat16", "float16")


def make_model(
    path: str | Path,
    *,
    hidden_size: int = 64,
    layers: int = 2,
    heads: int = 2,
    kv_heads: int = 1,
    head_dim: int | None = None,
    intermediate_size: int = 128,
    vocab_size: int = 1024,
    max_seq_len: int = 4096,
    initializer_range: float = 0.02,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
) -> Path:
    """Write a random Qwen3 checkpoint to the directory `path` and return it.

    The defaults load in a blink. `head_dim` is `hidden_size / heads` unless given (real Qwen3
    models have 128). `initializer_range` is the deviation of the weights: where a model is narrow,
    those of 0.02 hardly move its inputs, and any two seeds are about the same model.
    The same arguments write the same weights; another `dtype` rounds them, and another `device`
    draws others (cuda makes billions of them in seconds).
    Raises `ConfigError` for sizes that make no model, for a path that is anything but a new or
    empty directory, and without torch.
    """
    directory = Path(path)
    _check_directory(directory)
    sizes = {
        "hidden_size": hidden_size,
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "intermediate_size": intermediate_size,
        "vocab_size": vocab_size,
        "max_seq_len": max_seq_len,
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

    require_installed("torch", "transformers")
    # Imported here, so that the command line that offers this starts without torch.
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.utils.logging import disable_progress_bar

    config = Qwen3Config(
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=intermediate_size,
        vocab_size=vocab_size,
        max_position_embeddings=max_seq_len,
        initializer_range=initializer_range,
        tie_word_embeddings=False,
    )
    on_gpu = torch.device(device).type == "cuda"
    # The caller's random state is none of our business.
    with torch.random.fork_rng(devices=[0] if on_gpu else []), torch.device(device):
        # torch.manual_seed would reseed all devices.
        (torch.cuda.manual_seed if on_gpu else torch.default_generator.manual_seed)(seed)
        model = Qwen3ForCausalLM(config).to(getattr(torch, dtype))
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{directory}: can't be made ({error.strerror})") from None
    disable_progress_bar()  # it would be over before it is seen
    model.save_pretrained(directory)
    if on_gpu:
        del model
        torch.cuda.empty_cache()  # whoever loads it next needs the room
    for file in directory.iterdir():  # safetensors are written for their owner alone
        file.chmod(0o644)
    return directory


def _check_directory(directory: Path) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ConfigError(f"{directory}: is a file; give a directory for the checkpoint")
    if any(directory.iterdir()):
        raise ConfigError(f"{directory}: is not empty; give another directory, or empty it first")
