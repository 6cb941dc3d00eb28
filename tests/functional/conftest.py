"""Real workers: `celery` processes that the tests start, beside a real server."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from ear import Ear
from preloaded import Fork
from shared.client import PoCClient
from shared.settings import Settings, load_settings
from shared.store import Store
from support import ROOT, clean_environment, wait_until
from worker.children import end
from worker.tools.embedded import EmbeddedRedis


@dataclass
class WorkerProcess:
    """One `poc worker`."""

    name: str
    process: Fork
    log_path: Path

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self.log_path.read_text(errors="replace")

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()


StartWorker = Callable[..., WorkerProcess]


@pytest.fixture
def settings(redis_url: str) -> Settings:
    """Settings of a namespace without history, with short leases."""
    return _settings(redis_url)


def _settings(redis_url: str) -> Settings:
    return load_settings({}, redis_url=redis_url, namespace="test", lease_s="2", heartbeat_s="0.2")


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    """The namespace's store."""
    store = Store(settings)
    yield store
    store.close()


@pytest.fixture
def client(settings: Settings) -> Iterator[PoCClient]:
    """A controller."""
    client = PoCClient(settings)
    yield client
    client.close()


@pytest.fixture
def start_worker(settings: Settings, tmp_path: Path) -> Iterator[StartWorker]:
    """Start `poc worker` with the fake engine: `start_worker("w0", seconds=0.05, POC_X="1")`.

    Small keywords are the fake engine's knobs, POC_ ones are settings. Waits until the worker is
    ready, unless `wait=False`. Every worker is ended after the test.
    """
    with _starting(settings, tmp_path) as start:
        yield start


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[Ear]:
    """What hears a process whose NOTIFY_SOCKET is its address."""
    with contextlib.closing(Ear(tmp_path / "notify")) as ear:
        yield ear


@pytest.fixture
def start_breakable(start_worker: StartWorker, fault: Path) -> StartWorker:
    """`start_worker` with a device that `fault` breaks, and a lease that outlasts any test."""

    def start(name: str = "w0", **options: object) -> WorkerProcess:
        usual: dict[str, object] = {"seconds": 0.05, "fault": fault, "POC_LEASE_S": 600}
        return start_worker(name, **usual | options)

    return start


@pytest.fixture(scope="module")
def shared_settings(redis_server: EmbeddedRedis) -> Settings:
    """Settings of a namespace that all tests of a module share."""
    redis_server.start()
    with contextlib.closing(redis.Redis.from_url(redis_server.url)) as direct:
        direct.flushall()
    return _settings(redis_server.url)


@pytest.fixture(scope="module")
def shared_worker(
    shared_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerProcess]:
    """A worker that all tests of a module share: in it, let `settings` be `shared_settings`."""
    with _starting(shared_settings, tmp_path_factory.mktemp("shared")) as start:
        # Celery says at DEBUG only when it is through with a task.
        yield start("shared", seconds=0.02, POC_LOG_LEVEL="DEBUG")


@contextlib.contextmanager
def _starting(settings: Settings, directory: Path) -> Iterator[StartWorker]:
    started: list[WorkerProcess] = []

    def start(name: str = "w0", *, wait: bool = True, **options: object) -> WorkerProcess:
        knobs = {k: v for k, v in options.items() if not k.startswith(("POC_", "OTEL_"))}
        env = clean_environment() | {
            "POC_REDIS_URL": settings.redis_url,
            "POC_NAMESPACE": settings.namespace,
            "POC_LEASE_S": str(settings.lease_s),
            "POC_HEARTBEAT_S": str(settings.heartbeat_s),
            "POC_ENGINE": "fake_engine:load",
            "POC_MODEL": "fake?" + "&".join(f"{k}={v}" for k, v in knobs.items()),
            "POC_WORKER_NAME": f"{name}@test",
            "PYTHONPATH": str(ROOT / "tests"),
        }
        env |= {k: str(v) for k, v in options.items() if k.startswith(("POC_", "OTEL_"))}
        log_path = directory / f"{name}.log"
        process = Fork(["worker"], env=env, cwd=ROOT, log_path=log_path)
        worker = WorkerProcess(f"{name}@test", process, log_path)
        started.append(worker)
        if wait:
            wait_until(
                lambda: f"{worker.name} ready." in worker.log or process.poll() is not None,
                timeout=30,
                description=f"{name} to be ready",
            )
            assert process.poll() is None, worker.log
        return worker

    try:
        yield start
    finally:
        for worker in started:
            end(worker.process, timeout=10)
