"""Batches that are refused as a whole, and verdicts that can be recomputed by hand."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.config import MAX_NONCE, PoCConfig
from shared.data import PROBABILITY_MISMATCH, ProofBatch, ValidatedBatch
from shared.wire import MAX_PROOF_NONCES
from support import changed

CONFIG = PoCConfig(block_hash="b10c", block_height=7, public_key="node", r_target=1.0)


def batch(nonces: list[Any], dist: list[Any]) -> ProofBatch:
    """A batch as it comes over the wire."""
    return ProofBatch(
        public_key="node", block_hash="b10c", block_height=7, nonces=nonces, dist=dist
    )


def judge(received: list[float], dist: list[float], **changes: Any) -> ValidatedBatch:
    """The verdict on nonces 0, 1, ... with these distances."""
    config = changed(CONFIG, **changes)
    return ValidatedBatch.judge(batch(list(range(len(received))), received), dist, config)


class TestProofBatch:
    """Hostile input is refused as a whole."""

    @pytest.mark.parametrize(
        ("nonces", "dist", "why"),
        [
            pytest.param([1, 2], [0.5], "2 nonces but 1 distances", id="different lengths"),
            pytest.param([1, 1], [0.5, 0.5], "a nonce is repeated", id="repeated"),
            pytest.param([-1], [0.5], "greater than or equal to 0", id="negative"),
            pytest.param([MAX_NONCE + 1], [0.5], "less than or equal", id="too large"),
            pytest.param([True], [0.5], "valid integer", id="a boolean"),
            pytest.param([1.0], [0.5], "valid integer", id="a float"),
            pytest.param(["1"], [0.5], "valid integer", id="a string"),
            pytest.param([1], [nan], "finite", id="NaN"),
            pytest.param([1], [inf], "finite", id="infinity"),
            pytest.param([1], ["0.5"], "valid number", id="a distance that is a string"),
            pytest.param([1], [None], "valid number", id="a distance that is none"),
        ],
    )
    def test_a_bad_pair_refuses_the_batch(
        self, nonces: list[Any], dist: list[Any], why: str
    ) -> None:
        """And says why."""
        with pytest.raises(ValidationError, match=why):
            batch(nonces, dist)

    def test_the_least_that_there_is_is_taken(self) -> None:
        """The first block, nonce 0, and the node that needs no number."""
        least = ProofBatch(public_key="k", block_hash="b", block_height=0, nonces=[0], dist=[0.0])
        assert (least.block_height, least.nonces, least.dist, least.node_id) == (0, [0], [0.0], 0)
        with pytest.raises(ValidationError):
            ProofBatch.model_validate(least.model_dump() | {"block_height": -1})

    def test_json_of_python_that_is_no_json_is_refused(self) -> None:
        """Python's own parser lets NaN through."""
        text = batch([1], [0.5]).model_dump_json().replace("0.5", "NaN")
        with pytest.raises(ValidationError):
            ProofBatch.model_validate_json(text)

    def test_a_batch_has_a_largest_size(self) -> None:
        nonces = list(range(MAX_PROOF_NONCES + 1))
        with pytest.raises(ValidationError, match="at most 100000"):
            batch(nonces, [0.5] * len(nonces))

    @given(
        st.lists(st.tuples(st.integers(0, MAX_NONCE), st.floats(0, 2)), unique_by=lambda p: p[0])
    )
    def test_it_survives_the_wire(self, pairs: list[tuple[int, float]]) -> None:
        """Bit for bit, the largest nonces too."""
        sent = batch([n for n, _ in pairs], [d for _, d in pairs])
        assert ProofBatch.model_validate_json(sent.model_dump_json()) == sent

    def test_it_is_made_of_a_nodes_config(self) -> None:
        config = CONFIG.model_copy(update={"node_id": 2, "node_count": 3})
        made = ProofBatch.of(config, (2, 5), (0.5, 0.25))
        assert (made.public_key, made.block_hash, made.block_height) == ("node", "b10c", 7)
        assert (made.node_id, made.nonces, made.dist) == (2, [2, 5], [0.5, 0.25])

    def test_a_sub_batch_is_strictly_below_the_target(self) -> None:
        """A distance that equals it is not valid."""
        kept = batch([7, 5, 3], [1.0, 0.99, 0.5]).sub_batch(1.0)
        assert (kept.nonces, kept.dist, len(kept)) == ([5, 3], [0.99, 0.5], 2)
        assert (kept.public_key, kept.block_hash) == ("node", "b10c")

    def test_the_empty_batch_is_empty(self) -> None:
        assert len(ProofBatch.empty()) == len(ProofBatch.empty().sub_batch(2)) == 0


class TestVerdict:
    """A binomial test of how many nonces changed sides."""

    def test_an_honest_batch_is_no_fraud(self) -> None:
        """None of the nonces is invalid, so that is as probable as can be."""
        verdict = judge([0.5, 0.6], [0.5, 0.6])
        assert (verdict.n_invalid, verdict.probability_honest) == (0, 1.0)
        assert not verdict.fraud_detected

    def test_an_empty_batch_is_no_fraud(self) -> None:
        verdict = judge([], [])
        assert (len(verdict), verdict.probability_honest, verdict.fraud_detected) == (0, 1.0, False)

    @pytest.mark.parametrize(
        ("n", "n_invalid", "p", "probability"),
        [
            # At least one of n: 1 - (1 - p)**n.
            (1, 1, PROBABILITY_MISMATCH, 5e-4),
            (2, 1, 0.5, 0.75),
            (200, 1, PROBABILITY_MISMATCH, 1 - (1 - 5e-4) ** 200),
            # All of n: p**n.
            (3, 3, 0.5, 0.125),
            (4, 4, 0.1, 1e-4),
            # At least two of three: 3 p**2 (1 - p) + p**3.
            (3, 2, 0.5, 0.5),
        ],
    )
    def test_the_probability_is_the_binomial_tail(
        self, n: int, n_invalid: int, p: float, probability: float
    ) -> None:
        """Of at least so many invalid ones of n."""
        dist = [1.5] * n_invalid + [0.5] * (n - n_invalid)
        verdict = judge([0.5] * n, dist, p_mismatch=p)
        assert verdict.n_invalid == n_invalid
        assert verdict.probability_honest == pytest.approx(probability, rel=1e-12)

    @pytest.mark.parametrize("p", [1e-9, PROBABILITY_MISMATCH, 0.05, 0.5, 0.99])
    @pytest.mark.parametrize(
        ("n", "n_invalid"), [(1, 1), (100, 0), (100, 3), (1000, 7), (1000, 999)]
    )
    def test_it_is_the_published_test_bit_for_bit(self, n: int, n_invalid: int, p: float) -> None:
        """Which scipy has, in a module that is slow to load."""
        from scipy.stats import binomtest  # slow to import, and needed nowhere else

        dist = [1.5] * n_invalid + [0.5] * (n - n_invalid)
        published = binomtest(n_invalid, n, p, alternative="greater").pvalue
        assert judge([0.5] * n, dist, p_mismatch=p).probability_honest == published

    def test_fraud_is_strictly_below_the_threshold(self) -> None:
        """Given a probability of exactly 0.5."""
        assert not judge([0.5], [1.5], p_mismatch=0.5, fraud_threshold=0.5).fraud_detected
        assert judge([0.5], [1.5], p_mismatch=0.5, fraud_threshold=0.51).fraud_detected

    def test_one_invalid_nonce_is_fraud_by_default(self) -> None:
        """Of few, that is: of a hundred it is not."""
        assert judge([0.5] * 10, [1.5] + [0.5] * 9).fraud_detected
        assert not judge([0.5] * 100, [1.5] + [0.5] * 99).fraud_detected

    @pytest.mark.parametrize("received", [1.0, 1.0000001, 2.0])
    def test_a_received_distance_from_the_target_on_is_invalid(self, received: float) -> None:
        """The submitter itself says that it is not valid, so no tolerance helps."""
        assert judge([received], [0.5], dist_tolerance=0.1).n_invalid == 1

    def test_a_recomputed_distance_at_the_target_is_not_invalid(self) -> None:
        """One above it is, as published."""
        assert judge([0.5, 0.5], [1.0, 1.0000001]).n_invalid == 1

    def test_the_tolerance_forgives_the_recomputed_distance(self) -> None:
        """Up to itself."""
        assert judge([0.5, 0.5], [1.25, 1.2500001], dist_tolerance=0.25).n_invalid == 1

    def test_a_nonce_that_is_wrong_twice_counts_once(self) -> None:
        assert judge([1.5], [1.5]).n_invalid == 1

    def test_a_verdict_holds_all_that_it_rests_on(self) -> None:
        """So that anyone can judge again."""
        config = changed(CONFIG, dist_tolerance=0.1, submit_margin=0.2, p_mismatch=0.3)
        received = batch([7, 5], [0.5, 0.25])
        verdict = ValidatedBatch.judge(received, [0.5, 0.26], config, {"dtype": "float32"})
        shown = verdict.model_dump()
        for name, value in received.model_dump(exclude={"dist"}).items():
            assert shown[name] == value, name
        assert (verdict.received_dist, verdict.dist) == ([0.5, 0.25], [0.5, 0.26])
        used = config.terms.model_dump()
        assert {name: shown[name] for name in used} == used
        assert verdict.profile == {"dtype": "float32"}
        assert ValidatedBatch.model_validate_json(verdict.model_dump_json()) == verdict

    @pytest.mark.parametrize("dist", [[], [0.5, 0.5], [nan], [inf]])
    def test_it_needs_a_finite_distance_for_each_nonce(self, dist: list[float]) -> None:
        """A validator that cannot compute must not accuse."""
        with pytest.raises(ValueError, match="one finite distance per nonce"):
            judge([0.5], dist)
