"""The numbers of the artifact scheme against golden ones, and what must hold for any input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker import cpu_random, gpu_random
from worker.schemes import artifact

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[3] / "golden_artifacts.json").read_text(encoding="utf-8")
)
KEY: str = GOLDEN["public_key"]
#: How far floats may be from the golden ones, and vectors after float16, in L2.
TOLERANCE, VECTOR_TOLERANCE = 2e-6, 1e-3

nonce_lists = st.lists(st.integers(0, 2**63 - 1), max_size=6)
names = st.text(max_size=12).filter(lambda text: text.isprintable())
examples = settings(deadline=None, max_examples=60)
either = pytest.mark.parametrize("module", [gpu_random, cpu_random], ids=lambda each: each.__name__)


def golden(name: str) -> pytest.MarkDecorator:
    """One test for each case of the golden file's list `name`."""

    def title(case: dict[str, Any]) -> str:
        keys = ("block_hash", "nonce", "layer", "hidden_size", "strong_rng")
        return "-".join(str(case[key])[:8] for key in keys if key in case)

    return pytest.mark.parametrize("case", GOLDEN[name], ids=title)


def hidden_of(case: dict[str, Any]) -> torch.Tensor:
    """The hidden state that a golden vector was taken from: [1, hidden_size]."""
    return gpu_random.normal([gpu_random.seed(case["hidden_seed"])], case["hidden_size"])


class TestGolden:
    """What an independent program made, which agrees with the network's own code."""

    @either
    @golden("inputs")
    def test_inputs(self, case: dict[str, Any], module: ModuleType) -> None:
        inputs = module.generate_inputs(
            case["block_hash"],
            KEY,
            [case["nonce"]],
            case["hidden_size"],
            case["seq_len"],
            "cpu",
            torch.float32,
            strong_rng=case["strong_rng"],
        )
        np.testing.assert_allclose(inputs.flatten(), case["values"], rtol=0, atol=TOLERANCE)

    @golden("layer_vectors")
    def test_layer_vectors(self, case: dict[str, Any]) -> None:
        found = artifact.layer_vectors(case["block_hash"], case["layer"] + 1, case["hidden_size"])
        np.testing.assert_allclose(found[-1], case["vector"], rtol=0, atol=TOLERANCE)

    @golden("picks")
    def test_picks(self, case: dict[str, Any]) -> None:
        found = artifact.picks(case["block_hash"], KEY, [case["nonce"]], case["hidden_size"])
        assert found.tolist() == [case["dimensions"]]

    @golden("haar")
    def test_rotations(self, case: dict[str, Any]) -> None:
        w = artifact.rotations(case["block_hash"], KEY, [case["nonce"]] * 12)
        found = artifact.rotate(np.eye(12, dtype=np.float32), w)
        np.testing.assert_allclose(found, case["basis_images"], rtol=0, atol=TOLERANCE)

    @golden("finish")
    def test_vectors(self, case: dict[str, Any]) -> None:
        """From hidden state to base64, in numpy."""
        given = case["block_hash"], KEY, [case["nonce"]]
        hidden = artifact.normalised(hidden_of(case).numpy())
        picked = np.take_along_axis(hidden, artifact.picks(*given, case["hidden_size"]), axis=1)
        found = artifact.normalised(artifact.rotate(picked, artifact.rotations(*given)))
        np.testing.assert_allclose(found, [case["vector"]], rtol=0, atol=TOLERANCE)
        (text,) = artifact.encode(found)
        assert text is not None
        apart = artifact.decode(text) - artifact.decode(case["vector_b64"])
        assert np.linalg.norm(apart) < VECTOR_TOLERANCE

    @pytest.mark.parametrize("case", GOLDEN["judge"], ids=lambda case: f"{case['l2']:.2f}")
    def test_decoded_vectors_are_as_far_apart_as_a_judge_found(self, case: dict[str, Any]) -> None:
        apart = artifact.decode(case["claimed_b64"]) - artifact.decode(case["computed_b64"])
        assert np.linalg.norm(apart) == pytest.approx(case["l2"], abs=TOLERANCE)


class TestPicks:
    @given(names, names, nonce_lists, st.integers(1, 3000), st.data())
    @examples
    def test_those_of_the_least_hashes_ascending_but_the_kth_last(
        self, block: str, key: str, nonces: list[int], hidden_size: int, data: st.DataObject
    ) -> None:
        k = data.draw(st.integers(1, min(hidden_size, 20)))
        found = artifact.picks(block, key, nonces, hidden_size, k)
        assert found.shape == (len(nonces), k)
        assert found.dtype == np.int64
        for nonce, row in zip(nonces, found.tolist(), strict=True):
            seed = gpu_random.seed(f"{block}_{key}_nonce_{nonce}_pick_{k}")
            scores = gpu_random.murmur3_32(torch.arange(hidden_size), seed).tolist()
            best = sorted(range(hidden_size), key=scores.__getitem__)[:k]
            assert row == [*sorted(best[:-1]), best[-1]]

    @pytest.mark.parametrize("k", [0, 9])
    def test_more_than_there_are_dimensions_is_an_error(self, k: int) -> None:
        with pytest.raises(ValueError, match=f"k={k}: a hidden state of 8 has 1 to 8"):
            artifact.picks("b", "k", [1], 8, k)


class TestRotations:
    @given(nonce_lists, st.integers(1, 20))
    @examples
    def test_they_turn_without_stretching(self, nonces: list[int], k: int) -> None:
        w = artifact.rotations("b", "k", nonces, k)
        assert w.shape == (len(nonces), k - 1, k)
        assert w.dtype == np.float32
        basis = np.eye(k, dtype=np.float32)
        for each in w:
            images = artifact.rotate(basis, np.broadcast_to(each, (k, *each.shape)))
            np.testing.assert_allclose(images @ images.T, basis, rtol=0, atol=1e-5)

    @given(nonce_lists, st.integers(1, 20), st.integers(0, 2**32 - 1))
    @examples
    def test_undo_takes_them_back(self, nonces: list[int], k: int, seed: int) -> None:
        values = np.random.default_rng(seed).normal(size=(len(nonces), k)).astype(np.float32)
        w = artifact.rotations("b", "k", nonces, k)
        found = artifact.undo(artifact.rotate(values, w), w)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, values, rtol=0, atol=1e-5)

    def test_a_nonce_has_the_same_bits_beside_others(self) -> None:
        values = np.random.default_rng(0).normal(size=(40, 12)).astype(np.float32)
        together = artifact.rotate(values, artifact.rotations("b", "k", range(40)))
        for nonce, (row, expected) in enumerate(zip(values, together, strict=True)):
            alone = artifact.rotate(row[None], artifact.rotations("b", "k", [nonce]))
            assert alone.tobytes() == expected.tobytes()


class TestText:
    @given(st.lists(st.lists(st.floats(-60000, 60000, width=16), min_size=3, max_size=3)))
    def test_what_was_encoded_is_decoded(self, rows: list[list[float]]) -> None:
        texts = artifact.encode(np.array(rows, np.float32).reshape(-1, 3))
        found = [artifact.decode(text, 3).tolist() for text in texts if text is not None]
        assert found == rows

    def test_halves_are_rounded_to_even(self) -> None:
        (text,) = artifact.encode(np.array([[1 + 2**-11, 1 + 3 * 2**-11]], np.float32))
        assert text == "ADwCPA=="

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e5])
    def test_a_row_that_is_not_finite_has_no_text(self, bad: float) -> None:
        rows = np.array([[1.0, bad], [1.0, 2.0]], np.float32)
        assert artifact.encode(rows) == [None, "ADwAQA=="]

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("ADw!AA==", "is no base64"),
            ("ADwAQ", "is no base64"),
            ("ä", "is no base64"),
            ("ADw=", "2 values of float16 are 4"),
        ],
    )
    def test_anything_else_is_an_error(self, text: str, why: str) -> None:
        with pytest.raises(ValueError, match=why):
            artifact.decode(text, 2)


class TestOrderScore:
    """Vectors of a model whose hidden states have a mean of their own in each dimension."""

    NONCES, HIDDEN_SIZE = range(400), 512

    @pytest.fixture
    def vectors(self) -> artifact.Floats:
        rng = np.random.default_rng(1)
        means = 0.5 * rng.normal(size=self.HIDDEN_SIZE)
        hidden = (means + rng.normal(size=(400, self.HIDDEN_SIZE))).astype(np.float32)
        dimensions = artifact.picks("b", "k", self.NONCES, self.HIDDEN_SIZE)
        picked = np.take_along_axis(hidden, dimensions, axis=1)
        return artifact.normalised(
            artifact.rotate(picked, artifact.rotations("b", "k", self.NONCES))
        )

    def test_the_right_order_scores_tens(self, vectors: artifact.Floats) -> None:
        assert artifact.order_score("b", "k", self.NONCES, vectors, self.HIDDEN_SIZE) > 10

    def test_another_order_or_key_scores_about_one(
        self, vectors: artifact.Floats, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert abs(artifact.order_score("b", "j", self.NONCES, vectors, self.HIDDEN_SIZE)) < 4
        right, rng = artifact.picks, np.random.default_rng(2)
        monkeypatch.setattr(artifact, "picks", lambda *a: rng.permuted(right(*a), axis=1))
        assert abs(artifact.order_score("b", "k", self.NONCES, vectors, self.HIDDEN_SIZE)) < 4

    def test_a_row_that_is_not_finite_is_passed_over(self, vectors: artifact.Floats) -> None:
        spoiled = vectors.copy()
        spoiled[7, 3] = math.nan
        assert artifact.order_score("b", "k", self.NONCES, spoiled, self.HIDDEN_SIZE) > 10

    def test_without_pairs_there_is_nothing_to_tell(self, vectors: artifact.Floats) -> None:
        assert artifact.order_score("b", "k", [0], vectors[:1], self.HIDDEN_SIZE) == 0.0


@given(nonce_lists, st.integers(0, 70_000))
@settings(max_examples=20)
def test_hashes_of_many_seeds_are_those_of_each(seeds: list[int], n: int) -> None:
    """`cpu_random.hashes`, which all of it stands on."""
    seeds = [seed % 2**32 for seed in seeds]
    found = np.zeros((len(seeds), n), np.uint32)
    for rows, hashes in cpu_random.hashes(seeds, n):
        found[rows] = hashes
    for seed, row in zip(seeds, found, strict=True):
        assert row.tolist() == gpu_random.murmur3_32(torch.arange(n), seed).tolist()
