"""What is shown of a round. Commands need workers: `tests/conformance` has them."""

from __future__ import annotations

import pytest

from calls import BLOCK, POW, Gateway
from shared.config import PoCConfig
from shared.requests import GenerateRequest
from shared.schemes.artifact import ArtifactTerms
from shared.store import Store

CONFIG = PoCConfig(**BLOCK, node_id=1, node_count=3, terms=ArtifactTerms())

pytestmark = pytest.mark.usefixtures("worker")


def generates(store: Store) -> None:
    """A round is under way."""
    store.rounds.generate("task-1", GenerateRequest(config=CONFIG, round_id="r1"))


@pytest.mark.parametrize("prefix", [POW, "/api/v1/pow"])
def test_a_node_that_does_nothing_is_idle(gateway: Gateway, prefix: str) -> None:
    answer = gateway().get(f"{prefix}/status").json()
    assert (answer["status"], answer["config"], answer["stats"]) == ("IDLE", None, None)
    assert [each["name"] for each in answer["backends"]] == ["w1"]


def test_a_worker_generates_only_while_the_round_does(gateway: Gateway, store: Store) -> None:
    """A heartbeat may be of before its stop."""
    store.workers.heartbeat("w1", {"fingerprint": "f"}, {"state": "generating"}, tokens=[])
    backend = gateway().get(f"{POW}/status").json()["backends"][0]
    assert (backend["name"], backend["status"]) == ("w1", "IDLE")


def test_a_round_is_shown_with_its_config_while_it_generates(
    gateway: Gateway, store: Store
) -> None:
    generates(store)
    answer = gateway().get(f"{POW}/status").json()
    assert answer["status"] == "GENERATING"
    config = {**BLOCK, "node_id": 1, "node_count": 3, "group_id": 0, "n_groups": 1}
    assert answer["config"] == config | {"seq_len": 256, "k_dim": 12, "round_id": "r1"}
    assert answer["stats"] == {"total_processed": 0, "nonces_per_second": 0}


def test_chat_is_closed_only_if_asked_for_and_only_while_a_round_generates(
    gateway: Gateway, store: Store
) -> None:
    closing, lenient = gateway(gate_chat=True), gateway()
    assert closing.get("/api/v1/gate").status_code == 200
    generates(store)
    assert lenient.get("/api/v1/gate").status_code == 200
    closed = closing.get("/api/v1/gate")
    assert (closed.status_code, closed.headers["Retry-After"]) == (503, "1")
    assert closed.json()["error"] == "poc_generation_active"
    assert closed.json()["retry_after_ms"] == 1000
