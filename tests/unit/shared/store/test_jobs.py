"""Jobs that come by HTTP: there is room for so many nonces, whoever asks and wherever they are."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from chunks import claim_chunk, verdict_on
from shared.config import PoCConfig
from shared.data import ProofBatch
from shared.errors import Cancelled, RoundNotInitialized
from shared.requests import ValidateRequest
from shared.store import Store
from shared.store.connection import Client
from shared.store.jobs import MAX_COMMANDS, MAX_NONCES, Waiting
from shared.store.keys import Keys

HALF = MAX_NONCES // 2


def room(store: Store) -> int:
    """How many nonces more would be taken; asking takes them away for a moment."""
    for nonces in (MAX_NONCES, MAX_NONCES - 2, MAX_NONCES - 4, HALF, 0):
        if store.jobs.reserve("probe", nonces, 0) is None:
            return nonces
    return -1


def open_one(store: Store, config: PoCConfig, job: str) -> None:
    """A worker has it, in chunks of two nonces."""
    in_twos = config.model_copy(update={"batch_size": 2})
    batch = ProofBatch.of(config, list(range(4)), [0.5] * 4)
    store.validations.open(job, ValidateRequest(batch=batch, config=in_twos))


def test_what_leaves_no_room_is_told_what_waits(store: Store) -> None:
    assert store.jobs.reserve("a", HALF, 60) is None
    assert store.jobs.reserve("b", HALF + 1, 60) == Waiting(HALF, 0)
    assert store.jobs.reserve("b", HALF, 60) is None
    assert store.jobs.reserve("c", 1, 60) == Waiting(MAX_NONCES, 0)


def test_of_many_at_once_as_many_are_taken_as_there_is_room_for(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        jobs = [f"j{number}" for number in range(40)]
        refused = list(pool.map(lambda job: store.jobs.reserve(job, MAX_NONCES // 10, 60), jobs))
    assert refused.count(None) == 10


def test_the_same_job_asks_for_its_room_once(store: Store) -> None:
    for _ in range(3):
        assert store.jobs.reserve("a", MAX_NONCES, 60) is None


def test_a_job_that_no_worker_opens_in_time_gives_its_room_back(store: Store) -> None:
    store.jobs.reserve("a", MAX_NONCES, 0.05)
    assert room(store) == 0
    time.sleep(0.06)
    assert room(store) == MAX_NONCES


def test_one_that_waits_for_a_worker_keeps_its_room_for_longer(store: Store) -> None:
    store.jobs.reserve("a", MAX_NONCES, 0.05)
    assert store.jobs.reserve("a", MAX_NONCES, 60, again=True) is None
    time.sleep(0.06)
    assert room(store) == 0


def test_one_that_is_open_needs_room_for_what_is_left_of_it(
    store: Store, config: PoCConfig
) -> None:
    """Also one that came by the queue, without asking."""
    open_one(store, config, "j")
    assert room(store) == MAX_NONCES - 4
    chunk = claim_chunk(store, "w", "t")
    assert chunk
    store.validations.commit(chunk, [0.5, 0.5])
    assert room(store) == MAX_NONCES - 2


def test_one_that_is_open_keeps_its_room_for_as_long_as_it_takes(
    store: Store, config: PoCConfig
) -> None:
    store.jobs.reserve("j", 4, 0.05)
    open_one(store, config, "j")
    time.sleep(0.06)
    assert room(store) == MAX_NONCES - 4


def _cancelled(store: Store) -> None:
    store.validations.cancel("c", "j", Cancelled("why"), lambda _: None)


def _judged(store: Store) -> None:
    for number in range(2):
        chunk = claim_chunk(store, "w", f"t{number}")
        assert chunk
        store.validations.commit(chunk, [0.5, 0.5])
    computed = store.validations.next_computed()
    assert computed
    store.validations.finish(computed, verdict_on(computed))


@pytest.mark.parametrize("end", [_cancelled, _judged])
def test_one_that_has_ended_gives_its_room_back(
    store: Store, config: PoCConfig, end: Callable[[Store], None]
) -> None:
    store.jobs.reserve("j", 4, 60)
    open_one(store, config, "j")
    end(store)
    assert room(store) == MAX_NONCES


@pytest.mark.parametrize("end", [_cancelled, _judged])
def test_one_that_has_ended_before_it_asks_for_more_time_takes_no_room(
    store: Store, config: PoCConfig, end: Callable[[Store], None]
) -> None:
    """Its sender may be slow."""
    store.jobs.reserve("j", 4, 60)
    open_one(store, config, "j")
    end(store)
    store.jobs.reserve("j", 4, 60, again=True)
    assert room(store) == MAX_NONCES


def test_one_that_is_refused_gives_its_room_back(store: Store, config: PoCConfig) -> None:
    """Here it is judged by a round, and there is none."""
    store.jobs.reserve("j", 4, 60)
    request = ValidateRequest(batch=ProofBatch.of(config, [1], [0.5]))
    with pytest.raises(RoundNotInitialized):
        store.validations.open("j", request)
    assert room(store) == MAX_NONCES


def test_many_commands_that_wait_leave_none(store: Store, redis: Client, keys: Keys) -> None:
    redis.rpush(keys("queue", "test"), *MAX_COMMANDS * ["{}"])
    assert store.jobs.reserve("j", 1, 60) == Waiting(0, MAX_COMMANDS)


def test_only_what_was_reserved_can_be_asked_for(store: Store) -> None:
    store.jobs.reserve("job", 1, 60)
    assert store.jobs.look("job") == {"status": "PENDING"}
    assert store.jobs.look("other") is None
