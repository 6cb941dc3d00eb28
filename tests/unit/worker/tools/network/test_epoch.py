"""How the controller judges, and who is paid."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from dataclasses import replace
from struct import pack
from typing import Any, cast

import pytest

from shared.errors import PoCError
from worker.tools.network import epoch
from worker.tools.network.dapi import Chain, Dapi, Refused
from worker.tools.network.epoch import Epoch, Outcome, Participant, is_paid, pause, refusal_of
from worker.tools.network.node import Node

GOOD = pack("<12e", *[0.25] * 12)
HONEST = Outcome("n", "http://n", "02AB", False, 100, 100, 0, 99, 3, 0, True)


def test_good_vectors_go_to_a_node() -> None:
    assert refusal_of({0: GOOD, 99: GOOD}, 100) is None


@pytest.mark.parametrize(
    ("vector", "why"),
    [
        (GOOD[:-2], "has 22 bytes"),
        (GOOD + GOOD, "has 48 bytes"),
        (pack("<12e", *[float("nan")] * 12), "a number that is none"),
        (pack("<12e", float("inf"), *[0.0] * 11), "a number that is none"),
    ],
)
def test_a_vector_that_is_none_is_a_vote_against(vector: bytes, why: str) -> None:
    assert why in str(refusal_of({0: GOOD, 1: vector}, 2))


def test_so_is_a_nonce_below_zero() -> None:
    """A cast to 32 bits may have made one; no node takes it."""
    assert refusal_of({-1: GOOD}, 100) == "nonce -1 is none that a node can compute"


def test_so_are_nonces_with_large_holes() -> None:
    assert refusal_of({199: GOOD, 1: GOOD}, 2) is None
    assert "porosity" in str(refusal_of({200: GOOD, 1: GOOD}, 2))


def test_pauses_grow_up_to_a_limit() -> None:
    assert [pause(attempt) for attempt in (0, 1, 2, 6, 7, 24)] == [3, 4.5, 6.75, 34.171875, 45, 45]


def test_more_than_half_of_all_voters_must_be_for_it() -> None:
    """Who abstains counts as a voter, so it helps nobody."""
    assert is_paid(2, 3)
    assert not is_paid(1, 3)
    assert not is_paid(2, 4)
    assert not is_paid(0, 0)


@pytest.mark.parametrize(
    ("fields", "as_it_must"),
    [
        ({}, True),
        ({"computed": None}, True),
        ({"computed": 101}, False),
        ({"artifacts": 0, "computed": 0}, False),
        ({"paid": False}, False),
        ({"cheats": True}, False),
        ({"cheats": True, "paid": False}, True),
        ({"max_nonce": 100}, True),
        ({"max_nonce": 102}, False),
        ({"max_nonce": -1, "artifacts": 1, "computed": 1}, True),
    ],
)
def test_an_epoch_must_lose_nothing_and_pay_just_the_honest(
    fields: dict[str, int], as_it_must: bool
) -> None:
    assert replace(HONEST, **fields).as_it_must is as_it_must  # type: ignore[arg-type]


class FakeNode:
    """It computes so many artifacts, and finds all claims right."""

    url = "http://fake"

    def __init__(self, artifacts: int = 300) -> None:
        self.artifacts = artifacts
        #: What it does not do, and how often it refuses jobs first.
        self.refuses_init, self.refusals = False, 0
        self.jobs: list[dict[str, Any]] = []
        self.dapi = Dapi(Chain(""))
        self._round: dict[str, Any] = {}

    def begin(self, body: dict[str, Any]) -> None:
        if self.refuses_init:
            raise PoCError("Already generating")
        self._round = body

    def stop(self) -> None:
        """All of it comes late, in the exchange."""
        threading.Thread(target=self._deliver).start()

    def generate(self, body: dict[str, Any]) -> None:
        if self.refusals:
            self.refusals -= 1
            raise PoCError("busy")
        self.jobs.append(body)
        verdict = {"public_key": body["public_key"], "n_total": len(body["nonces"])}
        threading.Thread(target=self._post, args=("validated", verdict)).start()

    def computed(self, block_hash: str) -> int | None:
        return self.artifacts if block_hash == self._round.get("block_hash") else None

    def _deliver(self) -> None:
        vector = base64.b64encode(GOOD).decode()
        made = [{"nonce": nonce, "vector_b64": vector} for nonce in range(self.artifacts)]
        height = self._round["block_height"]
        self._post("generated", {"block_height": height, "artifacts": made})

    def _post(self, what: str, body: dict[str, Any]) -> None:
        """Until it is taken, as a sender does it."""
        for _ in range(1000):
            with contextlib.suppress(Refused):
                self.dapi.take(f"/v2/poc-batches/m/{what}", json.dumps(body).encode())
                return
            time.sleep(0.01)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[FakeNode]:
    """Three, in a hurry."""
    for name in ("BORDER_S", "FIRST_PAUSE_S", "QUIET_S"):
        monkeypatch.setattr(epoch, name, 0.05)
    return [FakeNode() for _ in range(3)]


def played(nodes: list[FakeNode]) -> list[Outcome]:
    """An epoch of these nodes."""
    chain = Chain("m")
    participants = []
    for number, node in enumerate(nodes):
        participants.append(Participant(f"p{number}", cast("Node", node), chain))
        node.dapi = participants[-1].dapi
    return Epoch(chain, participants, 16).run(lambda: None)


def test_what_comes_after_the_stop_counts(nodes: list[FakeNode]) -> None:
    outcomes = played(nodes)
    assert [(each.artifacts, each.votes_for, each.paid) for each in outcomes] == [
        (300, 3, True)
    ] * 3
    assert all(each.as_it_must for each in outcomes)


def test_each_node_judges_a_sample_of_each(nodes: list[FakeNode]) -> None:
    """Its own among them; by what the network agreed on, and another sample each time."""
    played(nodes)
    for node in nodes:
        assert len({job["public_key"] for job in node.jobs}) == 3
        for job in node.jobs:
            claimed = [each["nonce"] for each in job["validation"]["artifacts"]]
            assert claimed == job["nonces"]
            assert len(set(claimed)) == 200
            assert job["stat_test"]["p_value_threshold"] == 0.05
    samples = [tuple(job["nonces"]) for node in nodes for job in node.jobs]
    assert len(set(samples)) == 3, "one of each validator, as all have as many artifacts"


def test_a_job_that_is_refused_is_handed_over_again(nodes: list[FakeNode]) -> None:
    nodes[0].refusals = 2
    assert all(each.votes_for == 3 for each in played(nodes))


def test_a_node_that_takes_no_job_is_no_vote(
    nodes: list[FakeNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for nor against: the fault is not that of who would be judged."""
    monkeypatch.setattr(epoch, "RETRIES", 1)
    nodes[0].refusals = 100
    assert all((each.votes_for, each.votes_against) == (2, 0) for each in played(nodes))


def test_a_node_that_does_not_begin_is_not_paid_and_votes_for_nobody(
    nodes: list[FakeNode],
) -> None:
    nodes[0].refuses_init = True
    failed, *others = played(nodes)
    assert (failed.artifacts, failed.votes_for, failed.paid) == (0, 0, False)
    assert [(each.votes_for, each.paid) for each in others] == [(2, True)] * 2
    assert not nodes[0].jobs
