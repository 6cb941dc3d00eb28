"""A node without workers: nothing is begun, and nothing waits for them."""

from __future__ import annotations

from calls import BLOCK, JOB, POW, ROUND, Gateway
from shared.config import PoCConfig
from shared.requests import GenerateRequest
from shared.schemes.artifact import ArtifactTerms
from shared.store import Store


def test_it_has_no_backends(gateway: Gateway) -> None:
    client = gateway()
    assert client.get(f"{POW}/status").json()["status"] == "NO_BACKENDS"
    assert client.get("/api/v1/state").json()["state"] == "STOPPED"
    assert client.post(f"{POW}/stop").json() == {"status": "OK", "message": "No backends to stop"}


def test_what_needs_one_is_refused_for_now(gateway: Gateway) -> None:
    client = gateway()
    for answer in (
        client.post(f"{POW}/init/generate", json=ROUND),
        client.post(f"{POW}/generate", json=JOB),
        client.get("/health"),
        client.get("/readyz"),
        client.get("/v1/models"),
    ):
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


def generates(store: Store) -> None:
    """A round is under way, and its workers have gone."""
    config = PoCConfig(**BLOCK, terms=ArtifactTerms())
    store.rounds.generate("task-1", GenerateRequest(config=config, round_id="r1"))


def test_chat_is_not_closed_for_a_round_that_nobody_works_on(
    gateway: Gateway, store: Store
) -> None:
    generates(store)
    assert gateway(gate_chat=True).get("/api/v1/gate").status_code == 200


def test_a_round_that_nobody_works_on_is_not_generating(gateway: Gateway, store: Store) -> None:
    """A controller that finds one generating would begin none."""
    generates(store)
    answer = gateway().get(f"{POW}/status").json()
    assert (answer["status"], answer["config"], answer["stats"]) == ("NO_BACKENDS", None, None)
