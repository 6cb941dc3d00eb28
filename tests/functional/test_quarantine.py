"""A device that gives wrong numbers is out at once, and stays out for as long as it does."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from exactness import ALL_VALID, counted, generating, without_gap
from fake_engine import fake_distance
from shared.client import PoCClient
from shared.data import ProofBatch
from shared.settings import Settings
from shared.store import Store
from support import wait_until
from worker.node.functional_check import BLOCK_HASH, NONCES

pytestmark = pytest.mark.functional

#: What the fake engine gives in a functional check.
DISTANCES = [fake_distance(BLOCK_HASH, BLOCK_HASH, nonce) for nonce in NONCES]


@pytest.fixture
def start(start_breakable: Any) -> Any:
    """Start a worker that checks its device twice a second."""
    return partial(start_breakable, POC_CHECK_EVERY_S=0.5)


def quarantined(worker: Any) -> str:
    """The line that says why; the exit status must be 4."""
    assert worker.process.wait(20) == 4, worker.log
    assert "Traceback" not in worker.log
    lines = [each for each in worker.log.splitlines() if "functional check: " in each]
    return lines[0]


@pytest.mark.parametrize("wrong", ["wrong", "slightly wrong"])
def test_wrong_numbers(
    wrong: str, client: PoCClient, store: Store, start: Any, fault: Path
) -> None:
    """Status 4 within a check, what was expected and seen, its batches free, nobody listed."""
    worker = start()
    generating(client, store)
    fault.write_text(wrong)
    line = quarantined(worker)
    assert "CRITICAL" in line
    assert f", at its start it was {DISTANCES[0]!r}; 8 of 8 differ: this device gives" in line
    assert store.workers.listing() == []
    fault.unlink()
    start("w1")
    before = store.status().total_checked
    wait_until(lambda: store.status().total_checked >= before + 40, 20, "the round to go on")
    # All positions that the bad device held were computed at once, by the next.
    found = store.rounds.found(client.stop().round_id, 0, 100_000)[0]
    without_gap(found, open_batches=2)


def test_what_it_committed_is_listed(
    client: PoCClient, store: Store, start: Any, fault: Path, settings: Settings
) -> None:
    """All since its last check that passed, and no more: in its log, the status and the API's."""
    worker = start(POC_CHECK_EVERY_S=3)
    generating(client, store)
    fault.write_text("wrong")
    line = quarantined(worker)
    status = store.status()
    wrong = {
        nonce
        for nonce, distance in zip(
            *store.rounds.found(status.round_id, 0, status.total_valid), strict=True
        )
        if distance != fake_distance("b", "k", nonce)
    }
    assert wrong
    (incident,) = status.incidents
    (commit,) = incident.commits  # batches that follow on each other are one
    assert commit.round_id == status.round_id
    listed = set(range(commit.first_nonce, commit.last_nonce + 1))
    assert wrong <= listed
    assert len(listed) == commit.count == incident.in_doubt
    assert max(listed) == max(store.rounds.found(status.round_id, 0, status.total_valid)[0])
    assert incident.sound_until < commit.at <= incident.at
    assert f"nonces {commit.first_nonce} to {commit.last_nonce} ({commit.count}) of round" in line

    def poc_status(*args: str) -> str:
        where = ["--redis-url", settings.redis_url, "--namespace", settings.namespace]
        command = [sys.executable, "-m", "worker.cli", "status", *where, *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert f"{incident.in_doubt:,} nonces in doubt: " in " ".join(poc_status().split())
    assert json.loads(poc_status("--json"))["incidents"][0]["in_doubt"] == incident.in_doubt


def test_it_stays_out_until_its_device_is_well(
    client: PoCClient, store: Store, start: Any, fault: Path
) -> None:
    """Given a lone worker that is started again, then its own first answer is not trusted."""
    worker = start()
    generating(client, store)
    fault.write_text("wrong")
    quarantined(worker)
    for number in (1, 2):
        again = start(f"again{number}", wait=False)
        assert "w0@test, the first worker with this model, gave" in quarantined(again)
    assert store.workers.listing() == []
    assert len(store.status().incidents) == 1  # the list is not flooded by those that never ran
    fault.unlink()
    start("well")
    assert [each.name for each in store.workers.listing()] == ["well@test"]


def test_numbers_that_are_none_are_seen_with_the_batch(
    client: PoCClient, store: Store, start: Any, fault: Path
) -> None:
    """Given a check an hour later, then the batch without distances is checked, and not counted."""
    worker = start(POC_CHECK_EVERY_S=3600)
    generating(client, store)
    fault.write_text("nan")
    assert "the distance of nonce 0 is nan" in quarantined(worker)
    status = store.status()
    assert status.total_failed == 0
    fault.unlink()
    start("w1")
    wait_until(lambda: store.status().total_checked >= status.total_checked + 40, 20, "the round")
    without_gap(counted(store, client.stop()), open_batches=2)


def test_a_batch_without_distances_may_be_its_own_fault(
    client: PoCClient, store: Store, start: Any
) -> None:
    """Given a device whose check passes, then those nonces are failed and the worker goes on."""
    worker = start(nan=7)
    generating(client, store, 40)
    assert store.status().total_failed > 0
    assert worker.process.poll() is None
    assert store.status().incidents == []


def test_a_validation_of_a_device_that_turned_bad(
    client: PoCClient, store: Store, start: Any, fault: Path
) -> None:
    """Given no distances, then the batch waits for a device that has some; nobody is accused."""
    worker = start(POC_CHECK_EVERY_S=3600)
    fault.write_text("nan")
    nonces = range(12)
    batch = ProofBatch.of(ALL_VALID, nonces, [fake_distance("b", "k", n) for n in nonces])
    ticket = client.validate_batch(batch, ALL_VALID)
    quarantined(worker)
    fault.unlink()
    start("w1")
    verdict = ticket.wait(20)
    assert (verdict.n_invalid, verdict.fraud_detected) == (0, False)


def test_a_device_that_computes_nothing_any_more(
    client: PoCClient, store: Store, start: Any, fault: Path
) -> None:
    """Given one whose check fails with its batch, then another process is to try: status 3."""
    worker = start(POC_CHECK_EVERY_S=3600)
    generating(client, store)
    fault.write_text("fail")
    assert worker.process.wait(20) == 3
    assert "not even the functional check can be computed: the fake device is broken" in worker.log
    assert store.workers.listing() == []


def test_a_stop_is_not_held_up(client: PoCClient, store: Store, start: Any) -> None:
    """Given a check between any two batches."""
    start(POC_CHECK_EVERY_S=0.1, seconds=0.02)
    generating(client, store, 40)
    began = time.monotonic()
    client.stop()
    assert time.monotonic() - began < 1


class TestStart:
    """A worker takes part only after it has agreed with others."""

    def test_a_device_that_is_wrong_from_the_start(
        self, store: Store, start: Any, fault: Path
    ) -> None:
        """Status 4, with both distances and the worker that gave the other one."""
        start("w0", fault="")
        fault.write_text("wrong")
        line = quarantined(start("w1", wait=False))
        assert "can't start" in line
        assert f"the distance of nonce 0 is {2 - DISTANCES[0]!r}, w0@test, the first" in line
        assert f"with this model, gave {DISTANCES[0]!r}; 8 of 8 differ by more than 0.2" in line
        assert "set POC_MODEL_DISTANCES" in line
        assert [each.name for each in store.workers.listing()] == ["w0@test"]

    def test_the_noise_between_engines_is_allowed(
        self, store: Store, start: Any, fault: Path
    ) -> None:
        """Given distances that differ in the last bit, then both take part."""
        start("w0", fault="")
        fault.write_text("slightly wrong")
        start("w1")
        assert len(store.workers.listing()) == 2

    def test_a_device_without_numbers(self, start: Any, fault: Path) -> None:
        """Also as the first of its model."""
        fault.write_text("nan")
        assert "no finite distances" in quarantined(start(wait=False))

    def test_pinned_distances(self, store: Store, start: Any, fault: Path) -> None:
        """They hold for the first worker; and against a first worker that was wrong."""
        fault.write_text("wrong")
        pin = {"POC_MODEL_DISTANCES": json.dumps(DISTANCES)}
        assert ", POC_MODEL_DISTANCES has 0." in quarantined(start("w0", wait=False, **pin))
        assert store.workers.listing() == []
        start("w1")  # without the pin nobody knows better
        well = start("w2", fault="", **pin)
        assert f"check passed: POC_MODEL_DISTANCES={json.dumps(DISTANCES)}" in well.log
        assert [each.name for each in store.workers.listing()] == ["w1@test", "w2@test"]
