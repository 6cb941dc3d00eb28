"""A batch that kills every vLLM shares tiles with others, and costs them nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from shared.config import PoCConfig
from shared.errors import EngineDied
from shared.requests import GenerateRequest
from shared.settings import load_settings
from shared.store import Store, fresh_id
from worker.engines.base import EngineInfo, FuturePending, Job
from worker.engines.vllm import owner as module
from worker.engines.vllm.owner import Owner
from worker.node.pipeline import Pipeline

CONFIG = PoCConfig(
    block_hash="b", block_height=1, public_key="k", r_target=1e-4, batch_size=2, seq_len=8
)
#: A nonce that no vLLM survives, the sequences of a tile, and the seconds that one takes.
POISON, TILE, SECONDS = 21, 8, 0.004


class MortalVllm:
    """Computes a tile in `SECONDS`, and ends with the one that has `POISON` in it."""

    def __init__(self) -> None:
        self.errored = False
        self._tiles: dict[int, tuple[int, ...]] = {}
        self._free_at = 0.0
        self._done_at: dict[int, float] = {}

    async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[Any]:
        if method == "poc_prepare":
            return [{"tile": args[0], "max_tokens": 4096, "max_model_len": 64, "without": {}}]
        handle, now = args[0], time.monotonic()
        if method == "poc_launch":
            self._tiles[handle] = args[1]["nonces"]
            self._free_at = self._done_at[handle] = max(now, self._free_at) + SECONDS
            return [True]
        self.errored |= POISON in self._tiles[handle]
        if self.errored:
            await asyncio.sleep(3600)
        await asyncio.sleep(max(0.0, self._done_at[handle] - now))
        return [([1.0] * len(self._tiles[handle]), SECONDS)]

    def shutdown(self) -> None:
        """Nothing is left of it."""


class MortalEngine:
    """As the engine is, but for what it computes."""

    busy_seconds = 0.0

    def __init__(self) -> None:
        self._owner = Owner("m")
        self._owner.start(SimpleNamespace(model="m"), (TILE,))
        self.info = EngineInfo(
            "m", "none", "f", 1, 1, 64, exact=True, tile=TILE, max_tokens=4096, joins_jobs=True
        )

    def submit(self, job: Job) -> FuturePending:
        return FuturePending(self._owner.submit(job))

    def ensure_alive(self) -> None:
        self._owner.ensure_alive()

    def close(self) -> None:
        self._owner.close()


@pytest.fixture
def new_engine(monkeypatch: pytest.MonkeyPatch) -> Callable[[], MortalEngine]:
    monkeypatch.setattr(module, "_forks", lambda *, serves: None)
    monkeypatch.setattr(module, "_start_vllm", lambda *_: MortalVllm())
    monkeypatch.setattr(module, "HEALTH_S", 0.02)
    return MortalEngine


def steps(pipeline: Pipeline, while_: Callable[[], bool]) -> None:
    """What a worker's loop does."""
    while while_():
        pipeline.step()


@pytest.mark.parametrize("max_attempts", [2, 3])
def test_a_batch_that_kills_every_vllm(
    max_attempts: int, new_engine: Callable[[], MortalEngine], redis_url: str
) -> None:
    """It is given up after so many deaths, with its two nonces and no others."""
    store = Store(load_settings({}, redis_url=redis_url, max_attempts=max_attempts))
    store.rounds.generate(fresh_id(), GenerateRequest(config=CONFIG))
    for _ in range(max_attempts):
        engine = new_engine()
        pipeline = Pipeline(engine, store, "w")
        with pytest.raises(EngineDied):
            steps(pipeline, while_=lambda: True)
        pipeline.drain()  # as a worker that ends
        engine.close()
    engine = new_engine()
    pipeline = Pipeline(engine, store, "w")
    before = store.status().total_checked
    steps(pipeline, while_=lambda: store.status().total_checked < before + 20 * TILE)
    pipeline.drain()
    engine.close()
    status = store.status()
    store.close()
    assert status.total_failed == CONFIG.batch_size
    assert "positions 20 to 21 failed" in status.error
