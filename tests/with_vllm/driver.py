"""An engine, what tests do to it behind its back, and its processes. Imports no vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from shared.settings import Settings
from worker.engines.vllm.engine import VllmEngine
from worker.engines.vllm.options import extended_by
from worker.job import Job


class Driver:
    """An engine, and what tests do to it behind its back."""

    def __init__(self, engine: VllmEngine) -> None:
        self.engine = engine

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run in the event loop of the engine's owner."""
        loop = self.engine._owner._loop
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(timeout=120)

    def call(self, method: str, *args: Any) -> Any:
        """What the extension's `method` gives."""
        return self.run(self.engine._owner.call(method, *args))[0]

    def distances(self, *nonces: int, **changes: Any) -> list[float]:
        """Compute one job."""
        return self.engine.submit(job(*nonces, **changes)).result()

    @property
    def llm(self) -> Any:
        """The engine of vLLM itself."""
        return self.engine._owner._llm


def faulty(settings: Settings) -> VllmEngine:
    """An engine with what tests do to it in vLLM's own process."""
    with extended_by("faulty_extension.FaultyExtension"):
        return VllmEngine(settings)


def job(*nonces: int, **changes: Any) -> Job:
    """A job of these nonces."""
    return Job(**{"block_hash": "b", "public_key": "k", "seq_len": 40, "nonces": nonces} | changes)
