"""Bad input by any Celery client: a readable refusal, and nothing has changed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from math import nan
from typing import Any

import pytest
import redis
from celery import Celery

from fake_engine import fake_distance
from shared.broker import celery_app
from shared.config import MAX_NONCE, PoCState
from shared.errors import InvalidRequest, RoundInProgress, RoundMismatch, RoundNotInitialized
from shared.settings import Settings
from shared.status import NodeStatus
from shared.store import Store
from shared.wire import MAX_PROOF_NONCES
from support import wait_until

pytestmark = [
    pytest.mark.functional,
    # Celery's own result backend calls it.
    pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning"),
]

#: What heartbeats move; all else in a status only commands and results change.
MOVING = {"updated_at", "workers"}

CONFIG = {"block_hash": "b", "block_height": 1, "public_key": "k", "r_target": 1.0}
BATCH = {
    "public_key": "k",
    "block_hash": "b",
    "block_height": 1,
    "nonces": [0, 1],
    "dist": [0.5, 0.25],
}

#: Calls that are refused, and what the refusal says. All that a request may be wrong in is in the
#: unit test of requests; here is what the wire, the task or the model has a part in.
BAD_CALLS: dict[str, tuple[str, dict[str, Any], str]] = {
    "no number in a config": (
        "poc.init",
        {"config": CONFIG | {"r_target": nan}},
        "config.r_target: Input should be",
    ),
    "unknown field of a config": (
        "poc.generate",
        {"config": CONFIG | {"r_tarket": 1.0}},
        "config.r_tarket: Extra inputs are not permitted",
    ),
    **{
        f"beyond the model, {task}": (
            task,
            {"config": CONFIG | {"seq_len": 1025}},
            "seq_len=1025: the model computes at most 1024",
        )
        for task in ("poc.init", "poc.generate", "poc.validate")
    },
    "no number in a batch": (
        "poc.validate",
        {"batch": BATCH | {"dist": [nan, 0.5]}},
        "batch.dist.0: Input should be a finite number",
    ),
    "far too large a number": (
        "poc.validate",
        {"batch": BATCH | {"nonces": [0, 10**100]}},
        r"batch.nonces.1: .*\(got 1000+\.\.\.\)",
    ),
    "a huge batch": (
        "poc.validate",
        {
            "batch": BATCH
            | {
                "nonces": list(range(MAX_PROOF_NONCES + 1)),
                "dist": [0.5] * (MAX_PROOF_NONCES + 1),
            }
        },
        f"batch.nonces: List should have at most {MAX_PROOF_NONCES} items",
    ),
    "an argument called self": ("poc.stop", {"self": 1}, "self: Extra inputs are not permitted"),
}


@pytest.fixture
def settings(shared_settings: Settings, shared_worker: Any) -> Settings:
    """One worker for all tests: it must survive them all."""
    return shared_settings


@pytest.fixture
def app(settings: Settings) -> Iterator[Celery]:
    """Any Celery client: it knows nothing of our models."""
    with contextlib.closing(celery_app(settings)) as app:
        yield app


@pytest.fixture
def stopped(app: Celery, store: Store) -> dict[str, Any]:
    """The status of a round that has been."""
    if store.status().state != PoCState.STOPPED:
        send(app, "poc.init", config=CONFIG)
        send(app, "poc.stop")
    return picture(store)


def send(app: Celery, task: str, *args: Any, **kwargs: Any) -> Any:
    """What `task` gives, or raises."""
    return app.send_task(task, args, kwargs).get(timeout=10)


def picture(store: Store) -> dict[str, Any]:
    """The status, without what heartbeats move."""
    return store.status().model_dump(exclude=MOVING)


def refused(app: Celery, task: str, *args: Any, **kwargs: Any) -> str:
    """Why `task` is refused as an invalid request."""
    with pytest.raises(InvalidRequest) as caught:
        send(app, task, *args, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize("task", ["poc.generate", "poc.validate"])
def test_a_command_needs_a_round(task: str, app: Celery, store: Store, settings: Settings) -> None:
    """Given a namespace without history, what needs a round says that there is none."""
    with contextlib.closing(redis.Redis.from_url(settings.redis_url)) as direct:
        direct.delete(*direct.scan_iter(f"poc:{settings.namespace}:*"))
    with pytest.raises(RoundNotInitialized, match=r"^Round not initialized$"):
        send(app, task)
    assert picture(store) == NodeStatus().model_dump(exclude=MOVING)


@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_bad_call_is_refused(
    name: str, app: Celery, store: Store, stopped: dict[str, Any]
) -> None:
    """What is missing, unknown or does not go together is named."""
    task, kwargs, message = BAD_CALLS[name]
    assert re.search(message, refused(app, task, **kwargs))
    assert picture(store) == stopped


@pytest.mark.parametrize("task", ["poc.init", "poc.generate", "poc.validate", "poc.stop"])
def test_positional_arguments_are_refused(
    task: str, app: Celery, store: Store, stopped: dict[str, Any]
) -> None:
    """Their order is no part of the contract; the message has the names."""
    assert "positional arguments are not taken; name them: " in refused(app, task, CONFIG)
    assert picture(store) == stopped


def test_many_bad_fields_are_named_in_short(app: Celery) -> None:
    """A hostile batch does not fill the log and the result backend with its errors."""
    batch = BATCH | {"nonces": list(range(-1000, 0)), "dist": [0.5] * 1000}
    message = refused(app, "poc.validate", batch=batch)
    assert message.startswith("batch.nonces.0: ")
    assert message.endswith("; and 995 more")
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("x" * 1_000_000, "x" * 77 + "...: Extra inputs"),
        ("a\nb", r"a\nb: Extra inputs"),
        ("\ud800", "Input should be a valid string"),
    ],
)
def test_an_argument_of_any_name_is_named_in_short(name: str, shown: str, app: Celery) -> None:
    """And in characters that a log can hold: it can't forge a line there."""
    message = refused(app, "poc.stop", **{name: 1})
    assert message.startswith(shown)
    assert len(message) < 200


def test_a_refused_command_is_logged_without_a_traceback(app: Celery, shared_worker: Any) -> None:
    """Expected trouble is no defect of the worker."""
    refused(app, "poc.stop", nonsense=1)
    wait_until(lambda: "nonsense: Extra inputs" in shared_worker.log, description="the line")
    assert "Traceback" not in shared_worker.log


def test_a_batch_of_another_block_is_refused(
    app: Celery, store: Store, stopped: dict[str, Any]
) -> None:
    """The round's target is another one: its distances would accuse an honest node."""
    with pytest.raises(RoundMismatch, match="is of block other at 1, the current round"):
        send(app, "poc.validate", batch=BATCH | {"block_hash": "other"})
    with pytest.raises(RoundMismatch, match="of block b at 1, the config beside it"):
        send(app, "poc.validate", batch=BATCH, config=CONFIG | {"block_hash": "other"})
    assert picture(store) == stopped


def test_nonces_of_another_node_are_refused(
    app: Celery, store: Store, stopped: dict[str, Any]
) -> None:
    """When the config says how many nodes there are, a node can't submit another's nonces."""
    with pytest.raises(RoundMismatch, match="1 of 2 nonces are not of node 0 of 2, the first is 1"):
        send(app, "poc.validate", batch=BATCH, config=CONFIG | {"node_count": 2})
    with pytest.raises(RoundMismatch, match=r"node_id 5 is not in \[0, 2\)"):
        send(app, "poc.validate", batch=BATCH | {"node_id": 5}, config=CONFIG | {"node_count": 2})
    assert picture(store) == stopped


@pytest.mark.parametrize("task", ["poc.generate", "poc.validate"])
def test_another_round_is_refused(
    task: str, app: Celery, store: Store, stopped: dict[str, Any]
) -> None:
    """A command for a round that is not the current one is late."""
    with pytest.raises(RoundMismatch, match="another"):
        send(app, task, round_id="another")
    assert picture(store) == stopped


@pytest.mark.parametrize("task", ["poc.init", "poc.generate", "poc.validate"])
def test_a_round_in_progress_is_not_replaced_unasked(
    task: str, app: Celery, store: Store, stopped: dict[str, Any]
) -> None:
    """While GENERATING a new config is refused; the round goes on."""
    app.send_task("poc.generate")
    wait_until(lambda: store.status().state == PoCState.GENERATING, description="the generation")
    with pytest.raises(RoundInProgress, match=r"^Round already in progress$"):
        send(app, task, config=CONFIG)
    status = store.status()
    assert (status.state, status.round_id) == (PoCState.GENERATING, stopped["round_id"])
    send(app, "poc.stop")


@pytest.mark.parametrize("nonces", [[], [MAX_NONCE], [MAX_NONCE, 0, 2**53 + 1]])
def test_what_is_only_unusual_is_taken(nonces: list[int], app: Celery) -> None:
    """No nonces at all, and the largest there are, get a verdict with the nonces unchanged."""
    batch = BATCH | {"nonces": nonces, "dist": [0.5] * len(nonces)}
    verdict = send(app, "poc.validate", batch=batch, config=CONFIG)
    assert verdict["nonces"] == nonces
    assert verdict["dist"] == [fake_distance("b", "k", nonce) for nonce in nonces]
    assert verdict["n_invalid"] == sum(d > 1.0 for d in verdict["dist"])
