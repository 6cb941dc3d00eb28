"""Whatever lands in the queue: the worker lives, answers what is good, and stays small.

Hypothesis makes up messages that are wrong at one level each: the arguments, the text of the
body, the headers, the bytes. A run is the same each time; for more, and other ones each time:
`pytest --hypothesis-profile=thorough tests/functional/test_fuzzed_messages.py`.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from raw import meta, push, raw_message
from shared import errors
from shared.config import MAX_NONCE
from shared.settings import Settings
from shared.store.dead_letters import KEEP_ITEMS
from support import wait_until

pytestmark = [pytest.mark.functional, pytest.mark.timeout(3600)]

QUEUE = "poc.test"
#: MiB that the worker may grow by: threads, buffers, and what Python does not give back.
GROWTH = 100

CONFIG = {
    "block_hash": "b",
    "block_height": 1,
    "public_key": "k",
    "r_target": 1.5,
    "callback_url": "http://127.0.0.1:1",
}
BATCH = {
    "public_key": "k",
    "block_hash": "b",
    "block_height": 1,
    "nonces": [0, MAX_NONCE],
    "dist": [0.5, 0.25],
}
GOOD: dict[str, list[dict[str, Any]]] = {
    "poc.init": [{"config": CONFIG, "round_id": "r", "replace": True}],
    "poc.generate": [{}, {"config": CONFIG, "round_id": "r", "replace": True}],
    "poc.validate": [{}, {"batch": BATCH}, {"batch": BATCH, "config": CONFIG}],
    "poc.stop": [{}, {"round_id": "r"}],
    "poc.cancel": [{"validation": "v"}],
}


def nested(depth: int) -> Any:
    """A list in a list in a list ..."""
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


#: What a program in any language may write by mistake or on purpose.
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([10**400, -(10**4000), 2**53, MAX_NONCE, MAX_NONCE + 1])
    | st.floats()
    | st.text(max_size=20)  # half characters among them
    | st.sampled_from(["\ud800", "\0", "x" * 100_000, "%s %d {}", "../../etc", "self", "NaN"])
    | st.builds(nested, st.sampled_from([50, 400, 900])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to each part of a JSON value, as far as six steps down."""
    inner: Any = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        inner = enumerate(value)
    if len(path) == 6:
        return [path]
    return [path, *(place for key, each in inner for place in places(each, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any, *, drop: bool) -> Any:
    """`value` with another part at `path`, or without it."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(path) == 1 and drop:
        del copy[path[0]]
    else:
        copy[path[0]] = changed(copy[path[0]], path[1:], new, drop=drop)
    return copy


@st.composite
def spoiled(draw: st.DrawFn, good: st.SearchStrategy[Any]) -> Any:
    """A good value with one or two parts changed, dropped or added."""
    value = draw(good)
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(places(value)))
        if isinstance(value, dict) and draw(st.booleans()):
            name = draw(st.sampled_from(["self", "args", "task_id", "\ud800"]) | st.text())
            value = value | {name: draw(values)}
        else:
            value = changed(value, path, draw(values), drop=draw(st.booleans()))
    return value


tasks = st.sampled_from(list(GOOD))


def with_body(task: str, id: str, body: bytes) -> str:
    """A message of any body."""
    message = json.loads(raw_message(task, id, {}, QUEUE))
    return json.dumps(message | {"body": base64.b64encode(body).decode()})


@st.composite
def wrong_arguments(draw: st.DrawFn) -> bytes:
    """A task whose arguments are not what they should be."""
    task = draw(tasks)
    kwargs = draw(spoiled(st.sampled_from(GOOD[task])))
    return with_body(task, draw(st.uuids(version=4)).hex, json.dumps([[], kwargs, {}]).encode())


@st.composite
def wrong_body(draw: st.DrawFn) -> bytes:
    """A task whose body is text that not every parser reads alike, or of another shape."""
    task, task_id = draw(tasks), draw(st.uuids(version=4)).hex
    good = json.dumps([[], draw(st.sampled_from(GOOD[task])), {}])
    body = draw(
        st.one_of(
            spoiled(st.just([[], {}, {"callbacks": None}])).map(json.dumps),
            values.map(json.dumps),
            st.sampled_from(["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "[" * 900]).map(
                lambda new: good.replace("1.5", new).replace("{}", f'{{"x": {new}}}')
            ),
            st.just('[[], {"round_id": "r", "round_id": 7}, {}]'),  # which of them counts?
            st.builds(lambda depth: "[" * depth + "]" * depth, st.integers(1, 200_000)),
            st.builds(lambda n: '[[], {"x": "' + "y" * n + '"}, {}]', st.integers(0, 3_000_000)),
        )
    ).encode(errors="surrogatepass")
    return with_body(task, task_id, body)


@st.composite
def wrong_headers(draw: st.DrawFn) -> bytes:
    """A message whose envelope is not what it should be."""
    good = json.loads(raw_message(draw(tasks), draw(st.uuids(version=4)).hex, {}, QUEUE))
    # All that Celery's own clients send.
    good["headers"] |= {
        "lang": "py", "root_id": good["headers"]["id"], "parent_id": None, "group": None,
        "group_index": None, "shadow": None, "eta": None, "expires": None, "retries": 0,
        "timelimit": [None, None], "argsrepr": "()", "kwargsrepr": "{}", "origin": "gen1@h",
        "ignore_result": False, "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {},
    }  # fmt: skip
    good["properties"] |= {"reply_to": "r", "delivery_mode": 2, "priority": 0}
    return json.dumps(draw(spoiled(st.just(good)))).encode(errors="surrogatepass")


@st.composite
def wrong_bytes(draw: st.DrawFn) -> bytes:
    """A good message that was damaged on the way, or anything at all."""
    good = raw_message(draw(tasks), draw(st.uuids(version=4)).hex, {}, QUEUE).encode()
    at, end = sorted((draw(st.integers(0, len(good))), draw(st.integers(0, len(good)))))
    return draw(
        st.binary(max_size=200)
        | st.binary(max_size=8).map(lambda new: good[:at] + new + good[end:])
    )


@pytest.fixture
def settings_(shared_settings: Settings, shared_worker: Any) -> Settings:
    """One worker for all tests: it must survive them all."""
    return shared_settings


@pytest.fixture
def direct(settings_: Settings) -> Iterator[redis.Redis]:
    """All that a program needs."""
    with contextlib.closing(redis.Redis.from_url(settings_.redis_url)) as client:
        yield client


#: The share of a profile's examples; each example is several messages.
SHARE = 0.2


def fuzz(make: st.SearchStrategy[bytes | str]) -> Any:
    """Give a test `items` that `make` makes."""

    def decorate(test: Any) -> Any:
        examples = max(1, round(settings().max_examples * SHARE))
        return settings(
            max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck)
        )(given(items=st.lists(make, min_size=1, max_size=8))(test))

    return decorate


def survives(items: list[bytes | str], direct: redis.Redis, worker: Any) -> None:
    """Push `items` and a good command; the same process answers it, and no answer is a defect."""
    direct.lpush(QUEUE, *items)
    stopped = meta(direct, push(direct, "poc.stop", {}))
    assert stopped["status"] == "SUCCESS"
    assert worker.process.poll() is None
    # The tasks before it run in other threads.
    for key in direct.scan_iter("celery-task-meta-*", count=1000):
        answer = json.loads(direct.get(key) or "{}")
        assert answer["traceback"] is None
        if answer["status"] == "FAILURE":
            kind = answer["result"]["exc_type"]
            assert kind == "NotRegistered" or issubclass(getattr(errors, kind), errors.PoCError)
            assert len(json.dumps(answer)) < 10_000
        direct.delete(key)
    # Celery's own way to say that it does not know a task.
    unknown = worker.log.count("Received unregistered task")
    assert worker.log.count("Traceback (most recent call last)") == unknown


@fuzz(wrong_arguments())
@example(items=[raw_message("poc.stop", "i", {"x" * 1_000_000: 1}, QUEUE)])
def test_wrong_arguments(items: list[bytes | str], direct: redis.Redis, shared_worker: Any) -> None:
    """Refused, in a few words."""
    survives(items, direct, shared_worker)


@fuzz(wrong_body())
def test_wrong_bodies(items: list[bytes | str], direct: redis.Redis, shared_worker: Any) -> None:
    """Read as JSON says, or set aside."""
    survives(items, direct, shared_worker)


@fuzz(wrong_headers())
def test_wrong_headers(items: list[bytes | str], direct: redis.Redis, shared_worker: Any) -> None:
    """Set aside before Celery trips over them."""
    survives(items, direct, shared_worker)


@fuzz(wrong_bytes())
def test_wrong_bytes(items: list[bytes | str], direct: redis.Redis, shared_worker: Any) -> None:
    """Set aside."""
    survives(items, direct, shared_worker)


def test_a_flood_fills_nothing(direct: redis.Redis, shared_worker: Any) -> None:
    """Given a hundred MB of rubbish, the worker stays as small as it was, and Redis nearly so."""
    process = psutil.Process(shared_worker.process.pid)
    before = process.memory_info().rss
    for _ in range(5):
        items = [
            "x" * 2_000_000,
            "[" * 2_000_000,
            with_body("poc.stop", "i", b"[" * 1_500_000),
            raw_message("poc.stop", "j", {"round_id": "x" * 1_500_000}, QUEUE),
            raw_message("poc.init", "k", {"config": {"x" * 1_500_000: 1}}, QUEUE),
            *(f"{n}" for n in range(100)),
        ]
        direct.lpush(QUEUE, *items)
        survives([b""], direct, shared_worker)
    assert process.memory_info().rss - before < GROWTH << 20
    assert direct.llen("poc:test:dead_letters") == KEEP_ITEMS
    taken = "poc:test:taken:*"
    wait_until(lambda: not list(direct.scan_iter(taken)), description="nothing to come again")
