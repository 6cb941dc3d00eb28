"""Rounds by real worker processes, steered through the queue."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from celeryconfig import worker_concurrency
from exactness import ALL_VALID, counted, without_gap
from fake_engine import fake_distance
from raw import meta, push
from shared.client import PoCClient
from shared.config import PoCConfig, PoCState
from shared.data import ProofBatch
from shared.errors import RoundInProgress
from shared.settings import Settings
from shared.status import WorkerStatus
from shared.store import Store
from support import wait_until
from worker.node.pipeline import DEPTH

pytestmark = pytest.mark.functional

CONFIG = PoCConfig(block_hash="b", block_height=1, public_key="k", r_target=0.2, batch_size=4)


def proof(*nonces: int) -> ProofBatch:
    """What an honest node submits."""
    return ProofBatch.of(CONFIG, nonces, [fake_distance("b", "k", nonce) for nonce in nonces])


def test_a_whole_round(client: PoCClient, store: Store, start_worker: Any) -> None:
    """Init, generate, stop: all that was checked is counted, all that is valid is there."""
    start_worker("w0", seconds=0.02)
    client.init(CONFIG)
    ticket = client.generate()
    wait_until(lambda: store.status().total_valid > 5)
    stopped = client.stop()
    ended = ticket.wait(timeout=10)

    assert ended.state == stopped.state == PoCState.STOPPED
    assert ended.total_checked == stopped.total_checked
    expected = [
        (n, d) for n in range(ended.total_checked) if (d := fake_distance("b", "k", n)) < 0.2
    ]
    assert list(zip(ended.valid_nonces, ended.valid_distances, strict=True)) == expected


@pytest.mark.parametrize(
    ("node", "first", "second"),
    [
        ({}, [0, 1, 2, 3], [4, 5, 6, 7]),
        ({"node_id": 1, "node_count": 3}, [1, 4, 7, 10], [13, 16, 19, 22]),
    ],
)
def test_the_nonces_of_a_node(
    node: dict[str, int],
    first: list[int],
    second: list[int],
    client: PoCClient,
    store: Store,
    start_worker: Any,
) -> None:
    """A node walks its own residue class, batch by batch."""
    start_worker("w0")
    client.generate(ALL_VALID.model_copy(update=node))
    wait_until(lambda: store.status().total_checked >= 8, description="two batches")
    assert counted(store, client.stop())[:8] == first + second


def test_an_init_resets_the_counters(client: PoCClient, store: Store, start_worker: Any) -> None:
    """The new round begins at zero; the old one is kept beside it."""
    start_worker("w0")
    client.generate(ALL_VALID)
    wait_until(lambda: store.status().total_checked, description="a batch")
    old = client.stop()
    new = client.init(ALL_VALID)
    assert (new.state, new.total_checked, new.total_valid) == (PoCState.IDLE, 0, 0)
    kept = store.rounds.status(old.round_id)
    assert kept
    assert kept.total_checked == old.total_checked


def test_an_init_while_generating_is_refused(client: PoCClient, start_worker: Any) -> None:
    """The running round stays as it is."""
    start_worker("w0", seconds=0.02)
    client.generate(ALL_VALID, round_id="first")
    with pytest.raises(RoundInProgress, match=r"^Round already in progress$"):
        client.init(ALL_VALID)
    assert client.stop().round_id == "first"


def test_two_workers_share_a_round(client: PoCClient, store: Store, start_worker: Any) -> None:
    """Neither overlap nor gap, and both took part."""
    start_worker("w0", seconds=0.02)
    start_worker("w1", seconds=0.03)
    client.generate(ALL_VALID)
    wait_until(lambda: store.status().total_checked >= 200, description="fifty batches")
    status = client.stop()

    without_gap(counted(store, status), open_batches=2 * DEPTH)
    wait_until(
        lambda: all(worker.computed >= 40 for worker in store.status().workers),
        description="both to have told what they computed",
    )
    assert [worker.name for worker in store.status().workers] == ["w0@test", "w1@test"]


def test_a_worker_that_comes_later_takes_part_at_once(
    client: PoCClient, store: Store, start_worker: Any
) -> None:
    """It needs no command: the round is in Redis."""
    start_worker("w0", seconds=0.02)
    client.generate(ALL_VALID)
    start_worker("w1", seconds=0.02)
    wait_until(
        lambda: {w.name: w.computed for w in store.status().workers}.get("w1@test"),
        description="the second worker's first batch",
    )
    without_gap(counted(store, client.stop()), open_batches=2 * DEPTH)


def test_a_round_goes_on_where_it_was(client: PoCClient, store: Store, start_worker: Any) -> None:
    """Stop and generate again: what was in flight at the stop is computed then, once."""
    start_worker("w0", seconds=0.05)
    client.generate(ALL_VALID)
    wait_until(lambda: store.status().total_checked >= 20, description="five batches")
    stopped = client.stop()
    client.generate()
    wait_until(
        lambda: store.status().total_checked >= stopped.total_checked + 20,
        description="five more batches",
    )
    without_gap(counted(store, client.stop()), open_batches=DEPTH)


def test_a_stop_is_seen_within_one_batch(
    client: PoCClient, store: Store, start_worker: Any
) -> None:
    """The counters stand still at once; of what the device holds, only the running batch ends."""
    start_worker("w0", seconds=1.0)
    client.generate(ALL_VALID)
    wait_until(lambda: store.status().total_checked, description="a batch")
    stopped = client.stop()

    def idle() -> WorkerStatus | None:
        (worker,) = store.status().workers
        return worker if worker.state == "idle" else None

    worker = wait_until(idle, description="the device to be free")
    assert worker is not None
    # The running batch was computed in vain, and the one that waited behind it never.
    assert worker.computed == stopped.total_checked + ALL_VALID.batch_size
    assert store.status().total_checked == stopped.total_checked


def test_a_stop_is_answered_behind_fifty_validations(
    client: PoCClient, store: Store, settings: Settings, start_worker: Any
) -> None:
    """No validation holds a slot: given all of them queued before it, it waits for no verdict."""
    start_worker("w0", seconds=0.1)
    client.generate(CONFIG)
    config = CONFIG.model_dump(mode="json")
    batches = [proof(*range(i, i + 4)).model_dump(mode="json") for i in range(50)]
    with redis.Redis.from_url(settings.redis_url) as direct:
        # In one step, so that none is taken before the last one is there.
        with direct.pipeline() as queue:
            tasks = [push(queue, "poc.validate", {"batch": b, "config": config}) for b in batches]
            stop = push(queue, "poc.stop", {})
            queue.execute()
        answer = meta(direct, stop)
        # More than a worker has slots, so they are held by none.
        assert len(store.status().validations) > worker_concurrency
        assert (answer["status"], answer["result"]["state"]) == ("SUCCESS", "STOPPED")
        verdicts = [
            wait_until(
                lambda task=task: (now := meta(direct, task))["status"] == "SUCCESS" and now,
                timeout=30,
                description="a verdict",
            )
            for task in tasks
        ]
    assert [verdict["result"]["n_invalid"] for verdict in verdicts] == [
        sum(fake_distance("b", "k", nonce) >= 0.2 for nonce in range(i, i + 4)) for i in range(50)
    ]


def test_a_validation_during_a_round(client: PoCClient, store: Store, start_worker: Any) -> None:
    """The round goes on beside it, and what it counts is its own."""
    start_worker("w0", seconds=0.02)
    start_worker("w1", seconds=0.02)
    client.generate(ALL_VALID)
    before = store.status().total_checked
    verdict = client.validate_batch(proof(*range(1000, 1200)), CONFIG).wait(30)
    assert verdict.dist == [fake_distance("b", "k", nonce) for nonce in range(1000, 1200)]
    now = store.status()
    assert now.state == PoCState.GENERATING
    # Half of the batches at least were the round's own.
    assert now.total_checked - before >= 50
    without_gap(counted(store, client.stop()), open_batches=2 * DEPTH)


def test_validating_ends_the_generation(client: PoCClient, store: Store, start_worker: Any) -> None:
    """Its ticket gets the final status, and the counters stand still."""
    start_worker("w0", seconds=0.02)
    ticket = client.generate(ALL_VALID)
    wait_until(lambda: store.status().total_checked, description="a batch")
    validating = client.validate()
    assert validating.state == PoCState.VALIDATING
    assert ticket.wait(10).total_checked == validating.total_checked
    assert counted(store, client.stop())
