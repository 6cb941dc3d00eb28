"""A checkpoint to break, and engines on the CPU that load it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tiny import HIDDEN_SIZE, VOCAB_SIZE
from worker.engines.transformers_engine import TransformersEngine
from worker.tools.make_model import make_model


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A Qwen3 checkpoint of its own, to be written to."""
    return make_model(
        tmp_path / "model",
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=48,
        max_seq_len=64,
    )


@pytest.fixture
def load() -> Iterator[Callable[..., TransformersEngine]]:
    """Engines on the CPU that are closed after the test."""
    engines: list[TransformersEngine] = []

    def load(model: str | Path | None, **options: Any) -> TransformersEngine:
        chosen = {"device": "cpu", **options}
        engines.append(TransformersEngine(None if model is None else str(model), **chosen))
        return engines[-1]

    yield load
    for engine in engines:
        engine.close()
