"""A node whose Redis is the primary that Sentinels name: it ends, and a replica goes on."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis

import preloaded
from caller import caller
from exactness import counted, generating, without_gap
from functional.conftest import StartWorker, WorkerProcess
from serving_api import serving_api
from shared.broker import celery_app
from shared.client import PoCClient
from shared.config import PoCState
from shared.errors import StoreUnavailable
from shared.redis_url import RedisUrl
from shared.settings import Settings, load_settings
from shared.store import Store
from support import ROOT, clean_environment, free_port, running, wait_until
from worker.tools.embedded import HOST, EmbeddedRedis, server_binary

pytestmark = pytest.mark.functional

NAME = "node-1"
PASSWORD, SENTINEL_PASSWORD = "redis-mockingbird", "sentinel-mockingbird"
#: What a URL writes in another way.
MARK = "%@"

#: Seconds until all are through with a fail-over: Celery tries again after 2, 4, 6, ... s.
PATIENCE = 60.0


@dataclass
class Watched:
    """A primary, its replica, and the Sentinels."""

    primary: EmbeddedRedis
    replica: EmbeddedRedis
    ports: list[int] = field(default_factory=lambda: [free_port() for _ in range(3)])

    @property
    def url(self) -> str:
        """What to set as POC_REDIS_URL."""
        hosts = ",".join(f"{HOST}:{port}" for port in self.ports)
        return (
            f"sentinel://:{PASSWORD}%25%40@{hosts}/{NAME}/0"
            f"?sentinel_password={SENTINEL_PASSWORD}%25%40"
        )

    def direct(self, server: EmbeddedRedis) -> redis.Redis:
        """A client that asks no Sentinel."""
        return redis.Redis(
            host=HOST, port=server.port, password=PASSWORD + MARK, decode_responses=True
        )

    def config(self) -> str:
        """Of a Sentinel, besides its port."""
        return (
            f'requirepass "{SENTINEL_PASSWORD}{MARK}"\n'
            f'sentinel sentinel-pass "{SENTINEL_PASSWORD}{MARK}"\n'
            f"sentinel monitor {NAME} {HOST} {self.primary.port} 2\n"
            f'sentinel auth-pass {NAME} "{PASSWORD}{MARK}"\n'
            f"sentinel down-after-milliseconds {NAME} 3000\n"
            f"sentinel failover-timeout {NAME} 5000\n"
        )

    def ready(self) -> bool:
        """Each Sentinel knows the others, and the replica."""
        for port in self.ports:
            with contextlib.closing(
                redis.Redis(host=HOST, port=port, password=SENTINEL_PASSWORD + MARK)
            ) as sentinel:
                try:
                    knows = sentinel.sentinel_master(NAME)
                except redis.RedisError:
                    return False
                if (knows["num-slaves"], knows["num-other-sentinels"]) != (1, 2):
                    return False
        with contextlib.closing(self.direct(self.replica)) as replica:
            return bool(replica.info("replication").get("master_link_status") == "up")


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    """A fail-over takes place some seconds after the primary has ended."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(EmbeddedRedis()) for _ in range(2)]
        found = Watched(*servers)
        for each in servers:
            with contextlib.closing(redis.Redis(host=HOST, port=each.port)) as open_one:
                open_one.config_set("masterauth", PASSWORD + MARK)
                open_one.config_set("repl-diskless-sync-delay", 0)
                if each is found.replica:
                    open_one.replicaof(HOST, found.primary.port)
                open_one.config_set("requirepass", PASSWORD + MARK)
        for port in found.ports:
            config = tmp_path / f"sentinel-{port}.conf"
            config.write_text(f"port {port}\nbind {HOST}\ndir {tmp_path}\n{found.config()}")
            command = [server_binary(), config, "--sentinel"]
            log = tmp_path / f"sentinel-{port}.log"
            stack.enter_context(running(command, "monitor master", log, cwd=tmp_path))
        wait_until(found.ready, 30, "the Sentinels to know each other and the replica")
        yield found


@pytest.fixture
def settings(watched: Watched) -> Settings:
    """Of a node that knows the Sentinels only."""
    return load_settings(
        {}, redis_url=watched.url, namespace="test", lease_s="2", heartbeat_s="0.2"
    )


def consumes(worker: WorkerProcess, direct: redis.Redis) -> bool:
    """Whether it waits at the queue of this server: a connection is blocked."""
    return any(each["cmd"] == "blmove" and "b" in each["flags"] for each in direct.client_list())


def test_a_round_goes_on_at_the_replica(
    watched: Watched, client: PoCClient, store: Store, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Nobody is told, nobody is started again, and every nonce that was kept counts once.

    The worker takes its commands there as it did, and what is no command ends it as little.
    """
    worker = start_worker("w0", seconds=0.02)
    with serving_api(watched.url, tmp_path / "api.log") as (_, url), caller(url) as api:
        generating(client, store)
        watched.primary.kill()
        with contextlib.closing(watched.direct(watched.replica)) as direct:
            wait_until(lambda: direct.info("replication")["role"] == "master", 30, "a fail-over")
            kept = int(direct.hget("poc:test:status", "total_checked") or 0)  # type: ignore[arg-type]

            def more() -> int:
                answer = api.get("/api/v1/pow/status")
                return answer.status_code == 200 and answer.json()["total_checked"] > kept + 40

            wait_until(more, PATIENCE, "the round to go on", every=0.2)
            wait_until(lambda: consumes(worker, direct), PATIENCE, "the worker to consume")
            direct.lpush("poc.test", "no message")
            status = client.stop()
            assert direct.lrange("poc:test:dead_letters", 0, -1) == ["no message"]
    assert status.state == PoCState.STOPPED
    without_gap(counted(store, store.status()))
    assert worker.process.poll() is None
    assert "mockingbird" not in worker.log


def test_a_sentinel_that_is_silent_is_soon_passed_over(
    watched: Watched, settings: Settings
) -> None:
    """Its machine is gone, as the primary's is: the others know."""
    with socket.socket() as silent:
        silent.bind((HOST, 0))
        silent.listen()
        dead = f"@{HOST}:{silent.getsockname()[1]},"
        url = watched.url.replace("@", dead, 1)
        began = time.monotonic()
        with contextlib.closing(Store(settings.model_copy(update={"redis_url": url}))) as store:
            store.status()
        assert time.monotonic() - began < 10  # a lease, which must be renewed, is thirty by default


def test_where_no_sentinel_knows_the_primary_no_password_is_told(
    watched: Watched, settings: Settings
) -> None:
    """redis-py tells all that it knows of each Sentinel."""
    url = watched.url.replace(NAME, "nobody")
    with (
        contextlib.closing(Store(settings.model_copy(update={"redis_url": url}))) as store,
        pytest.raises(StoreUnavailable) as caught,
    ):
        store.status()
    assert str(caught.value) == "Redis: No master found for 'nobody' by any Sentinel"


def test_commands_of_the_shell_ask_the_sentinels(
    watched: Watched, settings: Settings, start_worker: StartWorker
) -> None:
    """And show no password, nor does remote control."""
    start_worker("w0")
    env = clean_environment(POC_REDIS_URL=watched.url, POC_NAMESPACE="test")
    shown = preloaded.run(["doctor", "--json"], env=env, cwd=ROOT).stdout
    found = {each["name"]: each for each in json.loads(shown)}
    assert {found[name]["level"] for name in ("redis", "access", "workers")} == {"ok"}
    assert found["redis"]["text"].startswith(RedisUrl.parse(watched.url).safe)
    with contextlib.closing(celery_app(settings)) as app:
        inspect = app.control.inspect(timeout=5, limit=1)
        said = f"{inspect.stats()}{inspect.conf()}{inspect.report()}"
    assert NAME in said
    ping = [sys.executable, "-m", "celery", "-A", "shared.entry", "inspect", "ping"]
    done = subprocess.run(ping, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert "w0@test: OK" in done.stdout
    assert "mockingbird" not in said + shown
