"""Workers and Redis that die in mid-round: counts stay exact, and every task has its answer."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from exactness import ALL_VALID, counted, without_gap
from fake_engine import fake_distance
from shared.client import PoCClient
from shared.config import PoCState
from shared.data import ProofBatch
from shared.settings import Settings, load_settings
from shared.store import Store
from shared.store.keys import Keys
from support import wait_until
from worker.node.pipeline import DEPTH
from worker.tools.embedded import EmbeddedRedis

pytestmark = pytest.mark.functional


def proof(*nonces: int) -> ProofBatch:
    """What an honest node submits."""
    return ProofBatch.of(ALL_VALID, nonces, [fake_distance("b", "k", nonce) for nonce in nonces])


def checked_more(store: Store, nonces: int) -> None:
    """Wait until the round has counted so many more."""
    goal = store.status().total_checked + nonces
    wait_until(lambda: store.status().total_checked >= goal, 20, f"{nonces} more nonces")


def test_a_killed_workers_positions_are_computed_by_another(
    client: PoCClient, store: Store, start_worker: Any
) -> None:
    """Given kill -9 in mid-round, then its claims are taken over and each nonce counts once."""
    # Its batches take so long that it holds its first two until it is killed.
    doomed = start_worker("w0", seconds=600)
    ticket = client.generate(ALL_VALID)
    held = set(range(DEPTH * ALL_VALID.batch_size))

    def found() -> set[int]:
        return set(store.rounds.found(store.status().round_id, 0, 100_000)[0])

    claims = Keys("test")("claims", store.status().round_id)
    wait_until(lambda: store._redis.hlen(claims) == DEPTH, description="its batches")
    start_worker("w1", seconds=0.02)
    checked_more(store, 40)
    assert not found() & held
    doomed.kill()
    wait_until(lambda: found() >= held, timeout=20, description="what the dead worker held")
    stopped = client.stop()
    without_gap(counted(store, stopped), open_batches=DEPTH)
    # The worker that took the ticket is long dead.
    assert ticket.wait(10).total_checked == stopped.total_checked


def test_a_validation_outlives_the_worker_that_took_it(
    client: PoCClient, store: Store, start_worker: Any
) -> None:
    """Given kill -9 in the middle of it, then another worker ends it with the same verdict."""
    doomed = start_worker("w0", seconds=0.3)
    ticket = client.validate_batch(proof(*range(40)), ALL_VALID)
    wait_until(
        lambda: store.status().validations.get(ticket.id, {}).get("done"),
        description="the first chunk",
    )
    doomed.kill()
    start_worker("w1", seconds=0.02)
    verdict = ticket.wait(20)
    assert verdict.dist == [fake_distance("b", "k", nonce) for nonce in range(40)]
    assert not verdict.fraud_detected


def test_a_round_waits_while_all_workers_are_dead(
    client: PoCClient, store: Store, start_worker: Any
) -> None:
    """The next worker goes on with it, first with what the dead held."""
    doomed = [start_worker(f"w{i}", seconds=0.05) for i in range(2)]
    ticket = client.generate(ALL_VALID)
    checked_more(store, 40)
    for worker in doomed:
        worker.kill()
    start_worker("w2", seconds=0.02)
    # Longer than a lease, so that all the dead held is free.
    checked_more(store, 600)
    stopped = client.stop()
    without_gap(counted(store, stopped), open_batches=DEPTH)
    assert ticket.wait(10).state == PoCState.STOPPED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_worker_that_is_told_to_end_gives_back_what_it_holds(
    number: int, client: PoCClient, store: Store, start_worker: Any
) -> None:
    """Then it commits the running batch, and the next worker waits for no lease."""
    leaving = start_worker("w0", seconds=0.3, POC_LEASE_S="600")
    client.generate(ALL_VALID)
    checked_more(store, 4)
    leaving.process.send_signal(number)
    assert leaving.process.wait(20) == 0
    assert store.status().workers == []
    nonces = counted(store, store.status())
    start_worker("w1", seconds=0.02, POC_LEASE_S="600")
    checked_more(store, 20)
    resumed = counted(store, client.stop())
    # What was given back came next: there is no gap.
    assert resumed[: len(nonces)] == nonces
    without_gap(resumed, open_batches=DEPTH)


def test_a_worker_that_wakes_after_its_round_changes_nothing(
    client: PoCClient, store: Store, start_worker: Any
) -> None:
    """Given one that is frozen in mid-round and wakes in the next round, its batch is refused."""
    frozen = start_worker("w0", seconds=0.3)
    client.generate(ALL_VALID, round_id="old")
    checked_more(store, 4)
    os.kill(frozen.process.pid, signal.SIGSTOP)
    try:
        start_worker("w1", seconds=0.02)
        old = client.stop()
        client.generate(ALL_VALID.model_copy(update={"block_hash": "c"}), round_id="new")
    finally:
        os.kill(frozen.process.pid, signal.SIGCONT)
    wait_until(lambda: "do not count" in frozen.log, description="the old batch to be refused")
    checked_more(store, 40)
    kept = store.rounds.status("old")
    assert kept
    assert (kept.total_checked, kept.state) == (old.total_checked, PoCState.STOPPED)
    without_gap(counted(store, client.stop()), open_batches=2 * DEPTH)


@pytest.fixture
def logging_server() -> Iterator[EmbeddedRedis]:
    """A server whose data outlives it."""
    with EmbeddedRedis(aof=True) as server:
        yield server


class TestRedisRestarts:
    """A server with an append-only file is killed under workers, controllers and tickets."""

    @pytest.fixture
    def settings(self, logging_server: EmbeddedRedis) -> Settings:
        return load_settings(
            {}, redis_url=logging_server.url, namespace="test", lease_s="2", heartbeat_s="0.2"
        )

    def test_a_round_goes_on(
        self, logging_server: EmbeddedRedis, client: PoCClient, store: Store, start_worker: Any
    ) -> None:
        """The workers stay, the round goes on, each nonce counts once, the ticket ends."""
        workers = [start_worker(f"w{i}", seconds=0.02) for i in range(2)]
        ticket = client.generate(ALL_VALID)
        validation = client.validate_batch(proof(*range(400)), ALL_VALID)
        checked_more(store, 20)
        for _ in range(2):
            logging_server.kill()
            logging_server.start()
            checked_more(store, 20)
        assert validation.wait(30).n_invalid == 0
        stopped = client.stop()
        without_gap(counted(store, stopped), open_batches=2 * DEPTH)
        assert ticket.wait(20).total_checked == stopped.total_checked
        for worker in workers:
            assert worker.process.poll() is None
            assert "Traceback" not in worker.log
            # Said once each time that it went and came, by each worker.
            went = worker.log.count("trying again until it answers")
            assert went in (1, 2)  # one, if a thread had no answer yet when it went again
            # A thread with a while to its next call has not heard yet that it came.
            wait_until(lambda of=worker, n=went: of.log.count("Redis answers again") == n)

    def test_a_worker_waits_for_a_redis_that_is_not_there(
        self, logging_server: EmbeddedRedis, client: PoCClient, store: Store, start_worker: Any
    ) -> None:
        """Started without Redis it says so, goes on trying, and works when Redis comes."""
        logging_server.kill()
        worker = start_worker("w0", wait=False)
        wait_until(
            lambda: "trying again until it answers" in worker.log, 20, "the worker to complain"
        )
        assert worker.process.poll() is None
        logging_server.start()
        client.generate(ALL_VALID)
        checked_more(store, 4)
        assert client.stop().total_checked


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0, 3])
def test_a_worker_that_is_told_to_end_does_not_wait_for_a_redis_that_hangs(
    after_s: float,
    redis_server: EmbeddedRedis,
    client: PoCClient,
    store: Store,
    start_worker: Any,
) -> None:
    """Given a Redis that accepts connections and says nothing, then SIGTERM ends it all the same.

    Sooner than the 30 s after which supervisors like to kill, also once Celery's own heartbeat,
    every two seconds, has met the silence.
    """
    worker = start_worker("w0", seconds=0.02)
    client.generate(ALL_VALID)
    checked_more(store, 4)
    assert redis_server.pid
    os.kill(redis_server.pid, signal.SIGSTOP)
    try:
        time.sleep(after_s)
        worker.process.terminate()
        assert worker.process.wait(30) == 0
    finally:
        os.kill(redis_server.pid, signal.SIGCONT)


def test_a_killed_redis_without_a_log_leaves_no_worker_hanging(
    redis_server: EmbeddedRedis, client: PoCClient, store: Store, start_worker: Any
) -> None:
    """Given no persistence, all is gone: the workers wait for the next round, and run it."""
    worker = start_worker("w0", seconds=0.02)
    client.generate(ALL_VALID)
    checked_more(store, 4)
    redis_server.kill()
    redis_server.start()
    wait_until(lambda: store.status().workers, 20, "the worker to be there again")
    assert store.status().state == PoCState.IDLE
    client.generate(ALL_VALID)
    checked_more(store, 4)
    assert worker.process.poll() is None
    without_gap(counted(store, client.stop()), open_batches=DEPTH)
