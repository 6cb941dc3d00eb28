"""A real Celery worker over our transport meets items that are not messages."""

from __future__ import annotations

import base64
import bz2
import contextlib
import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celery
import kombu
import pytest
import redis

from support import ROOT, wait_until
from worker.children import end, spawn

pytestmark = pytest.mark.functional

QUEUE = "poc.test"
DEAD = "poc:test:dead_letters"
TRANSPORT = "worker.queue.transport:Transport"
TAKEN = "poc:test:taken:w"
OPTIONS = {"dead_letters_key": DEAD, "taken_key": TAKEN}

APP = f"""
import os
from celery import Celery

url = os.environ["TEST_REDIS_URL"]
app = Celery("t", broker=url, backend=url)
app.conf.update(
    broker_transport={TRANSPORT!r},
    broker_transport_options={OPTIONS!r},
    task_default_queue={QUEUE!r},
    broker_connection_retry_on_startup=True,
    worker_disable_prefetch=True,
    broker_channel_error_retry=True,
)

@app.task(name="t.add")
def add(a, b):
    return a + b
"""


def envelope(**changes: Any) -> dict[str, Any]:
    """A good task message as another language would push it; None removes a part."""
    task_id = changes.pop("task_id", None) or str(uuid.uuid4())
    body = json.dumps([[2, 3], {}, {"callbacks": None, "errbacks": None}]).encode()
    message: dict[str, Any] = {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": "t.add", "id": task_id, "root_id": task_id},
        "properties": {
            "correlation_id": task_id,
            "body_encoding": "base64",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
            "delivery_tag": str(uuid.uuid4()),
        },
    }
    for path, value in changes.items():
        holder, (*parents, last) = message, path.split("__")
        for parent in parents:
            holder = holder[parent]
        holder[last] = value
    return message


def without(*path: str) -> dict[str, Any]:
    """A task message that lacks one part."""
    message = holder = envelope()
    for part in path[:-1]:
        holder = holder[part]
    del holder[path[-1]]
    return message


def body_of(*parts: Any) -> str:
    """A body as it travels."""
    return base64.b64encode(json.dumps(parts).encode()).decode()


V1_BODY = base64.b64encode(b'{"task": "t.add", "args": [1, 2], "kwargs": {}}').decode()

POISON: dict[str, bytes] = {
    "text": b"hello",
    "nothing": b"",
    "not UTF-8": b"\xff\xfe\x00{",
    "null": b"null",
    "number": b"42",
    "a list": b"[1, 2]",
    "an empty object": b"{}",
    "deep list": b"[" * 200_000,
    "deep object": b'{"a":' * 200_000,
    "huge number": b"9" * 10_000,
    **{
        name: json.dumps(message).encode()
        for name, message in {
            "no properties": without("properties"),
            "no delivery_tag": without("properties", "delivery_tag"),
            "tag is null": envelope(properties__delivery_tag=None),
            "tag is a list": envelope(properties__delivery_tag=[1]),
            "tag is half a character": envelope(properties__delivery_tag="\ud800"),
            "properties is text": envelope(properties="x"),
            "headers is text": envelope(headers="x"),
            "headers is a list": envelope(headers=["x"]),
            "task is a list": envelope(headers__task=["t.add"]),
            "task has no id": without("headers", "id"),
            "old protocol": envelope(headers={}, body=V1_BODY),
            "no headers": without("headers"),
            "headers is null": envelope(headers=None),
            "eta is an object": envelope(headers__eta={"at": 1}),
            "expires is a list": envelope(headers__expires=[]),
            "time limit is text": envelope(headers__timelimit="x"),
            "one time limit": envelope(headers__timelimit=[1]),
            "retries is text": envelope(headers__retries="x"),
            "body is not base64": envelope(body="x"),
            "body is a number": envelope(body=42),
            "body in an unknown code": envelope(properties__body_encoding="rot13"),
            "no body": without("body"),
            "body is not JSON": envelope(body=base64.b64encode(b"[").decode()),
            "deep body": envelope(body=base64.b64encode(b"[" * 200_000).decode()),
            "body has two parts": envelope(body=body_of([], {})),
            "arguments are no object": envelope(body=body_of([], [1], {})),
            "third part is a number": envelope(body=body_of([], {}, 3)),
            "third part is text": envelope(body=body_of([], {}, "g")),
            "errbacks is a number": envelope(body=body_of([], {}, {"errbacks": 5})),
            "a chain": envelope(body=body_of([], {}, {"chain": [{"task": "t.add"}]})),
            "a chain in the headers": envelope(headers__chain=[{"task": "t.add"}]),
            "callbacks in the headers": envelope(headers__callbacks=[{"task": "t.add"}]),
            "errbacks in the headers": envelope(headers__errbacks=[{"task": "t.add"}]),
            "a chord in the headers": envelope(headers__chord={"task": "t.add"}),
            "an endless name": envelope(headers__task="x" * 5000),
            "an endless origin": envelope(headers__origin="x" * 5000),
            "shadow is a list": envelope(headers__shadow=["x"]),
            "stamps": envelope(headers__stamps={"a": 1}),
            "stamped headers": envelope(headers__stamped_headers=5),
            "id is empty": envelope(headers__id=""),
            "id is half a character": envelope(headers__id="\ud800"),
            "id is endless": envelope(headers__id="x" * 1000),
            "an eta": envelope(headers__eta="2099-01-01T00:00:00+00:00"),
            "bad expires": envelope(headers__expires="tomorrow"),
            "compressed": envelope(headers__compression="zlib"),
            "poses as an answer": envelope(
                headers__timelimit=5,
                properties__delivery_info={"exchange": "x.pidbox", "routing_key": "celery"},
            ),
            "a pickle": envelope(**{"content-type": "application/x-python-serialize"}),
        }.items()
    },
}


@pytest.fixture(scope="module")
def client(redis_server: Any) -> Iterator[redis.Redis]:
    """A client of a server that holds nothing."""
    with contextlib.closing(redis.Redis.from_url(redis_server.url)) as connected:
        connected.flushall()
        yield connected


@pytest.fixture(scope="module")
def worker(
    client: redis.Redis, redis_server: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A worker process and its log; the same one for all tests: it must survive them all."""
    directory = tmp_path_factory.mktemp("worker")
    (directory / "poisoned.py").write_text(APP)
    log = directory / "log"
    options = ["-P", "threads", "-c", "2", "--without-gossip", "--without-mingle", "-l", "INFO"]
    process = spawn(
        [sys.executable, "-m", "celery", "-A", "poisoned", "worker", *options],
        env=os.environ | {"PYTHONPATH": f"{directory}:{ROOT}", "TEST_REDIS_URL": redis_server.url},
        cwd=directory,
        log_path=log,
    )
    try:
        wait_until(lambda: b" ready." in log.read_bytes(), 60, "the worker to be ready")
        yield process, log
    finally:
        end(process)


def runs_a_good_task(client: redis.Redis) -> bool:
    """Push a good task behind whatever lies in the queue and see its result."""
    task_id = str(uuid.uuid4())
    client.lpush(QUEUE, json.dumps(envelope(task_id=task_id)))
    raw = wait_until(lambda: client.get(f"celery-task-meta-{task_id}"), 10, "a good task's result")
    return bool(json.loads(raw)["result"] == 5)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", POISON)
def test_a_poison_item_is_kept_and_the_worker_goes_on(
    name: str, client: redis.Redis, worker: tuple[subprocess.Popen[bytes], Path]
) -> None:
    """The same process runs the next task, and the item can be inspected, whole."""
    process, log = worker
    client.delete(DEAD)
    said = log.stat().st_size
    client.lpush(QUEUE, POISON[name])
    assert runs_a_good_task(client)
    assert process.poll() is None
    assert client.lrange(DEAD, 0, -1) == [POISON[name]]
    assert 6 * 86_400 < client.ttl(DEAD) <= 7 * 86_400  # type: ignore[operator]
    new = log.read_bytes()[said:]
    assert new.count(b"of the queue that can't be read") == 1
    assert b"Traceback" not in new
    assert POISON[name] not in client.lrange(TAKEN, 0, -1)  # type: ignore[operator]


def test_an_unknown_header_does_not_reach_celery(
    client: redis.Redis, worker: tuple[subprocess.Popen[bytes], Path]
) -> None:
    """A tracer's does no harm, and one of a request's own fields changes nothing."""
    process, log = worker
    said = log.stat().st_size
    task_id = str(uuid.uuid4())
    more = {"traceparent": "00-1", "is_eager": True, "called_directly": [], "args": "x"}
    message = envelope(task_id=task_id)
    message["headers"] |= more
    client.lpush(QUEUE, json.dumps(message))
    raw = wait_until(lambda: client.get(f"celery-task-meta-{task_id}"), 10, "its result")
    assert json.loads(raw)["result"] == 5  # type: ignore[arg-type]
    assert process.poll() is None
    assert b"Traceback" not in log.read_bytes()[said:]


def test_an_unknown_task_does_no_harm(
    client: redis.Redis, worker: tuple[subprocess.Popen[bytes], Path]
) -> None:
    """Celery logs and drops it."""
    process, _ = worker
    client.lpush(QUEUE, json.dumps(envelope(headers__task="t.unknown")))
    assert runs_a_good_task(client)
    assert process.poll() is None


@pytest.mark.parametrize("name", POISON)
def test_many_of_a_kind_take_no_place_of_the_worker(
    name: str, client: redis.Redis, worker: tuple[subprocess.Popen[bytes], Path]
) -> None:
    """More of them than the pool has threads, and it still runs what is good."""
    client.lpush(QUEUE, *[POISON[name]] * 3)
    assert runs_a_good_task(client)


def test_what_is_compressed_is_not_unpacked(
    client: redis.Redis, worker: tuple[subprocess.Popen[bytes], Path]
) -> None:
    """Given some hundred bytes that would become 256 MiB, then no memory is taken for them."""
    process, _ = worker
    bomb = base64.b64encode(bz2.compress(bytes(256 << 20))).decode()
    message = envelope(body=bomb, headers__compression="application/x-bz2")
    assert runs_a_good_task(client)
    before = peak_memory(process.pid)
    client.lpush(QUEUE, json.dumps(message))
    assert runs_a_good_task(client)
    assert peak_memory(process.pid) - before < 64 << 20


def peak_memory(pid: int) -> int:
    """The most bytes that a process ever had."""
    (line,) = (
        each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmHWM" in each
    )
    return int(line.split()[1]) << 10


def test_what_is_huge_is_kept_in_part(
    client: redis.Redis, worker: tuple[subprocess.Popen[bytes], Path]
) -> None:
    """A hundred of them must not fill Redis."""
    client.delete(DEAD)
    client.lpush(QUEUE, b"x" * 3_000_000)
    assert runs_a_good_task(client)
    (kept,) = client.lrange(DEAD, 0, -1)  # type: ignore[misc]
    assert len(kept) == 1 << 20


@pytest.mark.parametrize(
    ("refuse", "allow"),
    [
        (["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"]),
        (["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"]),
    ],
)
def test_a_redis_that_refuses_for_a_while_ends_no_worker(
    refuse: list[str],
    allow: list[str],
    client: redis.Redis,
    worker: tuple[subprocess.Popen[bytes], Path],
) -> None:
    """Read-only in a fail-over, or out of memory: the worker waits, and goes on."""
    process, log = worker
    said = log.stat().st_size
    client.lpush(QUEUE, json.dumps(envelope()))
    client.execute_command(*refuse)
    try:
        if refuse[0] == "REPLICAOF":
            # Celery says either what kind of error it is, or what Redis says.
            signs = re.compile(rb"ReadOnlyError|read only replica")
            wait_until(lambda: signs.search(log.read_bytes()[said:]), 20, "the worker to notice")
    finally:
        client.execute_command(*allow)
    assert runs_a_good_task(client)
    assert process.poll() is None


@pytest.mark.parametrize("payload", [b"{}", b"hello", b"\xff", b"[" * 200_000])
def test_a_bad_broadcast_does_no_harm(
    payload: bytes, client: redis.Redis, worker: tuple[subprocess.Popen[bytes], Path]
) -> None:
    """Control commands come by publish and subscribe; the same stray bytes can come there."""
    process, _ = worker
    assert client.publish("/0.celery.pidbox", payload) == 1
    assert runs_a_good_task(client)
    assert process.poll() is None


def test_the_list_is_capped(
    client: redis.Redis, worker: tuple[subprocess.Popen[bytes], Path]
) -> None:
    """A sender gone mad fills neither Redis nor the disk: the newest hundred stay."""
    client.delete(DEAD)
    client.lpush(QUEUE, *(f"bad {i}" for i in range(150)))
    assert runs_a_good_task(client)
    kept = client.lrange(DEAD, 0, -1)
    assert kept[0] == b"bad 149"  # type: ignore[index]
    assert len(kept) == 100  # type: ignore[arg-type]


def test_an_item_that_cannot_be_kept_is_logged_whole(
    client: redis.Redis, worker: tuple[subprocess.Popen[bytes], Path]
) -> None:
    """A key of another type in the way ends no worker and loses no item silently."""
    process, log = worker
    client.set(DEAD, "in the way")
    item = b"z" * 1000
    client.lpush(QUEUE, item)
    assert runs_a_good_task(client)
    client.delete(DEAD)
    assert process.poll() is None
    assert item in log.read_bytes()


def test_control_commands_still_get_their_answers(
    redis_server: Any, worker: tuple[subprocess.Popen[bytes], Path]
) -> None:
    """Answers are no tasks, and pass through lists as well: Flower and `inspect` need them."""
    app = celery.Celery("caller", broker=redis_server.url)
    app.conf.update(broker_transport=TRANSPORT, broker_transport_options={"dead_letters_key": DEAD})
    with contextlib.closing(app):
        (answer,) = app.control.ping(timeout=5, limit=1)
    assert list(answer.values()) == [{"ok": "pong"}]


def test_what_was_taken_is_noted_as_it_was(
    client: redis.Redis, worker: tuple[subprocess.Popen[bytes], Path]
) -> None:
    """Byte for byte, and no list that its sender names can get it."""
    client.delete(TAKEN, "poc:test:endings")
    task_id = str(uuid.uuid4())
    says = {"exchange": "", "routing_key": "poc:test:endings"}
    message = json.dumps(envelope(task_id=task_id, properties__delivery_info=says)).encode()
    client.lpush(QUEUE, message)
    wait_until(lambda: client.get(f"celery-task-meta-{task_id}"), 10, "its result")
    assert client.lrange(TAKEN, 0, -1) == [message]
    client.client_kill_filter(_type="normal", skipme=True)  # kombu would give it back now
    assert runs_a_good_task(client)
    assert client.lrange(TAKEN, -1, -1) == [message]
    assert not client.exists("poc:test:endings")


def test_tls_urls_keep_their_meaning() -> None:
    """Naming the transport must not lose what the URL's scheme says."""
    tls = kombu.Connection("rediss://:pw@h:6380/1?ssl_cert_reqs=CERT_REQUIRED", transport=TRANSPORT)
    assert tls.ssl
