"""Fixtures of the tests that need a GPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from driver import Driver
from sizes import VOCAB_SIZE

from shared.settings import load_settings
from worker.engines.vllm.engine import VllmEngine
from worker.engines.vllm.options import extended_by
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


@pytest.fixture(scope="module")
def load() -> Iterator[Callable[..., Driver]]:
    """Compiled engines, as a worker has them, that are closed after the module.

    Takes a model, options of vLLM, and settings. With eyes and knobs in vLLM's own process.
    """
    made: list[VllmEngine] = []

    def load(model: Path, options: dict[str, Any] | None = None, **more: Any) -> Driver:
        options = {"enable_prefix_caching": False} | (options or {})
        given = {"max_model_len": 1024, "gpu_memory_utilization": 0.4}
        given |= {"vllm_options": json.dumps(options)}
        settings = load_settings({}, engine="vllm", model=str(model), **given | more)
        with extended_by("pages.ComparingExtension"):
            made.append(VllmEngine(settings))
        return Driver(made[-1])

    yield load
    for engine in made:
        engine.close()
