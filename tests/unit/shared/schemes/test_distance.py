"""The published scheme, byte for byte: what others read was written down before there were two."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config import PoCConfig
from shared.errors import CouldNotCompute
from shared.schemes.artifact import ArtifactTerms
from shared.schemes.distance import Distance, ProofBatch, ValidatedBatch
from shared.store import Claim, ComputedValidation
from worker.callbacks.messages import generated_message, validated_message

CONFIG = PoCConfig(
    block_hash="b10c",
    block_height=7,
    public_key="node",
    r_target=1.25,
    fraud_threshold=0.02,
    node_id=1,
    node_count=3,
    callback_url="http://c/poc",
)
NONCES, DIST = [1, 4, 2**63 - 2], [0.1, 1.0, 1 / 3]

BATCH = (
    '{"public_key":"node","block_hash":"b10c","block_height":7,"nonces":[1,4,9223372036854775806],'
    '"dist":[0.1,1.0,0.3333333333333333],"node_id":1}'
)
VERDICT = (
    '{"public_key":"node","block_hash":"b10c","block_height":7,"nonces":[1,4,9223372036854775806],'
    '"received_dist":[0.1,1.0,0.3333333333333333],"dist":[0.1,1.5,0.33333334],"r_target":1.25,'
    '"fraud_threshold":0.02,"node_id":1,"n_invalid":1,"probability_honest":0.001499250125,'
    '"fraud_detected":true,"p_mismatch":0.0005,"dist_tolerance":0.0,"submit_margin":0.0,'
    '"profile":{"engine":"fake"}}'
)
NO_VERDICT = (
    '{"error": "CouldNotCompute", "message": "no", "public_key": "node", "block_hash": "b10c", '
    '"block_height": 7, "nonces": [1, 4, 9223372036854775806], "node_id": 1, "not_computed": [4]}'
)
DONE = ComputedValidation(
    "v", "r1", ProofBatch.of(CONFIG, NONCES, DIST), CONFIG, [0.1, 1.5, 0.33333334], "", ""
)


def test_a_batch() -> None:
    assert ProofBatch.of(CONFIG, NONCES, DIST).model_dump_json() == BATCH
    assert CONFIG.terms.batch_of(CONFIG, NONCES, DIST).model_dump_json() == BATCH


def test_a_verdict() -> None:
    judged = CONFIG.terms.judge(DONE.batch, DONE.proofs, {"engine": "fake"})
    assert judged.model_dump_json() == VERDICT
    assert judged == Distance.verdict_from(judged.model_dump(mode="json"))


def test_the_callback_of_a_batch() -> None:
    """With the slash, the key and the round as they always were; it is joined with no other."""
    claim = Claim("token", "r1", "epoch", CONFIG, 0, 3, 0)
    message = generated_message(claim, list(zip(NONCES, DIST, strict=True)))
    assert message
    assert (message.url, message.body, message.key, message.round, message.items) == (
        "http://c/poc/generated",
        BATCH,
        "r1:token",
        "r1",
        (),
    )


def test_the_callback_of_a_verdict_and_of_none() -> None:
    judged = validated_message(
        DONE, CONFIG.terms.judge(DONE.batch, DONE.proofs, {"engine": "fake"})
    )
    failed = validated_message(DONE, CouldNotCompute("no"), [4])
    assert judged
    assert failed
    assert (judged.url, judged.body, judged.key) == (
        "http://c/poc/validated",
        VERDICT,
        "validation:v",
    )
    assert failed.body == NO_VERDICT


def test_one_nonce_that_could_not_be_computed_is_no_verdict() -> None:
    assert Distance.may_miss == 0
    with pytest.raises(ValueError, match="one finite distance per nonce"):
        CONFIG.terms.judge(DONE.batch, [0.1, None, 0.3])


def test_what_a_verdict_came_to() -> None:
    judged = CONFIG.terms.judge(DONE.batch, DONE.proofs)
    assert judged.ended
    assert judged.ended[:4] == (3, 1, 0.001499250125, True)
    assert judged.is_fraud
    assert judged.limits == (
        "r_target 1.25, p_mismatch 0.0005, fraud_threshold 0.02, dist_tolerance 0, submit_margin 0"
    )
    assert judged.proofs == [0.1, 1.5, 0.33333334]
    assert isinstance(judged, ValidatedBatch)


@given(st.floats(0, 2), st.floats(0, 2))
def test_what_redis_keeps_is_the_same_float(one: float, other: float) -> None:
    terms = Distance(r_target=1.0)
    assert terms.loaded(terms.dumped(one)) == one
    assert terms.apart(one, other) == terms.apart(other, one)
    assert terms.apart(one, one) == 0
    assert terms.counts(one) == (one < 1.0)


def test_a_round_of_another_scheme_has_no_distances() -> None:
    other = PoCConfig(block_hash="b", block_height=7, public_key="k", terms=ArtifactTerms())
    with pytest.raises(TypeError, match="of the scheme artifact has no distances"):
        Distance.of(other)
