"""What jobs are taken on, and how they stand. Their ends need workers: `tests/conformance`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from calls import BLOCK, JOB, POW, Gateway
from shared.config import PoCConfig
from shared.requests import ValidateRequest
from shared.schemes.artifact import ArtifactBatch, ArtifactTerms
from shared.store import Store
from shared.wire import MAX_PROOF_NONCES

VECTOR = "iLWqtgUw2zJTr46x+bB0N7exkjhAqhej"
ID = "0f8f7d0a-8c1c-4c1b-9d5e-3f3a2f1b0c9d"

pytestmark = pytest.mark.usefixtures("worker")


@pytest.mark.parametrize(
    ("artifacts", "said"),
    [
        ([(1, VECTOR), (7, VECTOR)], "validation.artifacts nonces must match nonces field"),
        ([(1, VECTOR)], "validation.artifacts nonces must match nonces field"),
        ([(1, VECTOR), (4, "%%%")], "vector_b64 of nonce 4: is no base64"),
        ([(1, VECTOR), (4, VECTOR), (4, VECTOR)], "a nonce is repeated"),
    ],
)
def test_claims_are_of_the_nonces_that_are_named(
    gateway: Gateway, artifacts: list[tuple[int, str]], said: str
) -> None:
    claims = [{"nonce": nonce, "vector_b64": vector} for nonce, vector in artifacts]
    asked = JOB | {"validation": {"artifacts": claims}}
    answer = gateway().post(f"{POW}/generate", json=asked)
    assert answer.status_code == 400
    assert said in answer.json()["detail"]


def test_more_nonces_than_may_wait_are_refused(gateway: Gateway, store: Store) -> None:
    client = gateway()
    asked = JOB | {"nonces": list(range(MAX_PROOF_NONCES + 1))}
    answer = client.post(f"{POW}/generate", json=asked)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "5")
    batch = ArtifactBatch(**BLOCK, nonces=list(range(MAX_PROOF_NONCES - 1)))
    store.validations.open(
        "task-1", ValidateRequest(batch=batch, config=PoCConfig(**BLOCK, terms=ArtifactTerms()))
    )
    assert client.post(f"{POW}/generate", json=JOB).status_code == 429


@pytest.mark.parametrize(
    ("meta", "answer"),
    [
        (None, {"status": "queued"}),
        (
            {"status": "PROGRESS", "result": {"done": 0, "total": 9}},
            {"status": "queued", "done": 0, "total": 9},
        ),
        (
            {"status": "PROGRESS", "result": {"done": 3, "total": 9}},
            {"status": "running", "done": 3, "total": 9},
        ),
        (
            {"status": "FAILURE", "result": {"exc_type": "Cancelled", "exc_message": ["by hand"]}},
            {"status": "cancelled", "error": "by hand"},
        ),
        (
            {"status": "FAILURE", "result": {"exc_type": "CouldNotCompute", "exc_message": "no"}},
            {"status": "failed", "error": "no"},
        ),
        ({"status": "REVOKED", "result": None}, {"status": "cancelled", "error": "REVOKED"}),
    ],
)
def test_a_job_stands_as_its_task_does(
    gateway: Gateway, store: Store, meta: dict[str, Any] | None, answer: dict[str, Any]
) -> None:
    store.jobs.reserve(ID, 1, 1)
    if meta:
        store.results.put(ID, json.dumps(meta), unless=[])
    assert gateway().get(f"{POW}/generate/{ID}").json() == {"request_id": ID, **answer}


def test_a_job_that_has_ended_has_its_vectors_or_its_verdict(
    gateway: Gateway, store: Store
) -> None:
    terms = ArtifactTerms()
    asked = ArtifactBatch(**BLOCK, nonces=[1, 4])
    claimed = ArtifactBatch(**BLOCK, nonces=[1, 4], vectors=[VECTOR, "AAAA"])
    store.jobs.reserve(ID, 1, 1)
    found = {}
    for batch in (asked, claimed):
        result = terms.judge(batch, [VECTOR, VECTOR]).model_dump(mode="json")
        meta = json.dumps({"status": "SUCCESS", "result": result})
        store.results.put(ID, meta, unless=[])
        found |= gateway().get(f"{POW}/generate/{ID}").json()
    assert found["status"] == "completed"
    assert found["artifacts"] == [{"nonce": n, "vector_b64": VECTOR} for n in (1, 4)]
    assert found["encoding"] == {"dtype": "f16", "k_dim": 12, "endian": "le"}
    assert (found["n_total"], found["n_mismatch"], found["mismatch_nonces"]) == (2, 1, [4])
    assert found["fraud_detected"] is False


def test_a_job_that_nobody_asked_for_is_unknown(gateway: Gateway, store: Store) -> None:
    """Also if a task of another kind has that id."""
    store.results.put(ID, json.dumps({"status": "SUCCESS", "result": {}}), unless=[])
    assert gateway().get(f"{POW}/generate/{ID}").status_code == 404
    assert gateway().get(f"{POW}/generate/8000:17").status_code == 400
