"""What a program without Celery pushes onto the queue, good and bad."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from raw import meta, push, raw_message
from shared.broker import celery_app
from shared.config import PoCState
from shared.settings import Settings
from shared.store import Store
from support import wait_until

pytestmark = pytest.mark.functional

CONFIG = {"block_hash": "b", "block_height": 1, "public_key": "k", "r_target": 1.5}


def changed(**parts: Any) -> str:
    """A good message with other parts at its top."""
    return json.dumps(json.loads(raw_message("poc.stop", "bad", {}, "poc.test")) | parts)


#: Kept for inspection.
DEAD = {
    "text": "hello",
    "bytes": b"\xff\x00",
    "a number": "42",
    "JSON, but no task": '{"task": "poc.stop"}',
    "deep nesting": "[" * 100_000,
    "half a message": raw_message("poc.stop", "half", {}, "poc.test")[:100],
    "no headers": changed(headers={}),
    "pickle": changed(
        **{"content-type": "application/x-python-serialize", "body": "gASVAAAAAAAAAAAu"}
    ),
    "deep body": changed(body=base64.b64encode(b"[" * 100_000).decode()),
}
#: Logged and dropped by Celery.
DROPPED = {"unknown task": raw_message("poc.steal", "bad", {}, "poc.test")}


@pytest.fixture
def settings(shared_settings: Settings, shared_worker: Any) -> Settings:
    """One worker for all tests: it must survive them all."""
    return shared_settings


@pytest.fixture
def direct(settings: Settings) -> Iterator[redis.Redis]:
    """All that a program needs."""
    with contextlib.closing(redis.Redis.from_url(settings.redis_url)) as client:
        yield client


def test_a_round_by_redis_alone(direct: redis.Redis, store: Store) -> None:
    """LPUSH and GET are enough to open a round, run it, stop it and read its end."""
    opened = meta(direct, push(direct, "poc.init", {"config": CONFIG, "round_id": "raw"}))
    assert (opened["status"], opened["result"]["round_id"]) == ("SUCCESS", "raw")

    ticket = push(direct, "poc.generate", {})
    assert meta(direct, ticket)["status"] == "PROGRESS"
    wait_until(lambda: store.status().total_valid, description="a valid nonce")
    stopped = meta(direct, push(direct, "poc.stop", {}))
    assert stopped["result"]["state"] == "STOPPED"

    wait_until(lambda: meta(direct, ticket)["status"] == "SUCCESS", description="the ticket's end")
    ended = meta(direct, ticket)["result"]
    assert ended["total_valid"] == direct.hlen("poc:test:nonces:raw") > 0


def test_a_refusal_is_readable_without_python(direct: redis.Redis) -> None:
    """The result has the error's class and its message as plain JSON."""
    failed = meta(direct, push(direct, "poc.init", {"config": CONFIG | {"r_target": 3}}))
    assert failed["status"] == "FAILURE"
    assert failed["result"]["exc_type"] == "InvalidRequest"
    (message,) = failed["result"]["exc_message"]
    assert message == "config.r_target: Input should be less than or equal to 2 (got 3)"
    assert failed["traceback"] is None


def test_a_defect_shows_its_traceback_to_the_log_alone(
    direct: redis.Redis, shared_worker: Any
) -> None:
    """Given an outcome in Redis that can't be read, the caller learns what, the operator where."""
    direct.set("poc:test:command:broken", "no JSON", ex=60)
    failed = meta(direct, push(direct, "poc.stop", {}, "broken"))
    assert (failed["status"], failed["result"]["exc_type"]) == ("FAILURE", "JSONDecodeError")
    assert failed["traceback"] is None
    assert ".py" not in json.dumps(failed)
    wait_until(lambda: "Traceback (most recent call last)" in shared_worker.log, description="it")
    assert "worker/queue/tasks.py" in shared_worker.log


def test_a_repeat_is_carried_out_once(direct: redis.Redis) -> None:
    """Given a message that was pushed again with its id, it gets the same answer."""
    task_id = push(direct, "poc.init", {"config": CONFIG, "replace": True})
    first = meta(direct, task_id)["result"]
    direct.delete(f"celery-task-meta-{task_id}")
    push(direct, "poc.init", {"config": CONFIG, "replace": True}, task_id)
    assert meta(direct, task_id)["result"]["round_id"] == first["round_id"]


def test_another_message_under_the_id_of_an_open_ticket_does_not_end_it(
    direct: redis.Redis, store: Store
) -> None:
    """Given a stop, wrong arguments and an unknown task, then it ends when the round does."""
    ticket = push(direct, "poc.generate", {"config": CONFIG, "replace": True})
    assert meta(direct, ticket)["status"] == "PROGRESS"
    for task, kwargs in (("poc.stop", {}), ("poc.generate", {"x": 1}), ("poc.steal", {})):
        push(direct, task, kwargs, ticket)
    # A command that comes later is carried out when those are.
    opened = meta(direct, push(direct, "poc.init", {"config": CONFIG}))
    assert opened["result"]["exc_type"] == "RoundInProgress"
    assert meta(direct, ticket)["status"] == "PROGRESS"
    assert store.status().state == PoCState.GENERATING
    assert meta(direct, push(direct, "poc.stop", {}))["status"] == "SUCCESS"
    wait_until(lambda: meta(direct, ticket)["status"] == "SUCCESS", description="the ticket's end")


def test_a_command_that_was_mended_may_keep_its_id(direct: redis.Redis) -> None:
    """Given one that was refused, then its ticket has the end of the round that it opened."""
    ticket = push(direct, "poc.generate", {"x": 1})
    assert meta(direct, ticket)["status"] == "FAILURE"
    push(direct, "poc.generate", {"config": CONFIG, "replace": True}, ticket)
    wait_until(lambda: meta(direct, ticket)["status"] == "PROGRESS", description="progress")
    push(direct, "poc.stop", {})
    wait_until(lambda: meta(direct, ticket)["status"] == "SUCCESS", description="the end")


@pytest.mark.parametrize("task", ["celery.starmap", "celery.map", "celery.chord_unlock"])
def test_a_task_of_celerys_own_is_unknown(
    task: str, direct: redis.Redis, store: Store, shared_worker: Any
) -> None:
    """It would run for whoever may enqueue. One line says so; the caller hears what there is."""
    before, began = store.status().round_id, len(shared_worker.log)
    inner = {"task": "poc.init", "kwargs": {"config": CONFIG, "replace": True}, "args": []}
    failed = meta(direct, push(direct, task, {"task": inner, "it": [[]]}))
    assert (failed["status"], failed["result"]["exc_type"]) == ("FAILURE", "NotRegistered")
    there = "there are poc.cancel, poc.generate, poc.init, poc.stop, poc.validate"
    assert failed["result"]["exc_message"] == [f"there is no task {task!r}; {there}"]
    assert store.status().round_id == before
    said = shared_worker.log[began:]
    assert f"a command is refused: there is no task '{task}'" in said
    assert "Traceback" not in said


def test_a_name_of_half_a_character_is_shown_in_whole_ones(direct: redis.Redis) -> None:
    """A script reads what is stored, and JSON in Redis knows no other."""
    failed = meta(direct, push(direct, "poc.\ud800", {}))
    assert failed["result"]["exc_type"] == "NotRegistered"
    assert r"'poc.\\ud800'" in failed["result"]["exc_message"][0]


def test_no_other_list_is_consumed(direct: redis.Redis, settings: Settings) -> None:
    """Remote control can't make a worker take commands from where more users may write."""
    with contextlib.closing(celery_app(settings)) as app:
        app.control.add_consumer("x.celery.pidbox", reply=True, timeout=1)
        (queues,) = app.control.inspect(timeout=2).active_queues().values()
    assert [queue["name"] for queue in queues] == ["poc.test"]


@pytest.mark.parametrize("exchange", ["", "reply.celery.pidbox"])
@pytest.mark.parametrize("to", ["poc:test:tombstone:r1", "poc.test", 5])
def test_remote_control_answers_to_askers_only(
    to: Any, exchange: str, direct: redis.Redis, settings: Settings, shared_worker: Any
) -> None:
    """Given a ping that wants its answer elsewhere, none is written, and the next asker has his."""
    message = json.loads(changed())
    asked = {"method": "ping", "arguments": {}, "destination": None, "ticket": "t"}
    asked["reply_to"] = {"exchange": exchange, "routing_key": to}
    message["body"] = base64.b64encode(json.dumps(asked).encode()).decode()
    said = shared_worker.log.count("no answer to")
    # Where an answer by its exchange would be led to.
    direct.sadd("_kombu.binding.reply.celery.pidbox", f"{to}\x06\x16\x06\x16{to}")
    assert direct.publish("/0.celery.pidbox", json.dumps(message)) == 1
    wait_until(lambda: shared_worker.log.count("no answer to") > said, description="the refusal")
    with contextlib.closing(celery_app(settings)) as app:
        (answer,) = app.control.ping(timeout=5, limit=1)
    assert list(answer.values()) == [{"ok": "pong"}]
    assert not direct.exists(str(to))
    direct.delete("_kombu.binding.reply.celery.pidbox")


@pytest.mark.parametrize("name", [*DEAD, *DROPPED])
def test_what_is_no_task_does_no_harm(
    name: str, direct: redis.Redis, store: Store, shared_worker: Any
) -> None:
    """The same worker runs the next task; what can't be read at all is kept, whole."""
    direct.delete("poc:test:dead_letters")
    item: Any = (DEAD | DROPPED)[name]
    direct.lpush("poc.test", item)
    assert meta(direct, push(direct, "poc.stop", {}))["status"] == "SUCCESS"

    assert shared_worker.process.poll() is None
    kept = [item if isinstance(item, bytes) else item.encode()] if name in DEAD else []
    assert direct.lrange("poc:test:dead_letters", 0, -1) == kept
    assert store.status().state == PoCState.STOPPED


@pytest.mark.parametrize("stray", [b"hello", b"\xff\x00", b"{}", b'{"task": "x", "result": "y"}'])
def test_a_stray_item_in_a_queue_of_ours_holds_up_no_answer(
    stray: bytes, direct: redis.Redis, shared_worker: Any
) -> None:
    """Given one in front of each, then a verdict and a round's end come all the same."""
    direct.delete("poc:test:dead_letters")
    direct.rpush("poc:test:endings", stray)
    direct.rpush("poc:test:verdicts", stray)
    opened = push(direct, "poc.generate", {"config": CONFIG, "replace": True})
    batch = {key: CONFIG[key] for key in ("block_hash", "block_height", "public_key")}
    judged = push(direct, "poc.validate", {"batch": {**batch, "nonces": [1], "dist": [0.5]}})
    wait_until(lambda: meta(direct, judged)["status"] == "SUCCESS", description="the verdict")
    push(direct, "poc.stop", {})
    wait_until(lambda: meta(direct, opened)["status"] == "SUCCESS", description="the ticket's end")
    assert direct.lrange("poc:test:dead_letters", 0, -1) == [stray]
    assert shared_worker.process.poll() is None


class Bomb:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("content_type", ["application/x-python-serialize", "pickle", "binary"])
@pytest.mark.parametrize("way", ["the queue", "remote control"])
def test_a_pickle_is_never_loaded(
    way: str,
    content_type: str,
    direct: redis.Redis,
    shared_worker: Any,
    tmp_path: Path,
) -> None:
    """Given one that would run code, then it does not, and the worker takes the next command."""
    harm = tmp_path / "harm"
    pickled = base64.b64encode(pickle.dumps([[], {"x": Bomb(harm)}, {}])).decode()
    message = changed(**{"content-type": content_type, "body": pickled})
    if way == "the queue":
        direct.lpush("poc.test", message)
    else:
        assert direct.publish("/0.celery.pidbox", message) == 1
    assert meta(direct, push(direct, "poc.stop", {}))["status"] == "SUCCESS"
    assert shared_worker.process.poll() is None
    assert not harm.exists()
    # The bomb is a real one.
    pickle.loads(base64.b64decode(pickled))
    assert harm.exists()
