"""What the chain's API answers to callbacks, and what it keeps of them."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest

from worker.tools.network.dapi import Chain, Dapi, Phase, Refused

KEY = "02AB"
GENERATED = "/v2/poc-batches/net%252Fmodel/generated"
VALIDATED = "/v2/poc-batches/net%252Fmodel/validated"
VECTOR = base64.b64encode(bytes(24)).decode()


@pytest.fixture
def chain() -> Chain:
    """One that generates."""
    return Chain("net/model", Phase.GENERATE, stage=7, keys={KEY})


@pytest.fixture
def dapi(chain: Chain) -> Dapi:
    return Dapi(chain)


def generated(*nonces: int, vector: str = VECTOR, **fields: Any) -> bytes:
    artifacts = [{"nonce": nonce, "vector_b64": vector} for nonce in nonces]
    body = {"public_key": KEY, "block_hash": "B", "block_height": 7, "artifacts": artifacts}
    return json.dumps(body | fields).encode()


def validated(**fields: Any) -> bytes:
    body = {"public_key": KEY, "block_height": 7, "n_total": 200, "fraud_detected": False}
    return json.dumps(body | fields).encode()


def refusal(dapi: Dapi, path: str, body: bytes) -> tuple[int, str]:
    with pytest.raises(Refused) as refused:
        dapi.take(path, body)
    return refused.value.status, str(refused.value)


def test_artifacts_are_stored_once_however_often_they_come(dapi: Dapi) -> None:
    dapi.take(GENERATED, generated(0, 1))
    dapi.take(GENERATED, generated(1, 2))
    assert dapi.artifacts == {nonce: bytes(24) for nonce in (0, 1, 2)}
    assert dapi.repeats == 1


def test_a_nonce_is_kept_as_32_bits(dapi: Dapi) -> None:
    dapi.take(GENERATED, generated(2**31 - 1, 2**31, 2**32 + 5))
    assert list(dapi.artifacts) == [2**31 - 1, -(2**31), 5]


@pytest.mark.parametrize("phase", [Phase.INFERENCE, Phase.VALIDATE])
def test_artifacts_are_refused_for_now_outside_their_phase(
    dapi: Dapi, chain: Chain, phase: Phase
) -> None:
    chain.phase = phase
    assert refusal(dapi, GENERATED, generated(0)) == (503, "not in PoC generate phase")


def test_artifacts_are_taken_in_the_exchange(dapi: Dapi, chain: Chain) -> None:
    chain.phase = Phase.EXCHANGE
    dapi.take(GENERATED, generated(0))
    assert dapi.artifacts


def test_an_api_behind_the_chain_takes_nothing(dapi: Dapi, chain: Chain) -> None:
    chain.synced = False
    assert refusal(dapi, GENERATED, generated(0))[0] == 503
    chain.phase = Phase.VALIDATE
    assert refusal(dapi, VALIDATED, validated())[0] == 503


def test_artifacts_of_another_stage_are_refused(dapi: Dapi) -> None:
    body = generated(0, block_height=6)
    assert refusal(dapi, GENERATED, body) == (400, "block_height is not the active PoC stage")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"{", "JSON"),
        (generated(0, artifacts=[{"nonce": "0"}]), "nonce"),
        (generated(0, node_id=1), "unknown node_num"),
        (generated(0, vector="???"), "invalid base64 in artifact vector"),
        (generated(0, vector=""), "empty artifact vector"),
    ],
)
def test_what_cant_be_read_is_refused_and_nothing_of_it_kept(
    dapi: Dapi, body: bytes, why: str
) -> None:
    status, said = refusal(dapi, GENERATED, body)
    assert status == 400
    assert why in said
    assert not dapi.artifacts


def test_a_model_is_escaped_twice(dapi: Dapi) -> None:
    """An unescaped slash is another path, and another model is none."""
    assert refusal(dapi, "/v2/poc-batches/net/model/generated", generated(0))[0] == 404
    assert refusal(dapi, "/v2/poc-batches/net/generated", generated(0)) == (400, "invalid model_id")


@pytest.mark.parametrize(
    ("verdict", "vote"),
    [
        ({}, 200),
        ({"fraud_detected": True}, -1),
        ({"n_total": 0}, -1),
        ({"fraud_detected": True, "n_total": 0}, -1),
    ],
)
def test_a_verdict_is_a_vote(dapi: Dapi, chain: Chain, verdict: dict[str, Any], vote: int) -> None:
    chain.phase = Phase.VALIDATE
    dapi.take(VALIDATED, validated(**verdict))
    assert dapi.votes == {KEY: vote}


def test_a_job_without_a_verdict_is_no_vote(dapi: Dapi, chain: Chain) -> None:
    """Its callback has a text where a number belongs."""
    chain.phase = Phase.VALIDATE
    assert refusal(dapi, VALIDATED, validated(n_total="not computed"))[0] == 400
    assert not dapi.votes


def test_verdicts_are_refused_for_now_outside_their_phase(dapi: Dapi) -> None:
    assert refusal(dapi, VALIDATED, validated()) == (503, "not in PoC validate phase")


def test_a_verdict_about_nobody_fails(dapi: Dapi, chain: Chain) -> None:
    chain.phase = Phase.VALIDATE
    assert refusal(dapi, VALIDATED, validated(public_key="nobody"))[0] == 500


def test_it_answers_by_http(dapi: Dapi, chain: Chain) -> None:
    """At the address that a node is given, which has the model in it."""
    with dapi.listening("127.0.0.1") as url, httpx.Client() as node:
        taken = node.post(f"{url}/generated", content=generated(0))
        assert (taken.status_code, taken.content) == (200, b"")
        chain.phase = Phase.INFERENCE
        refused = node.post(f"{url}/generated", content=generated(1))
        assert (refused.status_code, refused.json()) == (
            503,
            {"message": "not in PoC generate phase"},
        )
    assert dapi.answers == {"200 OK": 1, "503 not in PoC generate phase": 1}
