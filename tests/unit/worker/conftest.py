"""Engines that are closed, and a Redis that goes away and comes back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from redis import ConnectionPool
from redis.backoff import NoBackoff
from redis.retry import Retry

from fake_engine import FakeEngine
from shared.settings import load_settings
from shared.store import Store
from shared.store.connection import Client
from worker.manager import PoCManager
from worker.node.pipeline import Pipeline
from worker.outage import Outage


@pytest.fixture
def new_engine() -> Iterator[Callable[..., FakeEngine]]:
    """Makes engines that are closed after the test: `new_engine(nan=7)`."""
    made: list[FakeEngine] = []

    def new(kind: type[FakeEngine] = FakeEngine, **knobs: Any) -> FakeEngine:
        made.append(kind(**knobs))
        return made[-1]

    yield new
    for engine in made:
        engine.close()


@pytest.fixture
def engine(new_engine: Callable[..., FakeEngine]) -> FakeEngine:
    """An engine without knobs, which takes no time."""
    return new_engine()


@pytest.fixture
def pipeline(engine: FakeEngine, store: Store) -> Pipeline:
    """What a worker that calls itself `w` does."""
    return Pipeline(engine, store, "w")


@pytest.fixture
def manager(pipeline: Pipeline) -> PoCManager:
    """What commands that worker."""
    return PoCManager(pipeline.engine, pipeline.store, pipeline=pipeline)


@pytest.fixture
def away(redis: Client) -> Callable[[], AbstractContextManager[None]]:
    """Takes Redis away for as long as a block runs; it comes back as it was."""

    @contextmanager
    def away() -> Iterator[None]:
        there = redis.connection_pool
        # Nobody listens on port 1.
        redis.connection_pool = ConnectionPool(port=1, retry=Retry(NoBackoff(), 0))
        try:
            yield
        finally:
            redis.connection_pool = there

    return away


@pytest.fixture
def outage() -> Outage:
    """Of one process."""
    return Outage(load_settings({}))


@pytest.fixture
def closing() -> threading.Event:
    """Set when the process is to end."""
    return threading.Event()
