"""Seeded checkpoints: the same arguments, the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from shared.errors import ConfigError
from worker.engines.checkpoint import fingerprint
from worker.tools.make_model import make_model

TINY: dict[str, Any] = {
    "hidden_size": 16,
    "layers": 1,
    "heads": 2,
    "kv_heads": 1,
    "intermediate_size": 24,
    "vocab_size": 32,
    "max_seq_len": 64,
}


def test_sizes_are_those_asked_for(tmp_path: Path) -> None:
    directory = make_model(tmp_path / "deep" / "model", **TINY, head_dim=4, dtype="bfloat16")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    config = model.config
    assert (config.model_type, model.dtype) == ("qwen3", torch.bfloat16)
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (16, 1, 32)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 4)
    assert (config.intermediate_size, config.max_position_embeddings) == (24, 64)


def test_the_same_seed_gives_the_same_fingerprint(tmp_path: Path) -> None:
    """Whatever the caller drew from torch before."""
    first = fingerprint(make_model(tmp_path / "a", **TINY, seed=7))
    torch.rand(3)
    assert fingerprint(make_model(tmp_path / "b", **TINY, seed=7)) == first
    assert fingerprint(make_model(tmp_path / "c", **TINY, seed=8)) != first
    assert fingerprint(make_model(tmp_path / "d", **TINY | {"layers": 2}, seed=7)) != first


def test_the_callers_random_state_is_left_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    make_model(tmp_path / "model", **TINY)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_empty_directory_is_used(tmp_path: Path) -> None:
    assert make_model(tmp_path, **TINY) == tmp_path
    assert (tmp_path / "model.safetensors").is_file()


def test_a_directory_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="is not empty; give another directory"):
        make_model(tmp_path, **TINY)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model"
    file.touch()
    with pytest.raises(ConfigError, match="is a file"):
        make_model(file, **TINY)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layers": 0}, "layers=0: must be at least 1"),
        ({"kv_heads": 3}, "must be a multiple of kv_heads=3"),
        ({"hidden_size": 17}, "must be a multiple of heads=2"),
        ({"head_dim": 5}, "head_dim=5: must be even"),
        ({"dtype": "int8"}, "dtype='int8': must be one of float32"),
    ],
)
def test_sizes_that_make_no_model_are_refused(
    wrong: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_model(tmp_path / "model", **TINY | wrong)
    assert not (tmp_path / "model").exists()
