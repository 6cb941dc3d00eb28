"""Ends of tasks as Celery itself stores them: none is lost to an outage, and none is made up."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from shared.broker import celery_app
from shared.errors import InvalidRequest
from shared.settings import load_settings
from support import wait_until
from worker.node.node import Node
from worker.queue import results
from worker.queue.results import PROGRESS, Results
from worker.tools.embedded import EmbeddedRedis


@pytest.fixture
def node(redis_url: str) -> Iterator[Node]:
    """A node without threads."""
    settings = load_settings({}, redis_url=redis_url, namespace="test")
    node = Node(settings, on_failure=lambda error: pytest.fail(str(error)))
    with contextlib.closing(node.store):
        yield node


@pytest.fixture
def backend(node: Node) -> Iterator[Results]:
    """Where a worker's tasks end."""
    url = f"worker.queue.results:Results+{node.settings.redis_url}"
    with contextlib.closing(celery_app(node.settings, result_backend=url)) as app:
        app.node = node
        yield app.backend
        app.backend.client.close()


@pytest.fixture
def direct(redis_url: str) -> Iterator[redis.Redis]:
    """A look at what is stored."""
    with contextlib.closing(redis.Redis.from_url(redis_url)) as client:
        yield client


def meta(direct: redis.Redis, task: str = "t") -> dict[str, Any]:
    """What whoever reads the task's key sees."""
    raw: Any = direct.get(f"celery-task-meta-{task}")
    found: dict[str, Any] = json.loads(raw)
    return found


def test_a_result_waits_for_redis(
    backend: Results,
    direct: redis.Redis,
    redis_server: EmbeddedRedis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Given one that is away when a command has been carried out, then its answer comes later."""
    redis_server.kill()
    with ThreadPoolExecutor() as threads:
        stored = threads.submit(backend.mark_as_done, "t", {"state": "STOPPED"})
        wait_until(lambda: "trying again until it answers" in caplog.text, description="a try")
        redis_server.start()
        stored.result(30)
    assert (meta(direct)["status"], meta(direct)["result"]) == ("SUCCESS", {"state": "STOPPED"})
    assert direct.ttl("celery-task-meta-t") > 86_000


@pytest.mark.parametrize("closes", [True, False])
def test_a_result_that_can_t_be_stored_is_no_failure(
    closes: bool,
    backend: Results,
    node: Node,
    direct: redis.Redis,
    redis_server: EmbeddedRedis,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given a worker that closes, or whose patience ends, then the caller may ask again."""
    if closes:
        node.closing.set()
    else:
        monkeypatch.setattr(results, "PATIENCE_S", 0.0)
    redis_server.kill()
    backend.mark_as_done("t", {"state": "STOPPED"})
    redis_server.start()
    assert "task t is not answered yet, and tried again later: Redis: " in caplog.text
    assert direct.get("celery-task-meta-t") is None


def test_an_error_is_stored_without_our_code(backend: Results, direct: redis.Redis) -> None:
    """Its class and its message are for the caller, its traceback is for the log."""
    backend.mark_as_failure("t", InvalidRequest("no"), traceback="File secret.py")
    assert meta(direct)["result"] == {
        "exc_type": "InvalidRequest",
        "exc_message": ["no"],
        "exc_module": "shared.errors",
    }
    assert meta(direct)["traceback"] is None


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", PROGRESS])
def test_what_has_ended_or_is_open_does_not_fail(
    state: str, backend: Results, direct: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """What failed is a repeat, or another message under its id."""
    caplog.set_level(logging.INFO)
    direct.set("celery-task-meta-t", json.dumps({"status": state}))
    backend.mark_as_failure("t", InvalidRequest("no"))
    assert meta(direct) == {"status": state}
    assert "task t has another end, or none yet: FAILURE is not shown" in caplog.text


def test_what_failed_may_succeed(backend: Results, direct: redis.Redis) -> None:
    """Sent again under its id, once what was wrong with it is mended."""
    backend.mark_as_failure("t", InvalidRequest("no"))
    backend.mark_as_done("t", {})
    assert meta(direct)["status"] == "SUCCESS"


@pytest.mark.parametrize("key", ["hello", '"text"', "null", '{"status": "\\ud800"}', ["a list"]])
def test_what_cannot_be_read_is_replaced(key: Any, backend: Results, direct: redis.Redis) -> None:
    """Else one task's end could never be told, and no other behind it."""
    if isinstance(key, list):
        direct.rpush("celery-task-meta-t", *key)
    else:
        direct.set("celery-task-meta-t", key)
    backend.mark_as_done("t", {})
    assert meta(direct)["status"] == "SUCCESS"


def test_a_repeat_is_no_news(
    backend: Results, direct: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A command that was delivered twice gave the same answer twice."""
    caplog.set_level(logging.INFO)
    backend.mark_as_done("t", {"n": 1})
    backend.mark_as_done("t", {"n": 1})
    assert meta(direct)["status"] == "SUCCESS"
    assert not caplog.records
