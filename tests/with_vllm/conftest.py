"""A real vLLM on the CPU, tiny checkpoints of every supported architecture.

These tests need vLLM, which pins its own torch: `make test-vllm` runs them in an environment of
its own. They are marked `vllm`, and plain `pytest` deselects them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from driver import Driver, faulty
from small import CONFIGS, settings_of

from worker.engines.vllm.engine import VllmEngine


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny random checkpoint of an architecture; not to be written to."""
    made: dict[str, Path] = {}

    def checkpoint(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = tmp_path_factory.mktemp(architecture)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = transformers.AutoModelForCausalLM.from_config(CONFIGS[architecture]())
            model.save_pretrained(made[architecture])
        return made[architecture]

    return checkpoint


@pytest.fixture
def load() -> Iterator[Callable[..., VllmEngine]]:
    """Engines that are closed after the test; takes what `settings_of` takes."""
    engines: list[VllmEngine] = []

    def load(*args: Any, **more: Any) -> VllmEngine:
        engines.append(VllmEngine(settings_of(*args, **more)))
        return engines[-1]

    yield load
    for engine in engines:
        engine.close()


@pytest.fixture(scope="session")
def shared_driver(checkpoint: Callable[[str], Path]) -> Iterator[Driver]:
    """One Qwen3 engine for all tests that leave it as it was."""
    engine = faulty(settings_of(checkpoint("qwen3")))
    yield Driver(engine)
    engine.close()


@pytest.fixture
def driver(shared_driver: Driver) -> Iterator[Driver]:
    """The shared engine, without a fault."""
    yield shared_driver
    shared_driver.call("poc_mend")
