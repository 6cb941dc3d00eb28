"""What Flower shows of a node: its workers, and tickets that are as far as the round is."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from flower.urls import handlers

from caller import caller
from shared.client import PoCClient
from shared.settings import Settings
from shared.store import Store
from support import free_port, running, wait_until

pytestmark = pytest.mark.functional

CONFIG = {"block_hash": "b", "block_height": 1, "public_key": "k", "r_target": 1.5}


@pytest.fixture
def flower(settings: Settings, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of a real Flower that knows the broker and nothing else."""
    with serving(settings, tmp_path, "--basic-auth=u:p") as client:
        client.auth = ("u", "p")
        yield client


@contextmanager
def serving(settings: Settings, tmp_path: Path, *more: str) -> Iterator[httpx.Client]:
    """A client, without a password, of a real Flower with `more` options."""
    port = free_port()
    options = [f"--port={port}", "--address=127.0.0.1", *more]
    command = [sys.executable, "-m", "celery", f"--broker={settings.redis_url}", "flower", *options]
    # It looks for workers before it has read its first event.
    with (
        running(command, "Connected to redis", tmp_path / "flower.log", cwd=tmp_path),
        caller(f"http://127.0.0.1:{port}") as client,
    ):
        yield client


def test_workers_and_tickets_are_seen(
    flower: httpx.Client, start_worker: Any, client: PoCClient, store: Store
) -> None:
    """The worker is listed; a generation is in PROGRESS until the stop, then SUCCESS."""

    def task(id: str) -> dict[str, Any]:
        found: dict[str, Any] = flower.get("/api/tasks").json().get(id, {})
        return found

    start_worker("w0", seconds=0.02)

    def registered() -> Any:
        workers = flower.get("/api/workers", params={"refresh": 1}).json()
        # Its events come before its answer to what it can do.
        return workers.get("w0@test", {}).get("registered")

    tasks = wait_until(registered, description="the worker")
    assert {"poc.init", "poc.generate", "poc.validate", "poc.stop"} <= set(tasks)

    ticket = client.generate(CONFIG)
    wait_until(lambda: task(ticket.id).get("state") == "PROGRESS", description="PROGRESS")
    assert task(ticket.id)["name"] == "poc.generate"
    client.stop()
    wait_until(lambda: task(ticket.id).get("state") == "SUCCESS", description="SUCCESS")
    assert task(ticket.id)["worker"] == "w0@test"
    assert store.status().round_id in task(ticket.id)["result"]


def test_a_refusal_is_seen(flower: httpx.Client, start_worker: Any, client: PoCClient) -> None:
    """An operator sees which command failed, and why."""
    start_worker("w0")
    with pytest.raises(Exception, match="Round not initialized"):
        client.generate()

    def failed() -> list[dict[str, Any]]:
        tasks = flower.get("/api/tasks", params={"state": "FAILURE"}).json()
        return list(tasks.values())

    (task,) = wait_until(failed, description="the failure")
    assert task["name"] == "poc.generate"
    assert "Round not initialized" in task["exception"]


def test_who_has_no_password_sees_and_does_nothing(flower: httpx.Client) -> None:
    """Each route that Flower has wants it, but for health, counts and the goodbye."""
    patterns = [each[0] if isinstance(each, tuple) else each.regex.pattern for each in handlers]
    paths = [re.sub(r"\(.[*+]\)", "x", each).rstrip("$").removesuffix("/?") for each in patterns]
    for auth in (None, ("u", "wrong")):
        answered, refused = set(), set()
        for path in paths:
            for method in ("GET", "POST"):
                code = flower.request(method, path, auth=auth).status_code
                if code == 401:
                    refused.add(path)
                elif code not in {403, 404, 405}:  # a cross-site request, no such page or method
                    answered.add(path)
        assert answered == {"/healthcheck", "/metrics", "/logout"}
        assert len(refused) > 20
        assert {"/", "/tasks", "/api/workers", "/api/worker/shutdown/x"} <= refused


def test_without_a_password_all_is_shown_and_nothing_done(
    settings: Settings, tmp_path: Path
) -> None:
    """Its pages are open to everybody; what can end a worker is off."""
    with serving(settings, tmp_path) as client:
        for page in ("/", "/tasks", "/broker"):
            assert client.get(page).status_code == 200
        for command in ("/api/worker/shutdown/w0@test", "/api/task/async-apply/poc.stop"):
            assert client.post(command).status_code == 401
