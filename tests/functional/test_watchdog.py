"""A worker in which nothing moves any more ends itself, and what it held is free at once."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from exactness import counted, generating, without_gap
from shared.client import PoCClient
from shared.store import Store
from shared.store.keys import Keys
from support import wait_until
from worker.node.pipeline import DEPTH

pytestmark = pytest.mark.functional

#: Seconds without progress that a worker of these tests may have.
DEADLINE = 1.5


@pytest.fixture
def start(start_breakable: Any) -> Any:
    """Start a worker that may be without progress for DEADLINE seconds."""
    return partial(start_breakable, POC_BATCH_DEADLINE=DEADLINE)


def free(store: Store) -> int:
    """Batches that were given back and that nobody has yet."""
    leases = store._redis.zrange(
        Keys("test")("leases", store.status().round_id), 0, -1, withscores=True
    )
    return [score for _, score in leases].count(0)


@pytest.mark.parametrize("hangs", ["hang", "hang in submit"])
def test_a_device_that_hangs(
    hangs: str, client: PoCClient, store: Store, start: Any, fault: Path
) -> None:
    """Status 3, a log that says where, its batches free at once, and nobody takes it for alive."""
    worker = start()
    generating(client, store)
    fault.write_text(hangs)
    assert worker.process.wait(DEADLINE + 10) == 3
    assert "no progress for 1.5 s (POC_BATCH_DEADLINE)" in worker.log
    assert ("in result" if hangs == "hang" else "in submit") in worker.log
    assert store.workers.listing() == []
    assert free(store) >= 1  # a batch that submit did not take is one

    fault.unlink()
    before = store.status().total_checked
    start("w1")
    wait_until(lambda: store.status().total_checked >= before + 40, 20, "the round to go on")
    without_gap(counted(store, client.stop()), open_batches=DEPTH)


def test_an_operator_sees_why_it_ended(
    client: PoCClient, store: Store, start: Any, fault: Path
) -> None:
    """Also when another worker is there by then."""
    worker = start()
    generating(client, store)
    fault.write_text("hang")
    worker.process.wait(DEADLINE + 10)
    (incident,) = store.status().incidents
    assert (incident.worker, incident.device, incident.model) == ("w0@test", "none", "fake")
    assert incident.reason == "no progress for 1.5 s (POC_BATCH_DEADLINE)"
    assert abs(incident.at - time.time()) < 60
    assert incident.in_doubt == 0  # its numbers were right


def test_a_batch_that_hangs_every_device_is_given_up(
    client: PoCClient, store: Store, start: Any, fault: Path
) -> None:
    """Given POC_MAX_ATTEMPTS workers that it ended, then it counts as failed, with the reason."""
    start()
    generating(client, store)
    fault.write_text("hang")
    wait_until(lambda: store.status().incidents, description="the first end")
    fault.unlink()
    start("w1", POC_MAX_ATTEMPTS=1)
    status = wait_until(lambda: (now := store.status()).total_failed and now, 10, "the end of it")
    assert status.total_failed == 4
    assert status.error.endswith(
        "failed 1 times: worker w0@test: no progress for 1.5 s (POC_BATCH_DEADLINE)"
    )


def test_a_worker_that_hangs_while_it_ends(
    client: PoCClient, store: Store, start: Any, fault: Path
) -> None:
    """Given SIGTERM to a worker whose device hangs, then it ends all the same, and says so."""
    worker = start()
    generating(client, store)
    fault.write_text("hang")
    time.sleep(0.2)
    worker.process.terminate()
    assert worker.process.wait(DEADLINE + 10) == 3
    assert store.workers.listing() == []
    assert free(store) >= 1


def test_a_device_that_hangs_from_the_start(store: Store, start: Any, fault: Path) -> None:
    """It never takes part."""
    fault.write_text("hang")
    worker = start(wait=False)
    assert worker.process.wait(DEADLINE + 30) == 3
    assert "no progress" in worker.log
    assert store.workers.listing() == []


def test_a_call_of_redis_that_never_returns(
    client: PoCClient, store: Store, start: Any, redis_server: Any
) -> None:
    """Given a Redis that is silent for longer than a step may take, then the worker ends.

    Nothing could be given back, so its claims are free when their leases end.
    """
    worker = start(POC_LEASE_S=3)
    generating(client, store)
    process = psutil.Process(redis_server.pid)
    process.suspend()
    try:
        assert worker.process.wait(DEADLINE + 30) == 3
    finally:
        process.resume()
    assert "what this worker holds is free when its lease ends" in worker.log
    before = store.status().total_checked
    start("w1", POC_LEASE_S=3)
    wait_until(lambda: store.status().total_checked >= before + 400, 20, "the round to go on")
    without_gap(counted(store, client.stop()), open_batches=DEPTH)


def test_a_process_that_was_frozen_did_not_hang(
    client: PoCClient, store: Store, start: Any
) -> None:
    """Given SIGSTOP for longer than the deadline, then the worker goes on when it wakes."""
    worker = start(seconds=0.3)
    generating(client, store)
    os.kill(worker.process.pid, signal.SIGSTOP)
    time.sleep(2 * DEADLINE)
    os.kill(worker.process.pid, signal.SIGCONT)
    before = store.status().total_checked
    wait_until(lambda: store.status().total_checked >= before + 20, 20, "the round to go on")
    assert worker.process.poll() is None
    assert store.status().incidents == []


def test_an_idle_worker_does_not_hang(store: Store, start: Any) -> None:
    """To wait for work is no step."""
    worker = start()
    time.sleep(2 * DEADLINE)
    assert worker.process.poll() is None


def test_an_engine_that_dies_idle_ends_the_worker(store: Store, start: Any, fault: Path) -> None:
    """Given no work, then it is noticed all the same, with status 3."""
    worker = start()
    fault.write_text("die")
    assert worker.process.wait(20) == 3
    assert "the fake engine was asked to die" in worker.log
    assert store.workers.listing() == []
    (incident,) = store.status().incidents
    assert incident.reason == "the fake engine was asked to die"
