"""What the gateway answers from what the store holds, and what it refuses before it asks a worker.

Commands need workers: `tests/conformance` has them.
"""

from __future__ import annotations

import json
import time
from typing import Any

import fakeredis
import pytest

from calls import BLOCK, JOB, POW, ROUND, Gateway
from shared.config import PoCConfig
from shared.gateway import node
from shared.requests import GenerateRequest, ValidateRequest
from shared.schemes.artifact import ArtifactBatch, ArtifactTerms
from shared.store import Store
from shared.wire import MAX_PROOF_NONCES

VECTOR = "iLWqtgUw2zJTr46x+bB0N7exkjhAqhej"
CONFIG = PoCConfig(**BLOCK, node_id=1, node_count=3, terms=ArtifactTerms())
ID = "0f8f7d0a-8c1c-4c1b-9d5e-3f3a2f1b0c9d"

pytestmark = pytest.mark.usefixtures("worker")


def generates(store: Store) -> None:
    """A round is under way."""
    store.rounds.generate("task-1", GenerateRequest(config=CONFIG, round_id="r1"))


@pytest.mark.parametrize("prefix", [POW, "/api/v1/pow"])
def test_a_node_that_does_nothing_is_idle(gateway: Gateway, prefix: str) -> None:
    answer = gateway().get(f"{prefix}/status").json()
    assert (answer["status"], answer["config"], answer["stats"]) == ("IDLE", None, None)
    assert [each["name"] for each in answer["backends"]] == ["w1"]


def test_a_round_is_shown_with_its_config_while_it_generates(
    gateway: Gateway, store: Store
) -> None:
    generates(store)
    answer = gateway().get(f"{POW}/status").json()
    assert answer["status"] == "GENERATING"
    config = {**BLOCK, "node_id": 1, "node_count": 3, "group_id": 0, "n_groups": 1}
    assert answer["config"] == config | {"seq_len": 256, "k_dim": 12, "round_id": "r1"}
    assert answer["stats"] == {"total_processed": 0, "nonces_per_second": 0}


def test_the_model_has_its_name_on_the_network(gateway: Gateway) -> None:
    assert gateway().get("/v1/models").json()["data"][0]["id"] == "/models/m"
    client = gateway(gateway_model="Qwen/Qwen3-8B")
    assert client.get("/v1/models").json()["data"][0]["id"] == "Qwen/Qwen3-8B"
    assert client.get("/api/v1/state").json()["loaded_model"] == "Qwen/Qwen3-8B"


def test_it_says_what_it_is(gateway: Gateway) -> None:
    state = gateway().get("/api/v1/state").json()
    assert (state["state"], state["poc_status"], state["inference_healthy"]) == (
        "INFERENCE",
        "IDLE",
        True,
    )
    assert "vllm_version" in gateway().get(f"{POW}/versions").json()


@pytest.mark.parametrize("path", ["init/generate", "generate"])
@pytest.mark.parametrize(
    "params", [{"model": "other", "seq_len": 256}, {"model": "/models/m", "seq_len": 2049}]
)
def test_what_is_not_deployed_is_refused_with_what_is(
    gateway: Gateway, path: str, params: dict[str, Any]
) -> None:
    answer = gateway().post(f"{POW}/{path}", json=JOB | {"params": params})
    assert answer.status_code == 409
    assert answer.json()["requested"] == params
    assert answer.json()["deployed"]["model"] == "/models/m"
    assert answer.json()["deployed"]["seq_len"] in (256, 2048)


def test_a_seq_len_can_be_pinned(gateway: Gateway) -> None:
    answer = gateway(gateway_seq_len=1024).post(f"{POW}/init/generate", json=ROUND)
    assert answer.status_code == 409
    assert answer.json()["deployed"]["seq_len"] == 1024


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"params": {**ROUND["params"], "foo": 1}}, ["body", "params", "foo"]),
        ({"stat_test": {"fraud": 0.1}}, ["body", "stat_test", "fraud"]),
        ({"block_hash": None}, ["body", "block_hash"]),
        ({"nonces": []}, ["body", "nonces"]),
        ({"nonces": [2**31]}, ["body", "nonces", 0]),
        ({"nonces": [-1]}, ["body", "nonces", 0]),
        ({"nonces": ["1"]}, ["body", "nonces", 0]),
        ({"url": "ftp://receiver"}, ["body", "url"]),
        ({"stat_test": {"p_value_threshold": 1.5}}, ["body", "stat_test", "p_value_threshold"]),
    ],
)
def test_a_wrong_field_is_named(gateway: Gateway, change: dict[str, Any], place: list[Any]) -> None:
    answer = gateway().post(f"{POW}/generate", json=JOB | change)
    assert answer.status_code == 422
    assert place in [each["loc"] for each in answer.json()["detail"]]


def test_a_node_id_is_below_the_node_count(gateway: Gateway) -> None:
    answer = gateway().post(f"{POW}/init/generate", json=ROUND | {"node_id": 3})
    assert answer.status_code == 422
    assert "node_id 3 is not in [0, node_count=3)" in answer.text


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_json_is_read_whatever_the_content_type_says(
    gateway: Gateway, content_type: str | None
) -> None:
    """The refusal of a model is of somebody who read it."""
    wrong = json.dumps(ROUND | {"params": {"model": "other", "seq_len": 1}})
    headers = {"Content-Type": content_type} if content_type else {}
    assert gateway().post(f"{POW}/init/generate", content=wrong, headers=headers).status_code == 409


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"nonces": [NaN]}',
        b'{"block_height": ' + 5000 * b"9" + b"}",
        b'{"params": {"\\ud800": 1}}',
        b'{"block_hash": "\\ud800"}',
        b"null",
        b"7",
    ],
)
def test_nonsense_is_refused(gateway: Gateway, body: bytes) -> None:
    answer = gateway().post(f"{POW}/generate", content=body)
    assert answer.status_code in (400, 422)
    assert answer.json()["detail"]


@pytest.mark.parametrize(
    ("artifacts", "said"),
    [
        ([(1, VECTOR), (7, VECTOR)], "validation.artifacts nonces must match nonces field"),
        ([(1, VECTOR)], "validation.artifacts nonces must match nonces field"),
        ([(1, VECTOR), (4, "%%%")], "vector_b64: is no base64"),
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


def test_a_receiver_that_is_not_allowed_is_refused(gateway: Gateway) -> None:
    for url in ("http://169.254.169.254/latest", "http://10.0.0.1/"):
        client = gateway(callback_allow="receiver.example")
        answer = client.post(f"{POW}/init/generate", json=ROUND | {"url": url})
        assert answer.status_code == 400
        assert answer.json()["detail"].startswith("url: ")


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
    store.results.expect(ID)
    if meta:
        store.results.put(ID, json.dumps(meta), unless=[])
    assert gateway().get(f"{POW}/generate/{ID}").json() == {"request_id": ID, **answer}


def test_a_job_that_has_ended_has_its_vectors_or_its_verdict(
    gateway: Gateway, store: Store
) -> None:
    terms = ArtifactTerms()
    asked = ArtifactBatch(**BLOCK, nonces=[1, 4])
    claimed = ArtifactBatch(**BLOCK, nonces=[1, 4], vectors=[VECTOR, "AAAA"])
    store.results.expect(ID)
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


def test_without_redis_it_says_so_and_chat_goes_on(
    gateway: Gateway, server: fakeredis.FakeServer
) -> None:
    client = gateway(gate_chat=True)
    server.connected = False
    for answer in (
        client.get(f"{POW}/status"),
        client.get("/health"),
        client.post(f"{POW}/init/generate", json=ROUND),
        client.post(f"{POW}/generate", json=JOB),
    ):
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert client.get("/api/v1/gate").status_code == 200
    assert client.get("/livez").status_code == 200


def test_a_slow_redis_is_waited_for_once_however_often_it_is_asked(
    gateway: Gateway, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "ANSWER_S", 0.4)
    for part, look in ((store.workers, "listing"), (store.rounds, "status")):
        quick = getattr(part, look)
        slow = lambda quick=quick: (time.sleep(0.3), quick())[1]  # noqa: E731
        monkeypatch.setattr(part, look, slow)
    answer = gateway().post(f"{POW}/stop")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert answer.elapsed.total_seconds() < 0.55


@pytest.mark.parametrize("version", ["", "/v3.0.8", "/v3.0.13-alpha1"])
def test_a_version_may_stand_before_each_path(gateway: Gateway, worker: None, version: str) -> None:
    """As controllers put it there when the network has named one."""
    client = gateway()
    for path in (f"{POW}/status", "/api/v1/state", "/v1/models", "/health"):
        assert client.get(version + path).status_code == 200
    assert client.get("/v3/api/v1/state").status_code == 404
