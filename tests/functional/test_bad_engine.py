"""An engine that gives no distance, or none that is a number, accuses nobody and is seen."""

from __future__ import annotations

from typing import Any

import pytest

from fake_engine import fake_distance
from shared.client import PoCClient
from shared.config import PoCConfig, PoCState
from shared.data import ProofBatch
from shared.errors import CouldNotCompute
from shared.store import Store
from support import wait_until

pytestmark = pytest.mark.functional

CONFIG = PoCConfig(block_hash="b", block_height=1, public_key="k", r_target=2, batch_size=4)


def proof(*nonces: int) -> ProofBatch:
    """What an honest node submits."""
    return ProofBatch.of(CONFIG, nonces, [fake_distance("b", "k", nonce) for nonce in nonces])


def test_nonces_without_a_distance_count_as_failed(
    client: PoCClient, store: Store, start_worker: Any
) -> None:
    """Given NaN for every seventh nonce, those are failed, never valid, and the error says so."""
    start_worker("w0", seconds=0.01, nan=7)
    client.generate(CONFIG)
    wait_until(lambda: store.status().total_checked >= 28, description="seven batches")
    status = client.stop()

    computed = status.total_checked + status.total_failed
    bad = range(0, computed, 7)
    assert status.total_failed == len(bad)
    nonces, distances = store.rounds.found(status.round_id, 0, computed)
    assert nonces == [n for n in range(computed) if n not in bad]
    assert distances == [fake_distance("b", "k", n) for n in nonces]
    assert status.error.startswith("no finite numbers for 1 nonces, the first is ")


def test_a_batch_that_cannot_be_computed_has_no_verdict(
    client: PoCClient, start_worker: Any
) -> None:
    """One NaN spoils its batch, with the nonce named; the next batch gets its verdict."""
    start_worker("w0", nan=7)
    with pytest.raises(CouldNotCompute, match=r"for 1 of 3 nonces: 14; this accuses nobody"):
        client.validate_batch(proof(13, 14, 15), CONFIG).wait(10)
    verdict = client.validate_batch(proof(13, 15), CONFIG).wait(10)
    assert (verdict.n_invalid, verdict.fraud_detected) == (0, False)


def test_a_failed_batch_is_repeated_and_counted_once(
    client: PoCClient, store: Store, start_worker: Any
) -> None:
    """Given an engine that fails every third job, no nonce is lost and none counts twice."""
    worker = start_worker("w0", seconds=0.01, fail=3)
    client.generate(CONFIG)
    wait_until(lambda: worker.log.count("a batch failed") >= 2, description="two failures")
    wait_until(lambda: store.status().total_checked >= 24, description="the batches after them")
    status = client.stop()

    assert status.state == PoCState.STOPPED
    assert status.total_failed == 0
    nonces, _ = store.rounds.found(status.round_id, 0, status.total_checked)
    assert len(nonces) == len(set(nonces)) == status.total_valid == status.total_checked
    # All but the two batches that were in flight when the round was stopped.
    assert set(range(max(nonces) + 1)) - set(nonces) <= set(range(max(nonces) - 8, max(nonces)))
    assert "Traceback" not in worker.log


def test_a_batch_that_always_fails_is_given_up_visibly(
    client: PoCClient, store: Store, start_worker: Any
) -> None:
    """After POC_MAX_ATTEMPTS its nonces are failed, the error says why, and the round goes on."""
    start_worker("w0", fail=1, POC_MAX_ATTEMPTS="1")
    client.generate(CONFIG)
    status = wait_until(
        lambda: (now := store.status()).total_failed and now, description="a batch given up"
    )
    assert (status.total_failed, status.total_checked) == (4, 0)
    assert status.error == ("positions 0 to 3 failed 1 times: the fake engine was asked to fail")
    assert client.stop().state == PoCState.STOPPED


def test_a_validation_by_a_broken_engine_ends(client: PoCClient, start_worker: Any) -> None:
    """It accuses nobody: after all attempts it ends without a verdict, with the engine's error."""
    start_worker("w0", fail=1, POC_MAX_ATTEMPTS="1")
    with pytest.raises(CouldNotCompute, match=r"for 2 of 2 nonces.*asked to fail"):
        client.validate_batch(proof(0, 1), CONFIG).wait(10)
