"""What real processes say with POC_LOG_FORMAT=json: each line is an object."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from preloaded import Fork
from shared.client import PoCClient
from shared.config import PoCConfig
from shared.settings import Settings
from shared.store import Computed, Store
from support import ROOT, clean_environment, free_port, kept, wait_until
from worker.children import end

pytestmark = pytest.mark.functional

CONFIG = PoCConfig(block_hash="b10c", block_height=7, public_key="node", r_target=0.5)


def lines(path: Path) -> list[dict[str, Any]]:
    """What was said, all of which must be JSON."""
    said = []
    for line in path.read_text().splitlines():
        each = json.loads(line)
        assert {"time", "level", "logger", "message"} <= each.keys()
        said.append(each)
    return said


def test_a_worker_from_its_start_to_its_end(
    start_worker: Any, client: PoCClient, store: Store
) -> None:
    """Ours, Celery's and what it says of signals; those of a round tell it."""
    worker = start_worker("w0", seconds=0.02, POC_LOG_FORMAT="json")
    ticket = client.generate(CONFIG, round_id="r1")
    wait_until(lambda: store.status().total_checked > 0, description="a nonce")
    client.stop()
    ticket.wait(10)
    wait_until(lambda: "round r1 is over" in worker.log, description="its end")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(30) == 0
    said = lines(worker.log_path)
    assert {"celery.apps.worker", "worker.node.node"} <= {each["logger"] for each in said}
    assert {"worker: Warm shutdown (MainProcess)"} <= {each["message"] for each in said}
    assert {each.get("worker") for each in said} == {"w0@test"}
    about = [each["message"] for each in said if each.get("round_id") == "r1"]
    assert {each["message"] for each in said if "round r1" in each["message"]} <= set(about)
    for once in ("round r1 is generating", "round r1 is over"):
        assert sum(message.startswith(once) for message in about) == 1


def test_a_worker_that_can_not_start(start_worker: Any) -> None:
    """Why it can't is a line as well."""
    worker = start_worker("w0", wait=False, broken=1, POC_LOG_FORMAT="json")
    assert worker.process.wait(30) == 2
    last = lines(worker.log_path)[-1]
    assert last["level"] == "CRITICAL"
    assert last["message"].startswith("the worker can't start: ")


@pytest.fixture
def other(settings: Settings, tmp_path: Path) -> Iterator[Any]:
    """Runs `poc` with other words, until the test ends or it does: its process and its log."""
    started = []

    def start(*words: str, **variables: str) -> tuple[Fork, Path]:
        env = clean_environment(
            POC_REDIS_URL=settings.redis_url, POC_NAMESPACE="test", POC_LOG_FORMAT="json"
        )
        log = tmp_path / f"{words[0]}.log"
        started.append(Fork(words, env=env | variables, cwd=ROOT, log_path=log))
        return started[-1], log

    yield start
    for process in started:
        end(process, timeout=10)


def test_the_status_api(other: Any) -> None:
    """Uvicorn's lines, those of each request included."""
    process, log = other("api", POC_API_PORT="0", POC_LOG_LEVEL="debug")
    wait_until(lambda: "Application startup complete" in log.read_text(), 30, "the API")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert "uvicorn.error" in {each["logger"] for each in lines(log)}


def test_the_sender_of_callbacks(other: Any, store: Store) -> None:
    """What it says of a receiver that is down tells the round, and who it is itself."""
    url = f"http://127.0.0.1:{free_port()}"
    config = CONFIG.model_copy(update={"callback_url": url, "callback_deadline_s": 0.2})
    process, log = other("callbacks")
    given_up = _one_callback(store, config)
    wait_until(lambda: "a callback was given up" in log.read_text(), 30, "the deadline")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    (line,) = (each for each in lines(log) if "given up" in each["message"])
    assert line["round_id"] == given_up
    assert line["worker"].startswith("callbacks-")


def test_settings_that_are_refused(other: Any) -> None:
    """Once the format is known, what ends a command is a line, too."""
    process, log = other("api", POC_API_HOST="0.0.0.0")
    assert process.wait(30) == 2
    (line,) = lines(log)
    assert line["message"].startswith("POC_API_HOST=0.0.0.0: everybody")


def _one_callback(store: Store, config: PoCConfig) -> str:
    """Let a round of that id wait with one callback."""
    from shared.requests import GenerateRequest
    from worker.callbacks.messages import generated_message

    store.rounds.generate(str(time.time()), GenerateRequest(config=config, round_id="r2"))
    claim = store.rounds.claim("w", "t")
    assert claim
    valid = [(claim.nonces[0], 0.1)]
    message = generated_message(claim, valid)
    store.rounds.commit(claim, Computed(32, kept(valid), message=message))
    return "r2"
