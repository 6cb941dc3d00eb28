"""Fixtures of the tests that need a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from sizes import VOCAB_SIZE

from worker.tools.make_model import make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense checkpoint, each module's own."""
    return make_model(
        tmp_path_factory.mktemp("gpu") / "model",
        hidden_size=1024,
        layers=8,
        heads=16,
        kv_heads=8,
        head_dim=128,
        intermediate_size=3072,
        vocab_size=VOCAB_SIZE,
        dtype="bfloat16",
    )
