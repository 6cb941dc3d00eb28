"""How many connections a worker has, and what it says where Redis gives it fewer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import redis

from functional.conftest import StartWorker
from raw import push
from receiver import Receiver
from shared.config import PoCConfig
from shared.data import ProofBatch
from shared.settings import Settings, load_settings
from shared.store.connection import WORKER_CONNECTIONS
from support import wait_until
from worker.tools.embedded import EmbeddedRedis

pytestmark = pytest.mark.functional

CONFIG = PoCConfig(
    block_hash="b", block_height=1, public_key="k", r_target=1.9, seq_len=8, batch_size=4
)


@pytest.fixture
def settings() -> Iterator[Settings]:
    """Of a server that nobody else is connected to."""
    with EmbeddedRedis() as server:
        yield load_settings(
            {}, redis_url=server.url, namespace="test", lease_s="2", heartbeat_s="0.2"
        )


@pytest.fixture
def direct(settings: Settings) -> Iterator[redis.Redis]:
    """A client with one connection."""
    with contextlib.closing(redis.Redis.from_url(settings.redis_url)) as connected:
        yield connected


def connections(direct: redis.Redis) -> int:
    """Those of all others."""
    return int(direct.info("clients")["connected_clients"]) - 1


def test_a_busy_worker_keeps_to_its_share(direct: redis.Redis, start_worker: StartWorker) -> None:
    """With a round, callbacks, and many commands at once."""
    start_worker("w0", seconds=0.02)
    idle = connections(direct)
    with Receiver() as receiver:
        config = CONFIG.model_copy(update={"callback_url": receiver.url})
        push(direct, "poc.generate", {"config": config.model_dump(mode="json")})
        wait_until(lambda: receiver.requests, description="a callback")
        batch = {
            "batch": ProofBatch.of(CONFIG, [0], [0.5]).model_dump(mode="json"),
            "config": CONFIG.model_dump(mode="json"),
        }
        tasks = [push(direct, "poc.validate", batch) for _ in range(200)]
        answers = [f"celery-task-meta-{task}" for task in tasks]
        most = 0

        def answered() -> bool:
            nonlocal most
            most = max(most, connections(direct))
            return bool(direct.exists(*answers) == len(answers))

        wait_until(answered, 60, "all answers")
        push(direct, "poc.stop", {})
    assert idle < most <= WORKER_CONNECTIONS


def test_a_redis_that_is_full_is_told_with_its_remedy(
    direct: redis.Redis, start_worker: StartWorker
) -> None:
    """The worker waits for room, and goes on."""
    direct.config_set("maxclients", 6)
    worker = start_worker("w0", wait=False)
    says = f"raise its maxclients: a worker has up to {WORKER_CONNECTIONS} connections"
    wait_until(lambda: says in worker.log, 30, "it to say so")
    direct.config_set("maxclients", 10_000)
    wait_until(lambda: "w0@test ready." in worker.log, 30, "it to be ready")
    assert worker.process.poll() is None
