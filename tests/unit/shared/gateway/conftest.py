"""A gateway over a Redis in memory, with one worker that lives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import fakeredis
import pytest
from fastapi.testclient import TestClient

from calls import Gateway
from shared.gateway import create_app, in_time
from shared.settings import load_settings
from shared.store import Store

WORKER = {"state": "idle", "model": "/models/m", "max_seq_len": "2048"}


@pytest.fixture
def server() -> fakeredis.FakeServer:
    """A Redis that can be taken away: `server.connected = False`."""
    return fakeredis.FakeServer()


@pytest.fixture
def redis(server: fakeredis.FakeServer) -> fakeredis.FakeRedis:
    return fakeredis.FakeRedis(server=server, decode_responses=True)


@pytest.fixture
def store(redis: fakeredis.FakeRedis) -> Store:
    """What the gateway reads."""
    return Store(load_settings({}, namespace="test"), redis)


@pytest.fixture
def worker(store: Store) -> None:
    """One that lives."""
    store.workers.heartbeat("w1", {"fingerprint": "f"}, WORKER, tokens=[])


@pytest.fixture
def gateway(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    """Makes a client of a gateway with these settings; what it fails to handle is a plain 500.

    It has time: a machine that does other things, too, must not be taken for a Redis that is slow.
    """
    monkeypatch.setattr(in_time, "ANSWER_S", 30)
    with ExitStack() as stack:

        def make(**settings: Any) -> TestClient:
            chosen = load_settings(
                {}, namespace="test", redis_url="redis://127.0.0.1:1", **settings
            )
            client = TestClient(create_app(chosen, store), raise_server_exceptions=False)
            return stack.enter_context(client)

        yield make
