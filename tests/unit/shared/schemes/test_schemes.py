"""Which scheme a config and a batch are of, and what is refused by name."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config import PoCConfig
from shared.errors import InvalidRequest
from shared.requests import GenerateRequest, InitRequest, ValidateRequest, read
from shared.schemes import SCHEMES, batch_from, terms_from, terms_of
from shared.schemes.artifact import ArtifactBatch, ArtifactTerms
from shared.schemes.distance import Distance, ProofBatch

BLOCK: dict[str, Any] = {"block_hash": "B10C", "block_height": 7, "public_key": "node"}
DISTANCE, ARTIFACT = BLOCK | {"r_target": 1.4}, BLOCK | {"scheme": "artifact"}
#: Two vectors of the two numbers 1 and 2, 3 and 4.
VECTORS = ["ADwAQA==", "AEIARA=="]


def config(fields: dict[str, Any]) -> PoCConfig:
    """A config as it comes over the wire. Raises `InvalidRequest`."""
    return read(InitRequest, {"config": json.loads(json.dumps(fields))}).config


class TestConfig:
    def test_a_config_that_says_nothing_is_of_the_published_scheme(self) -> None:
        assert config(DISTANCE).terms == Distance(r_target=1.4)
        assert config(DISTANCE) == config(DISTANCE | {"scheme": "distance"})

    def test_an_artifact_config_has_the_networks_defaults(self) -> None:
        found = config(ARTIFACT)
        assert (found.scheme, found.terms) == ("artifact", ArtifactTerms())
        assert found.terms.model_dump() == {
            "k_dim": 12,
            "dist_threshold": 0.4,
            "p_mismatch": 0.1,
            "p_value_threshold": 0.05,
            "threshold_key": "",
        }

    @pytest.mark.parametrize("fields", [DISTANCE, ARTIFACT, ARTIFACT | {"fraud_threshold": 0.01}])
    def test_it_survives_the_wire(self, fields: dict[str, Any]) -> None:
        """As JSON, as a mapping, and inside of a request, which knows no scheme."""
        found = config(fields)
        assert PoCConfig.model_validate_json(found.model_dump_json()) == found
        assert PoCConfig.model_validate(found.model_dump()) == found
        asked = GenerateRequest(config=found)
        assert GenerateRequest.model_validate_json(asked.model_dump_json()) == asked

    def test_fields_of_a_scheme_stand_beside_the_others(self) -> None:
        """For whoever reads JSON, and for callers in Python."""
        found = config(ARTIFACT | {"k_dim": 8})
        assert found.model_dump()["k_dim"] == found.k_dim == 8
        assert "terms" not in found.model_dump()
        with pytest.raises(AttributeError):
            _ = found.r_target

    @pytest.mark.parametrize(
        ("fields", "why"),
        [
            (ARTIFACT | {"r_target": 1.4}, "r_target: a field of the scheme distance, and this is"),
            (ARTIFACT | {"submit_margin": 0}, "submit_margin: a field of the scheme distance"),
            (DISTANCE | {"k_dim": 12}, "k_dim: a field of the scheme artifact, and this is dist"),
            (DISTANCE | {"dist_threshold": 0.4}, "dist_threshold: a field of the scheme artifact"),
            (DISTANCE | {"p_value_threshold": 0.4}, "p_value_threshold: a field of the scheme art"),
            (DISTANCE | {"scheme": "lottery"}, "no scheme 'lottery'; there are distance, artifact"),
            (DISTANCE | {"scheme": None}, "no scheme 'None'"),
            (DISTANCE | {"scheme": ["artifact"]}, "there is no scheme"),
            (DISTANCE | {"scheme": "x" * 10_000}, "there is no scheme"),
            (DISTANCE | {"dice": 6}, r"config\.dice: Extra inputs are not permitted"),
            (ARTIFACT | {"dice": 6}, r"config\.dice: Extra inputs are not permitted"),
            (BLOCK, r"config\.r_target: Field required"),
            (ARTIFACT | {"k_dim": 0}, r"config\.k_dim: .*greater than or equal to 1"),
            (ARTIFACT | {"k_dim": 1025}, r"config\.k_dim: .*less than or equal to 1024"),
            (ARTIFACT | {"k_dim": "12"}, r"config\.k_dim: .*valid integer"),
            (ARTIFACT | {"dist_threshold": 0}, r"config\.dist_threshold: .*greater than 0"),
            (ARTIFACT | {"dist_threshold": 2.1}, r"config\.dist_threshold: .*than or equal to 2"),
            (ARTIFACT | {"p_mismatch": 1}, r"config\.p_mismatch: .*less than 1"),
            (ARTIFACT | {"p_value_threshold": 0}, r"config\.p_value_threshold: .*greater than 0"),
            (ARTIFACT | {"fraud_threshold": 1}, r"config\.fraud_threshold: .*less than 1"),
            (ARTIFACT | {"fraud_threshold": None}, r"config\.fraud_threshold: .*valid number"),
            (ARTIFACT | {"threshold_key": "x"}, r"threshold_key: is noted, not given"),
            (ARTIFACT | {"terms": {}}, r"config\.terms: Extra inputs"),
            (ARTIFACT | {"node_id": 2**31, "node_count": 2**31}, r"config\.node_count"),
        ],
    )
    def test_what_is_wrong_is_refused_by_name(self, fields: dict[str, Any], why: str) -> None:
        with pytest.raises(InvalidRequest, match=why) as refused:
            config(fields)
        assert len(str(refused.value)) < 500
        assert ":terms" not in str(refused.value)

    def test_numbers_that_are_none_are_refused(self) -> None:
        for name in ("dist_threshold", "p_mismatch", "p_value_threshold", "fraud_threshold"):
            for number in (float("nan"), float("inf")):
                with pytest.raises(InvalidRequest, match=r"threshold|p_mismatch"):
                    read(InitRequest, {"config": ARTIFACT | {name: number}})

    @pytest.mark.parametrize(
        ("given", "used", "key"),
        [
            ({}, 0.05, ""),
            ({"p_value_threshold": 0.02}, 0.02, "p_value_threshold"),
            ({"fraud_threshold": 0.01}, 0.01, "fraud_threshold"),
            ({"fraud_threshold": 0.01, "p_value_threshold": 0.02}, 0.02, "p_value_threshold"),
        ],
    )
    def test_which_threshold_was_used_is_recorded(
        self, given: dict[str, float], used: float, key: str
    ) -> None:
        """Also after the wire: the network's controller and its nodes call it differently."""
        found = PoCConfig.model_validate_json(config(ARTIFACT | given).model_dump_json())
        assert (found.terms.p_value_threshold, found.terms.threshold_key) == (used, key)

    def test_nonces_end_where_the_scheme_says(self) -> None:
        assert config(ARTIFACT).positions == 2**31
        assert config(ARTIFACT | {"node_id": 1, "node_count": 3}).positions == (2**31 - 2) // 3 + 1
        assert config(DISTANCE).positions == 2**63
        last = config(ARTIFACT | {"node_id": 999_999, "node_count": 1_000_000})
        assert last.nonces(last.positions - 1, 1)[0] < 2**31 <= last.nonces(last.positions, 1)[0]

    @given(st.integers(0, 999_999), st.integers(1, 1_000_000))
    def test_the_last_position_is_the_last_nonce_that_counts(self, node: int, count: int) -> None:
        """Of any node of any network."""
        found = config(ARTIFACT | {"node_id": node % count, "node_count": count})
        last, beyond = found.nonces(found.positions - 1, 2)
        assert last < 2**31 <= beyond


class TestBatch:
    def test_a_batch_is_told_by_what_it_says_or_by_its_fields(self) -> None:
        for fields, kind in (
            ({"dist": [0.1, 0.2]}, ProofBatch),
            ({"dist": [0.1, 0.2], "scheme": "distance"}, ProofBatch),
            ({"vectors": VECTORS}, ArtifactBatch),
            ({"encoding": {"dtype": "f16", "k_dim": 2, "endian": "le"}}, ArtifactBatch),
            ({"scheme": "artifact"}, ArtifactBatch),
        ):
            found = batch_from(BLOCK | {"nonces": [1, 2]} | fields)
            assert type(found) is kind
            assert batch_from(json.loads(found.model_dump_json())) == found
            assert batch_from(found) is found
            asked = ValidateRequest(batch=found)
            assert ValidateRequest.model_validate_json(asked.model_dump_json()) == asked

    @pytest.mark.parametrize(
        ("fields", "why"),
        [
            ({"nonces": [1]}, r"batch\.dist: Field required"),
            ({"nonces": [1], "scheme": "lottery"}, "there is no scheme 'lottery'"),
            ({"nonces": [1], "scheme": 5}, "there is no scheme '5'"),
            ({"nonces": [1], "dist": [0.1], "vectors": ["AA=="]}, r"batch\.vectors: Extra inputs"),
            ({"nonces": [1], "dist": [0.1], "scheme": "artifact"}, r"batch\.dist: Extra inputs"),
            ({"nonces": [1], "vectors": [], "scheme": "distance"}, r"batch\.vectors: Extra"),
        ],
    )
    def test_what_is_wrong_is_refused_by_name(self, fields: dict[str, Any], why: str) -> None:
        with pytest.raises(InvalidRequest, match=why):
            read(ValidateRequest, {"batch": BLOCK | fields})

    @pytest.mark.parametrize("given", [7, "batch", [1], [[]]])
    def test_what_is_no_object_is_no_batch(self, given: Any) -> None:
        with pytest.raises(InvalidRequest, match="batch: is no batch"):
            read(ValidateRequest, {"batch": given})

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
            max_leaves=5,
        ),
        st.sampled_from(
            ["nonces", "vectors", "artifacts", "encoding", "dist", "scheme", "node_id", "k_dim"]
        ),
    )
    def test_whatever_comes_is_read_or_refused(self, value: Any, name: str) -> None:
        """As a task argument that is none of ours; no other exception gets out."""
        for whole in (
            {"batch": BLOCK | {"nonces": [1], "artifacts": []} | {name: value}},
            {"batch": BLOCK | {"nonces": [1], "vectors": ["AA=="]} | {name: value}},
            {"config": ARTIFACT | {name: value}},
        ):
            with suppress(InvalidRequest):
                read(ValidateRequest, whole)


def test_each_scheme_says_what_it_is() -> None:
    assert list(SCHEMES) == ["distance", "artifact"]
    for name, kind in SCHEMES.items():
        assert terms_of(name) is kind
        assert kind.name == kind.batch.scheme_name == name
        assert set(kind.in_status) <= set(kind.model_fields)
    assert not Distance.batch.marks & ArtifactTerms.batch.marks


def test_terms_are_read_from_the_fields_of_a_config() -> None:
    assert terms_from({"r_target": 1.0}) == Distance(r_target=1.0)
    assert terms_from({"scheme": "artifact", "k_dim": 3}) == ArtifactTerms(k_dim=3)
