"""A command that was pushed once is carried out, whatever becomes of who took it."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from functional.conftest import StartWorker, WorkerProcess
from raw import meta, push, raw_message
from shared.broker import celery_app
from shared.config import PoCConfig, PoCState
from shared.settings import Settings
from shared.store import Store
from support import wait_until

pytestmark = pytest.mark.functional

CONFIG = PoCConfig(block_hash="b", block_height=1, public_key="k", r_target=1.0, seq_len=8)

#: Seconds that what nobody works on may lie there: two looks, Celery's pauses, a slow machine.
SOON = 60.0


@pytest.fixture
def direct(settings: Settings) -> Iterator[redis.Redis]:
    """A client beside ours, of a server that holds nothing."""
    with contextlib.closing(redis.Redis.from_url(settings.redis_url)) as connected:
        connected.flushall()
        yield connected


def push_init(direct: redis.Redis, name: str) -> str:
    """Push a command that opens a round of its own, without an answer that somebody waits for."""
    config = CONFIG.model_copy(update={"block_hash": name}).model_dump(mode="json")
    return push(direct, "poc.init", {"config": config, "round_id": name})


def answered(direct: redis.Redis, task: str) -> bool:
    """Whether `task` has succeeded, sooner or later."""
    raw: Any = wait_until(
        lambda: direct.get(f"celery-task-meta-{task}"), SOON, "an answer", every=0.05
    )
    return bool(json.loads(raw)["status"] == "SUCCESS")


def taken_in_hand(direct: redis.Redis, worker: WorkerProcess) -> str:
    """A command that `worker` has taken and not begun, for the worker stands still."""

    def attempt() -> str:
        worker.process.send_signal(signal.SIGSTOP)
        task = push_init(direct, "r1")
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not direct.llen("poc.test"), 0.2)
            return task
        # It stood still between two looks at the queue.
        direct.delete("poc.test")
        worker.process.send_signal(signal.SIGCONT)
        return ""

    return wait_until(attempt, SOON, "it to be taken")


def nothing_taken(direct: redis.Redis) -> bool:
    return not list(direct.scan_iter("poc:test:taken:*"))


def test_a_connection_that_breaks_costs_no_command(
    direct: redis.Redis, start_worker: StartWorker
) -> None:
    """Given thirty commands, each followed at once by the end of all connections, each is answered.

    Redis has taken it from the queue by then, and the reply is on its way to nobody.
    """
    worker = start_worker("w0")
    for i in range(30):
        task = push_init(direct, f"r{i}")
        direct.client_kill_filter(_type="normal", skipme=True)
        assert answered(direct, task), i
    wait_until(lambda: nothing_taken(direct), SOON, "all to be done")
    assert worker.process.poll() is None


def test_a_killed_worker_costs_no_command(
    direct: redis.Redis, start_worker: StartWorker, store: Store
) -> None:
    """What it had taken and not begun is carried out by another one."""
    first = start_worker("w0")
    task = taken_in_hand(direct, first)
    first.kill()
    store.workers.leave("w0@test")  # not to wait for half a minute until it is missed
    start_worker("w1")
    assert answered(direct, task)
    wait_until(lambda: nothing_taken(direct), SOON, "it to be settled")


def test_a_worker_that_comes_back_finds_its_commands(
    direct: redis.Redis, start_worker: StartWorker
) -> None:
    """Under its old name it need not be missed first."""
    first = start_worker("w0")
    task = taken_in_hand(direct, first)
    first.kill()
    start_worker("w0")
    assert answered(direct, task)


def test_a_worker_that_ends_takes_no_command_with_it(
    direct: redis.Redis, start_worker: StartWorker
) -> None:
    """It was told to end at the same moment: its command waits for the next one."""
    first = start_worker("w0")
    task = taken_in_hand(direct, first)
    first.process.send_signal(signal.SIGTERM)
    first.process.send_signal(signal.SIGCONT)
    assert first.process.wait(30) == 0
    if direct.get(f"celery-task-meta-{task}") is None:
        assert direct.llen("poc.test") == 1
        start_worker("w1")
    assert answered(direct, task)
    wait_until(lambda: nothing_taken(direct), SOON, "it to be settled")


@pytest.mark.parametrize("attempt", range(3))
def test_a_command_that_comes_while_a_worker_ends_waits_for_the_next(
    attempt: int, direct: redis.Redis, start_worker: StartWorker, settings: Settings
) -> None:
    """Redis may still move it to the one that ends, which asked for it before.

    Remote control, as Flower sends it, wakes the worker up at that moment.
    """
    first = start_worker("w0")
    with contextlib.closing(celery_app(settings)) as app:
        time.sleep(0.27 * attempt)  # somewhere within the second that it waits for a command
        app.control.broadcast("heartbeat")
        first.process.send_signal(signal.SIGTERM)
        app.control.broadcast("heartbeat")
    wait_until(lambda: not direct.zcard("poc:test:workers"), SOON, "it to leave", every=0.001)
    task = push_init(direct, "r1")
    assert first.process.wait(30) == 0
    assert not direct.exists("poc:test:dead_letters")
    assert direct.llen("poc.test") == 1
    start_worker("w1")
    assert answered(direct, task)


def test_a_command_is_settled_when_it_is_answered(
    direct: redis.Redis, start_worker: StartWorker
) -> None:
    """Done, refused or unknown: nothing of it is left, and nothing comes again."""
    worker = start_worker("w0")
    done = push_init(direct, "r1")
    refused = push(direct, "poc.init", {"nonsense": 1})
    unknown = push(direct, "poc.unknown", {})
    assert answered(direct, done)
    assert {meta(direct, each)["status"] for each in (refused, unknown)} == {"FAILURE"}
    wait_until(lambda: nothing_taken(direct), SOON, "all to be settled")
    assert "put back" not in worker.log


def test_a_command_with_a_priority_is_carried_out(
    direct: redis.Redis, start_worker: StartWorker, store: Store
) -> None:
    """Celery's clients push it to a list of its own."""
    start_worker("w0")
    config = CONFIG.model_dump(mode="json")
    message = raw_message("poc.init", "t1", {"config": config, "round_id": "r1"}, "poc.test")
    direct.lpush("poc.test\x06\x166", message)
    assert answered(direct, "t1")
    status = store.status()
    assert (status.round_id, status.state) == ("r1", PoCState.IDLE)
