"""`poc worker --gpu all`: a worker for each GPU that nvidia-smi lists, looked after by one process.

There is no GPU here: nvidia-smi is a script on the PATH, and the engine a fake one.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ear import Ear
from preloaded import Fork
from shared.settings import Settings
from shared.store import Store
from support import ROOT, assert_gone, clean_environment, wait_until
from worker.children import end

pytestmark = pytest.mark.functional

TWO = "GPU 0: A Card (UUID: GPU-aa-0)\nGPU 1: A Card (UUID: GPU-bb-1)\n"
Start = Callable[..., Fork]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def start(settings: Settings, tmp_path: Path, log: Path) -> Iterator[Start]:
    """Start `poc worker --gpu all` on a machine with two GPUs, as `POC_` variables say."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'end'\n{TWO}end\n")
    program.chmod(0o755)
    started: list[Fork] = []

    def start(*options: str, **variables: str) -> Fork:
        env = clean_environment(
            POC_REDIS_URL=settings.redis_url,
            POC_NAMESPACE=settings.namespace,
            POC_HEARTBEAT_S="0.2",
            POC_ENGINE="fake_engine:load",
            PYTHONPATH=f"{ROOT / 'tests'}:{ROOT}",
            PATH=f"{tmp_path}:{os.environ['PATH']}",
        )
        words = ["worker", "--gpu", "all", *options]
        started.append(Fork(words, env=env | variables, cwd=tmp_path, log_path=log))
        return started[-1]

    yield start
    for process in started:
        end(process)


def names(store: Store) -> list[str]:
    """The workers of the namespace that live."""
    return sorted(each.name for each in store.workers.listing())


def workers_of(parent: Fork) -> list[psutil.Process]:
    """Its children that are workers, by their GPUs: either may have been started first."""
    children = psutil.Process(parent.pid).children()
    workers = [each for each in children if each.cmdline()[-1:] == ["worker"]]
    return sorted(workers, key=lambda each: each.environ()["POC_GPU"])


def both(store: Store, log: Path) -> list[str]:
    """The names of two workers, once they are there."""
    wait_until(lambda: len(names(store)) == 2, 60, f"two workers; {log.read_text()}")
    return names(store)


def test_its_life(start: Start, store: Store, log: Path, ear: Ear) -> None:
    """Given two GPUs, then two workers, each on its own; one that is killed comes back.

    And SIGTERM to the parent alone ends all of them in order, with status 0. Systemd hears of the
    parent alone.
    """
    parent = start("--worker-name", "node@test", NOTIFY_SOCKET=ear.address)
    assert both(store, log) == ["node-gpu0@test", "node-gpu1@test"]
    # It is registered a moment before it says that it is ready.
    ready = "ready: worker node-gpu0@test"
    wait_until(lambda: ready in log.read_text(), 20, "the first to be ready")
    first, second = workers_of(parent)
    assert {each.environ()["POC_GPU"] for each in (first, second)} == {"GPU-aa-0", "GPU-bb-1"}

    first.kill()
    wait_until(lambda: "ended with status 1: it is started again in 1 s" in log.read_text(), 10)
    wait_until(lambda: len(workers_of(parent)) == 2, 20, "another worker")
    (again,) = {each.pid for each in workers_of(parent)} - {second.pid}
    wait_until(
        lambda: again in {each.pid for each in store.workers.listing()}, 60, "it to be registered"
    )
    wait_until(lambda: log.read_text().count(ready) == 2, 20, "it to be ready")
    assert second.is_running()

    family = workers_of(parent)
    parent.terminate()
    assert parent.wait(30) == 0, log.read_text()
    assert_gone(family, within=1)
    assert names(store) == []
    said = log.read_text()
    assert "SIGTERM: waits for 2 to end" in said
    assert all(f"{label} | " in said for label in ("gpu0", "gpu1"))
    told = [each for each in ear.heard() if each != "WATCHDOG=1"]
    assert told == ["READY=1", "STOPPING=1"]
    assert said.count(ready) == 2


@pytest.mark.parametrize(("first", "ports"), [("8000", ["8000", "8001"]), ("0", ["0", "0"])])
def test_each_serves_on_a_port_of_its_own(
    start: Start, store: Store, log: Path, first: str, ports: list[str]
) -> None:
    """Given POC_SERVE_PORT, then that is the first one's; 0 is any free one for each."""
    parent = start(POC_SERVE_PORT=first)
    both(store, log)
    assert [each.environ()["POC_SERVE_PORT"] for each in workers_of(parent)] == ports


def test_no_worker_outlives_it(start: Start, store: Store, log: Path) -> None:
    """Given kill -9 of the parent, then the kernel ends its workers."""
    parent = start()
    both(store, log)
    family = workers_of(parent)
    parent.kill()
    parent.wait()
    assert len(family) == 2
    assert_gone(family, within=10)


def test_a_worker_that_can_t_start_is_not_started_again(start: Start, log: Path) -> None:
    """Given a model that does not load, then each is tried once, and the status is theirs."""
    parent = start("--model", "fake?broken=1")
    assert parent.wait(60) == 2
    said = log.read_text()
    assert said.count("the worker can't start: the fake engine was asked not to load") == 2
    assert said.count("ended with status 2: it is not started again") == 2


def test_a_device_with_wrong_numbers_is_not_started_again(
    start: Start, store: Store, log: Path, fault: Path
) -> None:
    """Given one of two workers in quarantine, then the other goes on, and 4 is the status at last.

    So a supervisor that starts this command sees that a device is broken.
    """
    parent = start("--model", f"fake?fault={fault}", POC_CHECK_EVERY_S="0.2")
    both(store, log)
    family = workers_of(parent)
    family[1].suspend()
    fault.write_text("wrong")
    wait_until(lambda: "ended with status 4: it is not started again" in log.read_text(), 30)
    fault.unlink()
    family[1].resume()
    assert parent.poll() is None
    parent.send_signal(signal.SIGINT)
    assert parent.wait(30) == 4, log.read_text()
    assert "SIGINT: waits for 1 to end" in log.read_text()


def test_lines_of_json(start: Start, store: Store, log: Path) -> None:
    """Given POC_LOG_FORMAT=json, then the parent says nothing else, and puts nothing in front."""
    parent = start(POC_LOG_FORMAT="json")
    workers = both(store, log)
    parent.terminate()
    assert parent.wait(60) == 0, log.read_text()
    said = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["worker"] for line in said if "worker" in line} == set(workers)
    assert said[0]["message"].startswith("starts gpu0 (GPU-aa-0), gpu1")
