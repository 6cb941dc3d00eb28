"""The network's scheme: what is judged, against what an independent program made."""

from __future__ import annotations

import base64
import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.config import PoCConfig
from shared.errors import InvalidRequest
from shared.requests import ValidateRequest, read
from shared.schemes.artifact import (
    ArtifactBatch,
    ArtifactTerms,
    ComputedArtifacts,
    Encoding,
    ValidatedArtifacts,
    numbers_of,
)
from shared.store import Claim
from worker.callbacks.messages import generated_message

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[3] / "golden_artifacts.json").read_text(encoding="utf-8")
)
BLOCK: dict[str, Any] = {"block_hash": "B10C", "block_height": 7, "public_key": "node"}
TERMS = ArtifactTerms(k_dim=2)
CONFIG = PoCConfig(**BLOCK, terms=TERMS, callback_url="http://c/poc", node_id=1, node_count=3)

float16s = st.floats(width=16, allow_nan=True, allow_infinity=True)
finite16s = st.floats(-2, 2, width=16)


def vector(*numbers: float) -> str:
    """The numbers as they travel."""
    return base64.b64encode(struct.pack(f"<{len(numbers)}e", *numbers)).decode()


RIGHT, CLOSE, WRONG = vector(1, 0), vector(1, 0.25), vector(-1, 0)


def batch(vectors: list[str] | None, nonces: list[int] | None = None, **more: Any) -> ArtifactBatch:
    """A batch of nonces 0, 1, ... as it comes over the wire. Raises `InvalidRequest`."""
    nonces = list(range(len(vectors or []))) if nonces is None else nonces
    given = BLOCK | {"scheme": "artifact", "nonces": nonces, "vectors": vectors} | more
    found = read(ValidateRequest, {"batch": json.loads(json.dumps(given))}).batch
    assert isinstance(found, ArtifactBatch)
    return found


def judged(claimed: list[str], recomputed: list[str | None], **terms: Any) -> ValidatedArtifacts:
    found = TERMS.model_copy(update=terms).judge(batch(claimed), recomputed)
    assert isinstance(found, ValidatedArtifacts)
    return found


class TestGolden:
    @pytest.mark.parametrize("case", GOLDEN["judge"])
    def test_whether_a_claim_is_wrong(self, case: dict[str, Any]) -> None:
        terms = ArtifactTerms(dist_threshold=case["dist_threshold"])
        verdict = terms.judge(batch([case["claimed_b64"]]), [case["computed_b64"]])
        assert isinstance(verdict, ValidatedArtifacts)
        assert verdict.l2 == [pytest.approx(case["l2"], abs=1e-7)]
        assert verdict.mismatch_nonces == ([0] if case["mismatch"] else [])

    @pytest.mark.parametrize("case", GOLDEN["fraud"])
    def test_from_how_many_wrong_claims_on_it_is_fraud(self, case: dict[str, Any]) -> None:
        n, least = case["n_total"], case["least_fraudulent"]
        limits = {name: case[name] for name in ("p_mismatch", "p_value_threshold")}
        fraud = judged([WRONG] * least + [RIGHT] * (n - least), [RIGHT] * n, **limits)
        assert (fraud.n_total, fraud.n_mismatch) == (n, least)
        assert fraud.p_value == pytest.approx(case["p_value"], rel=1e-12)
        assert fraud.is_fraud
        honest = judged([WRONG] * (least - 1) + [RIGHT] * (n - least + 1), [RIGHT] * n, **limits)
        assert not honest.is_fraud


class TestBatch:
    def test_vectors_come_in_the_order_of_nonces_or_each_with_its_own(self) -> None:
        """As receivers have got them: the body of a callback can be sent to be judged."""
        artifacts = [{"nonce": n, "vector_b64": v} for n, v in ((5, RIGHT), (3, CLOSE))]
        plain = batch([RIGHT, CLOSE], [5, 3], node_id=1)
        both = BLOCK | {"node_id": 1, "artifacts": artifacts}
        for nonces, expected in ((None, [5, 3]), ([3, 5], [3, 5])):
            fields = both | ({"nonces": nonces} if nonces else {})
            found = read(ValidateRequest, {"batch": fields}).batch
            assert isinstance(found, ArtifactBatch)
            assert found.nonces == expected
            assert found.vectors == [
                dict(zip([5, 3], [RIGHT, CLOSE], strict=True))[n] for n in expected
            ]
        assert plain.claims == [RIGHT, CLOSE]

    def test_the_body_of_a_callback_is_a_batch(self) -> None:
        body = CONFIG.terms.body_of(CONFIG, [1, 4], [RIGHT, CLOSE])
        whole = body.head + ",".join(body.items) + body.tail
        found = read(ValidateRequest, {"batch": json.loads(whole)}).batch
        ours = CONFIG.terms.batch_of(CONFIG, [1, 4], [RIGHT, CLOSE])
        assert found == ours

    def test_without_vectors_they_are_asked_for(self) -> None:
        for more in ({}, {"vectors": None}, {"artifacts": None}):
            given = BLOCK | {"scheme": "artifact", "nonces": [1, 2]} | more
            found = read(ValidateRequest, {"batch": given}).batch
            assert found
            assert found.claims is None
            assert len(found) == 2

    @pytest.mark.parametrize(
        "good", ["", "AA==", vector(1), vector(math.nan, math.inf), "A" * 8192]
    )
    def test_any_bytes_are_a_claim(self, good: str) -> None:
        """Which may be wrong, and is no reason to refuse what else is claimed."""
        assert batch([good]).vectors == [good]

    @pytest.mark.parametrize(
        ("fields", "why"),
        [
            ({"vectors": ["ADw!AA=="]}, r"batch\.vectors\.0: is no base64"),
            ({"vectors": ["ADwAQ"]}, r"batch\.vectors\.0: is no base64"),
            ({"vectors": ["ADwAQA"]}, r"batch\.vectors\.0: is no base64"),
            ({"vectors": ["AD wAQA=="]}, r"batch\.vectors\.0: is no base64"),
            ({"vectors": ["ADw-_A=="]}, r"batch\.vectors\.0: is no base64"),
            ({"vectors": ["ä"]}, r"batch\.vectors\.0: is no base64"),
            ({"vectors": ["A" * 8196]}, r"batch\.vectors\.0: .*at most 8192"),
            ({"vectors": [None]}, r"batch\.vectors\.0: .*valid string"),
            ({"vectors": [1.5]}, r"batch\.vectors\.0: .*valid string"),
            ({"vectors": "AA=="}, r"batch\.vectors: .*valid list"),
            ({"vectors": []}, "1 nonces but 0 vectors"),
            ({"vectors": [RIGHT, RIGHT]}, "1 nonces but 2 vectors"),
            ({"nonces": [1, 1], "vectors": [RIGHT, RIGHT]}, "a nonce is repeated"),
            ({"nonces": [2**31], "vectors": [RIGHT]}, r"batch\.nonces\.0: .*equal to 2147483647"),
            ({"nonces": [-1], "vectors": [RIGHT]}, r"batch\.nonces\.0"),
            ({"nonces": [[1]], "artifacts": [{"nonce": 1, "vector_b64": "AA=="}]}, "nonces"),
            ({"artifacts": [{"nonce": 2**31, "vector_b64": RIGHT}]}, r"artifacts\.0\.nonce"),
            ({"artifacts": [{"nonce": 1, "vector_b64": "?"}]}, r"artifacts\.0\.vector_b64"),
            ({"artifacts": [{"nonce": 1}]}, r"artifacts\.0\.vector_b64"),
            ({"artifacts": [{"nonce": 2, "vector_b64": RIGHT}]}, "must be those of the field nonc"),
            ({"artifacts": [], "vectors": []}, "vectors and artifacts say the same"),
            ({"artifacts": [{"nonce": 1, "vector_b64": RIGHT}] * 2}, "a nonce is repeated"),
            ({"artifacts": 7}, "artifacts"),
            ({"encoding": {"dtype": "f32"}}, r"batch\.encoding\.dtype: .*'f16'"),
            ({"encoding": {"endian": "be"}}, r"batch\.encoding\.endian: .*'le'"),
            ({"encoding": {"k_dim": 0}}, r"batch\.encoding\.k_dim"),
            ({"encoding": {"codec": "zip"}}, r"batch\.encoding\.codec: Extra inputs"),
            ({"dist": [0.5]}, r"batch\.dist: Extra inputs"),
            ({"k_dim": 12}, r"batch\.k_dim: Extra inputs"),
        ],
    )
    def test_what_is_wrong_is_refused_by_name(self, fields: dict[str, Any], why: str) -> None:
        with pytest.raises(InvalidRequest, match=why) as refused:
            read(ValidateRequest, {"batch": BLOCK | {"scheme": "artifact", "nonces": [1]} | fields})
        assert len(str(refused.value)) < 500

    def test_another_encoding_than_the_configs_can_not_be_judged(self) -> None:
        assert TERMS.refusal_of_batch(batch([RIGHT])) is None
        assert TERMS.refusal_of_batch(batch([RIGHT], encoding={"k_dim": 2})) is None
        why = TERMS.refusal_of_batch(batch([RIGHT], encoding={"k_dim": 12}))
        assert why
        assert "k_dim=2" in why

    @given(
        st.lists(
            st.tuples(st.integers(0, 2**31 - 1), st.binary(max_size=30).map(base64.b64encode)),
            unique_by=lambda pair: pair[0],
            max_size=20,
        )
    )
    def test_it_survives_the_wire(self, pairs: list[tuple[int, bytes]]) -> None:
        given = batch([each.decode() for _, each in pairs], [nonce for nonce, _ in pairs])
        assert ArtifactBatch.model_validate_json(given.model_dump_json()) == given


class TestJudge:
    def test_each_claim_that_can_not_be_compared_is_wrong(self) -> None:
        """Shorter, longer, empty, or with what is no number; all others are as far as they are."""
        bad = ["", "AA==", vector(1), vector(1, 0, 0), vector(math.nan, 0), vector(math.inf, 0)]
        found = judged([*bad, RIGHT, CLOSE, WRONG], [RIGHT] * 9)
        assert found.mismatch_nonces == [0, 1, 2, 3, 4, 5, 8]
        assert found.l2 == [None] * 6 + [0.0, 0.25, 2.0]
        assert (found.n_total, found.n_mismatch) == (9, 7)
        assert found.received_vectors == [*bad, RIGHT, CLOSE, WRONG]
        assert found.vectors == [RIGHT] * 9
        json.loads(found.model_dump_json(), parse_constant=pytest.fail)  # no NaN, no Infinity

    def test_only_farther_than_the_threshold_is_wrong(self) -> None:
        """At the very threshold it is not."""
        for threshold, wrong in ((0.25, 0), (0.2499, 1)):
            found = judged([CLOSE], [RIGHT], dist_threshold=threshold)
            assert found.n_mismatch == wrong

    def test_nonces_that_we_could_not_compute_are_left_out(self) -> None:
        found = judged([RIGHT] * 9 + [WRONG], [RIGHT] * 9 + [None])
        assert (found.n_total, found.n_mismatch, found.l2[9]) == (9, 0, None)
        assert found.not_computed == [9]
        assert found.p_value == 1.0
        assert not found.is_fraud

    def test_above_a_tenth_of_them_there_is_no_verdict(self) -> None:
        for missing, total in ((2, 19), (1, 9), (1, 1), (21, 200)):
            with pytest.raises(ValueError, match="too many nonces were not computed"):
                judged([RIGHT] * total, [None] * missing + [RIGHT] * (total - missing))
        assert judged([RIGHT] * 200, [None] * 20 + [RIGHT] * 180).n_total == 180

    def test_of_nothing_nobody_is_accused(self) -> None:
        found = judged([], [])
        assert (found.n_total, found.p_value, found.is_fraud) == (0, 1.0, False)

    def test_a_verdict_needs_one_vector_per_nonce(self) -> None:
        with pytest.raises(ValueError, match="one vector per nonce"):
            TERMS.judge(batch([RIGHT, RIGHT]), [RIGHT])

    def test_a_batch_without_claims_gets_its_vectors(self) -> None:
        asked = batch(None, [7, 8, *range(20, 38)])
        found = TERMS.judge(asked, [None, RIGHT, *[CLOSE] * 18], {"engine": "fake"})
        assert isinstance(found, ComputedArtifacts)
        assert found.ended is None
        assert not found.is_fraud
        assert found.limits == ""
        assert found.proofs[:2] == [None, RIGHT]
        assert found.not_computed == [7]
        assert found.encoding == Encoding(k_dim=2)

    def test_it_tells_what_it_was_judged_by(self) -> None:
        terms = ArtifactTerms.model_validate({"k_dim": 2, "fraud_threshold": 0.01})
        found = terms.judge(batch([RIGHT]), [RIGHT], {"engine": "fake"})
        assert isinstance(found, ValidatedArtifacts)
        assert (found.p_value_threshold, found.threshold_key) == (0.01, "fraud_threshold")
        assert (found.dist_threshold, found.p_mismatch) == (0.4, 0.1)
        assert found.limits == "dist_threshold 0.4, p_mismatch 0.1, fraud_threshold 0.01"
        assert judged([RIGHT], [RIGHT]).limits.endswith("p_value_threshold 0.05")
        assert found.profile == {"engine": "fake"}

    def test_a_bad_threshold_is_refused_by_the_name_that_it_was_given_by(self) -> None:
        for name in ("p_value_threshold", "fraud_threshold"):
            with pytest.raises(ValidationError, match=rf"^1 .*\n{name}\n"):
                ArtifactTerms.model_validate({name: 1})

    def test_which_name_was_used_is_noted_and_not_given(self) -> None:
        """A dump has it beside the threshold, and reads as it was."""
        for fields in ({"threshold_key": "fraud_threshold"}, {"threshold_key": ""}):
            with pytest.raises(ValidationError, match="threshold_key: is noted, not given"):
                ArtifactTerms.model_validate(fields)
        for fields, key in (
            ({}, ""),
            ({"p_value_threshold": 0.01}, "p_value_threshold"),
            ({"fraud_threshold": 0.01}, "fraud_threshold"),
            ({"p_value_threshold": 0.01, "fraud_threshold": 0.2}, "p_value_threshold"),
        ):
            terms = ArtifactTerms.model_validate(fields)
            assert terms.threshold_key == key
            assert terms.p_value_threshold == (0.01 if fields else 0.05)
            assert ArtifactTerms.model_validate(terms.model_dump()) == terms

    @given(
        st.lists(
            st.tuples(st.lists(float16s, max_size=3), st.none() | st.tuples(finite16s, finite16s)),
            max_size=30,
        )
    )
    def test_what_holds_for_any(self, pairs: list[tuple[list[float], Any]]) -> None:
        """A verdict is its own JSON, and its numbers follow from one another."""
        claimed = [vector(*theirs) for theirs, _ in pairs]
        recomputed = [None if ours is None else vector(*ours) for _, ours in pairs]
        if recomputed.count(None) > len(pairs) / 10:
            with pytest.raises(ValueError, match="too many"):
                judged(claimed, recomputed)
            return
        found = judged(claimed, recomputed)
        assert found == TERMS.verdict_from(json.loads(found.model_dump_json()))
        assert found.n_total == len(pairs) - len(found.not_computed)
        assert found.n_mismatch == len(found.mismatch_nonces) <= found.n_total
        assert not set(found.mismatch_nonces) & set(found.not_computed)
        for (theirs, ours), l2, nonce in zip(pairs, found.l2, found.nonces, strict=True):
            comparable = ours is not None and len(theirs) == 2 and all(map(math.isfinite, theirs))
            assert (l2 is not None) == comparable
            if comparable:
                assert l2 == math.dist(theirs, ours)
            if ours is not None:
                assert (nonce in found.mismatch_nonces) == (not comparable or l2 > 0.4)
        assert found.fraud_detected == (found.p_value < 0.05)
        assert 0 <= found.p_value <= 1

    @given(st.tuples(finite16s, finite16s), st.tuples(finite16s, finite16s))
    def test_apart_is_a_distance(self, one: Any, other: Any) -> None:
        ours, theirs = vector(*one), vector(*other)
        assert TERMS.apart(ours, theirs) == TERMS.apart(theirs, ours) == math.dist(one, other)
        assert TERMS.is_wrong(ours, theirs) == (math.dist(one, other) > 0.4)

    def test_what_an_answer_is_is_told_by_its_fields(self) -> None:
        computed = TERMS.judge(batch(None, [1]), [RIGHT])
        for verdict in (computed, judged([RIGHT], [RIGHT])):
            found = TERMS.verdict_from(verdict.model_dump(mode="json"))
            assert type(found) is type(verdict)
            assert found == verdict


@given(st.binary(max_size=10))
def test_numbers_of_a_vector(raw: bytes) -> None:
    found = numbers_of(base64.b64encode(raw).decode(), 2)
    if len(raw) != 4 or not all(map(math.isfinite, struct.unpack("<2e", raw))):
        assert found is None
    else:
        assert found == struct.unpack("<2e", raw)


class TestModel:
    def test_a_model_must_have_as_many_dimensions(self) -> None:
        assert ArtifactTerms(k_dim=64).refusal_of_model(64) is None
        why = ArtifactTerms(k_dim=65).refusal_of_model(64)
        assert why
        assert "k_dim=65" in why
        assert "64" in why

    def test_what_a_proof_depends_on_goes_with_the_job(self) -> None:
        assert ArtifactTerms(k_dim=7).parameters == {"k_dim": 7}


class TestMessage:
    CLAIM = Claim("token", "r1", "epoch", CONFIG, 0, 2, 0)

    def test_it_is_as_the_networks_receivers_read_it(self) -> None:
        message = generated_message(self.CLAIM, [(1, RIGHT), (4, CLOSE)])
        assert message
        assert message.url == "http://c/poc/generated"
        assert message.key == "r1:token"
        assert message.body + ",".join(message.items) + message.tail == (
            '{"public_key":"node","block_hash":"B10C","block_height":7,"node_id":1,'
            '"encoding":{"dtype":"f16","k_dim":2,"endian":"le"},"artifacts":['
            '{"nonce":1,"vector_b64":"ADwAAA=="},{"nonce":4,"vector_b64":"ADwANA=="}]}'
        )

    def test_two_bodies_of_a_round_can_be_joined(self) -> None:
        first, second = (
            generated_message(self.CLAIM, pairs) for pairs in ([(1, RIGHT)], [(4, CLOSE)])
        )
        assert first
        assert second
        assert (first.body, first.tail) == (second.body, second.tail)

    def test_without_a_vector_there_is_nothing_to_tell(self) -> None:
        assert generated_message(self.CLAIM, []) is None

    def test_every_vector_counts(self) -> None:
        assert all(TERMS.counts(each) for each in (RIGHT, WRONG))
        assert TERMS.loaded(TERMS.dumped(RIGHT)) == RIGHT
