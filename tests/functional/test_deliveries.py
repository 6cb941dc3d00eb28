"""Messages that come twice, late or out of order: every task, pushed as any language does."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from exactness import ALL_VALID
from fake_engine import fake_distance
from raw import meta, push
from shared.config import PoCState
from shared.settings import Settings
from shared.store import Store
from support import wait_until

pytestmark = pytest.mark.functional

CONFIG = ALL_VALID.model_dump(mode="json", exclude_none=True)
BATCH = {
    "public_key": "k",
    "block_hash": "b",
    "block_height": 1,
    "nonces": [5, 6],
    "dist": [fake_distance("b", "k", nonce) for nonce in (5, 6)],
}


Again = Callable[[str, dict[str, Any], str], None]


@pytest.fixture
def settings(shared_settings: Settings, shared_worker: Any) -> Settings:
    """One worker for all tests."""
    return shared_settings


@pytest.fixture
def direct(settings: Settings) -> Iterator[redis.Redis]:
    """What the controller has."""
    with contextlib.closing(redis.Redis.from_url(settings.redis_url)) as client:
        yield client


def ended(direct: redis.Redis, id: str) -> dict[str, Any]:
    """A ticket's end."""
    return wait_until(
        lambda: (found := meta(direct, id))["status"] in ("SUCCESS", "FAILURE") and found,
        description="the ticket's end",
    )


@pytest.fixture
def again(direct: redis.Redis, shared_worker: Any) -> Again:
    """Deliver a message once more, and wait until the worker is through with it."""

    def again(task: str, kwargs: dict[str, Any], task_id: str) -> None:
        done = re.compile(rf"Task {task}\[{task_id}\] (succeeded|ignored|raised)")
        before = len(done.findall(shared_worker.log))
        push(direct, task, kwargs, task_id)
        wait_until(
            lambda: len(done.findall(shared_worker.log)) > before, description="the repeat to run"
        )

    return again


def test_a_generate_that_comes_twice_is_one_ticket(
    direct: redis.Redis, store: Store, again: Again
) -> None:
    """It ends once, with the round; delivered a third time after that, it revives nothing."""
    asked = {"config": CONFIG, "replace": True}
    ticket = push(direct, "poc.generate", asked)
    push(direct, "poc.generate", asked, ticket)
    wait_until(lambda: store.status().total_checked, description="a batch")
    round_id = meta(direct, ticket)["result"]["round_id"]
    stopped = meta(direct, push(direct, "poc.stop", {}))["result"]
    assert stopped["round_id"] == round_id
    first = ended(direct, ticket)

    again("poc.generate", asked, ticket)
    assert ended(direct, ticket)["result"] == first["result"]
    now = store.status()
    assert (now.state, now.round_id) == (PoCState.STOPPED, round_id)
    assert now.total_checked == stopped["total_checked"]


def test_an_init_replayed_after_the_round_changes_nothing(
    direct: redis.Redis, store: Store, again: Again
) -> None:
    """The round keeps its counters and its state."""
    asked = {"config": CONFIG, "replace": True}
    opened = push(direct, "poc.init", asked)
    meta(direct, opened)
    meta(direct, push(direct, "poc.generate", {}))
    wait_until(lambda: store.status().total_checked, description="a batch")
    stopped = meta(direct, push(direct, "poc.stop", {}))["result"]
    again("poc.init", asked, opened)
    now = store.status()
    assert (now.state, now.round_id) == (PoCState.STOPPED, stopped["round_id"])
    assert now.total_checked == stopped["total_checked"] > 0


@pytest.mark.parametrize("task", ["poc.stop", "poc.validate"])
def test_an_end_that_comes_late_again_does_not_end_what_goes_on(
    task: str, direct: redis.Redis, store: Store, again: Again
) -> None:
    """Given stop or validate, then generate, then the first one again: it goes on."""
    meta(direct, push(direct, "poc.generate", {"config": CONFIG, "replace": True}))
    first = push(direct, task, {})
    meta(direct, first)
    meta(direct, push(direct, "poc.generate", {}))
    again(task, {}, first)
    assert store.status().state == PoCState.GENERATING


def test_a_batch_that_comes_twice_is_one_validation(
    direct: redis.Redis, store: Store, again: Again
) -> None:
    """One verdict; delivered again after it, the same."""
    asked = {"batch": BATCH, "config": CONFIG}
    ticket = push(direct, "poc.validate", asked)
    push(direct, "poc.validate", asked, ticket)
    first = ended(direct, ticket)
    assert first["result"]["n_invalid"] == 0
    again("poc.validate", asked, ticket)
    assert ended(direct, ticket)["result"] == first["result"]
    assert store.status().validations == {}


@pytest.mark.parametrize("task", ["poc.init", "poc.generate"])
def test_a_stop_that_overtakes_what_opens_its_round(
    task: str, direct: redis.Redis, store: Store
) -> None:
    """The round that it names never begins, and the one that was there is left alone."""
    meta(direct, push(direct, "poc.generate", {"config": CONFIG, "replace": True}))
    before = store.status().round_id
    late = f"late-{task}"
    meta(direct, push(direct, "poc.stop", {"round_id": late}))
    refused = meta(
        direct, push(direct, task, {"config": CONFIG, "round_id": late, "replace": True})
    )
    assert refused["status"] == "FAILURE"
    assert refused["result"]["exc_type"] == "RoundMismatch"
    assert "was stopped before it began" in refused["result"]["exc_message"][0]
    now = store.status()
    assert (now.state, now.round_id) == (PoCState.GENERATING, before)


def test_what_names_an_old_round_leaves_the_new_one_alone(
    direct: redis.Redis, store: Store
) -> None:
    """A late stop changes nothing; a late generate or validate is refused."""
    old = meta(direct, push(direct, "poc.init", {"config": CONFIG, "replace": True}))["result"]
    meta(direct, push(direct, "poc.generate", {"config": CONFIG, "replace": True}))
    new = store.status().round_id
    named = {"round_id": old["round_id"]}
    assert meta(direct, push(direct, "poc.stop", named))["status"] == "SUCCESS"
    for task in ("poc.generate", "poc.validate"):
        refused = meta(direct, push(direct, task, named))
        assert refused["result"]["exc_type"] == "RoundMismatch"
    now = store.status()
    assert (now.state, now.round_id) == (PoCState.GENERATING, new)


def test_many_copies_at_once_are_carried_out_once(
    direct: redis.Redis, store: Store, again: Again, shared_worker: Any
) -> None:
    """Thirty copies of one init, run side by side by eight threads, open one round."""
    asked = {"config": CONFIG, "replace": True}
    opened = push(direct, "poc.init", asked)
    for _ in range(30):
        push(direct, "poc.init", asked, opened)
    round_id = meta(direct, opened)["result"]["round_id"]
    again("poc.init", asked, opened)
    assert store.status().round_id == round_id
    assert "Traceback" not in shared_worker.log
