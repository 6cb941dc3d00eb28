"""The artifact scheme on a device: reflections, and what is read from hidden states."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shared.errors import EngineError
from worker import gpu_random
from worker.engines import Job
from worker.schemes import artifact
from worker.schemes.artifact import ArtifactTensors, Reflections, read_picks, reflected
from worker.schemes.base import Deployed

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[3] / "golden_artifacts.json").read_text(encoding="utf-8")
)
CPU = torch.device("cpu")
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
seeds = st.integers(0, 2**32 - 1)


def normals(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def unit(size: int = 16) -> Tensor:
    return torch.from_numpy(artifact.layer_vectors("b", 1, size)[0])


class TestReflected:
    @given(seeds)
    @settings(max_examples=30)
    def test_lengths_stay_and_twice_is_never(self, seed: int) -> None:
        x = normals(seed, 3, 5, 16)
        found = reflected(x, unit())
        torch.testing.assert_close(found.norm(dim=-1), x.norm(dim=-1))
        torch.testing.assert_close(reflected(found, unit()), x, rtol=0, atol=1e-5)
        torch.testing.assert_close(found @ unit(), -(x @ unit()), rtol=0, atol=1e-5)

    @given(seeds)
    @settings(max_examples=30)
    def test_the_sum_of_both_streams_is_reflected(self, seed: int) -> None:
        """By reflecting each of them."""
        hidden, residual = normals(seed, 2, 7, 16)
        found = reflected((hidden, residual), unit())
        torch.testing.assert_close(sum(found), reflected(hidden + residual, unit()))

    @dtypes
    def test_it_is_computed_in_the_dtype_of_the_activations(self, dtype: torch.dtype) -> None:
        x, v = normals(0, 4, 16, dtype=dtype), unit().to(dtype)
        along = torch.stack([(row * v).sum() for row in x])
        expected = torch.stack([row - (2 * each) * v for row, each in zip(x, along, strict=True)])
        found = reflected(x, unit())
        assert found.dtype == dtype
        assert torch.equal(found, expected)

    def test_further_elements_are_left_alone(self) -> None:
        hidden, residual, third = normals(0, 3, 2, 16)
        found = reflected((hidden, residual, third, "more"), unit())
        assert found[2:] == (third, "more")
        assert found[2] is third
        alone, absent = reflected((hidden, None), unit())
        assert absent is None
        (single,) = reflected((hidden,), unit())
        assert torch.equal(alone, single)
        assert torch.equal(alone, found[0])

    @pytest.mark.parametrize("output", [None, (), ("x",), {"x": 1}, [torch.ones(16)]], ids=str)
    def test_what_can_not_be_reflected_is_an_error(self, output: Any) -> None:
        with pytest.raises(EngineError, match=r"a decoder layer gave .* can't be reflected; use"):
            reflected(output, unit())

    @pytest.mark.parametrize("second", ["x", torch.ones(2, 3)], ids=["text", "shape"])
    def test_a_second_value_that_is_no_residual_is_an_error(self, second: Any) -> None:
        with pytest.raises(EngineError, match="no residual"):
            reflected((torch.ones(2, 16), second), unit())


class TestReflections:
    def test_without_a_block_nothing_comes_of_a_forward(self) -> None:
        layer = Reflections(2, 16, CPU).edit(1, nn.Identity())
        assert layer(normals(0, 2, 16)).isnan().all()

    @torch.inference_mode()
    def test_a_block_is_written_where_the_last_one_was(self) -> None:
        """Where it is read by what was recorded."""
        reflections = Reflections(3, 16, CPU)
        address, x = reflections.vectors.data_ptr(), normals(0, 2, 16)
        layers = [reflections.edit(index, nn.Identity()) for index in range(3)]
        for block in ("A", "B", "A"):
            reflections.use(block)
            assert reflections.block_hash == block
            assert reflections.vectors.data_ptr() == address
            expected = torch.from_numpy(artifact.layer_vectors(block, 3, 16))
            assert torch.equal(reflections.vectors, expected)
            for layer, vector in zip(layers, expected, strict=True):
                assert torch.equal(layer(x), reflected(x, vector))

    def test_the_same_block_is_not_written_again(self) -> None:
        reflections = Reflections(1, 16, CPU)
        reflections.use("A")
        reflections.vectors.zero_()
        reflections.use("A")
        assert not reflections.vectors.any()

    def test_after_a_failure_no_block_is_in_use(self) -> None:
        reflections = Reflections(1, 16, CPU)
        reflections.use("A")
        with pytest.raises(UnicodeEncodeError):
            reflections.use("\ud800")
        assert reflections.block_hash is None
        reflections.use("A")
        assert reflections.block_hash == "A"


class TestReadPicks:
    @dtypes
    def test_each_row_is_normalised_and_picked(self, dtype: torch.dtype) -> None:
        hidden = normals(0, 5, 64, dtype=dtype)
        picked = torch.from_numpy(artifact.picks("b", "k", range(5), 64))
        found = read_picks(hidden, picked)
        expected = [
            [row[at] / (math.sqrt(sum(each * each for each in row)) + 1e-8) for at in its]
            for row, its in zip(hidden.tolist(), picked.tolist(), strict=True)
        ]
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-6)

    @given(seeds, st.integers(1, 40))
    @settings(max_examples=30)
    def test_a_row_has_the_same_bits_beside_others(self, seed: int, rows: int) -> None:
        hidden = normals(seed, rows, 1024)
        picked = torch.from_numpy(artifact.picks("b", "k", range(rows), 1024))
        found = read_picks(hidden, picked)
        for at in range(rows):
            assert torch.equal(read_picks(hidden[at : at + 1], picked[at : at + 1])[0], found[at])

    @dtypes
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_a_row_that_is_not_finite_is_nan_and_no_other(
        self, bad: float, dtype: torch.dtype
    ) -> None:
        hidden = normals(0, 3, 64, dtype=dtype)
        picked = torch.from_numpy(artifact.picks("b", "k", range(3), 64))
        whole = read_picks(hidden, picked)
        unpicked = min(set(range(64)) - set(picked[1].tolist()))
        hidden[1, unpicked] = bad
        found = read_picks(hidden, picked)
        assert found[1].isnan().all()
        assert torch.equal(found[[0, 2]], whole[[0, 2]])

    def test_a_norm_beyond_float32_is_nan(self) -> None:
        """Instead of a row of plausible zeros."""
        picked = torch.from_numpy(artifact.picks("b", "k", [1], 64))
        assert read_picks(torch.full((1, 64), 3e38), picked).isnan().all()

    def test_a_row_of_zeros_stays_one(self) -> None:
        picked = torch.from_numpy(artifact.picks("b", "k", [1], 64))
        assert not read_picks(torch.zeros(1, 64), picked).any()


class TestArtifactTensors:
    @staticmethod
    def tensors(hidden_size: int = 64, **changes: Any) -> ArtifactTensors:
        given: dict[str, Any] = {"device": CPU, "dtype": torch.float32, **changes}
        return ArtifactTensors(Deployed(layers=1, hidden_size=hidden_size, vocab_size=96, **given))

    @staticmethod
    def job(*nonces: int, block_hash: str = "b", strong_rng: bool = False) -> Job:
        return Job(block_hash, GOLDEN["public_key"], nonces, 3, strong_rng)

    @pytest.mark.parametrize("hidden_size", [64, 1024])
    @pytest.mark.parametrize("block_hash", GOLDEN["block_hashes"], ids=lambda text: text[:6])
    def test_vectors_are_golden(self, block_hash: str, hidden_size: int) -> None:
        """All nonces of a block together, from hidden states to what is sent."""
        cases = [
            case
            for case in GOLDEN["finish"]
            if (case["block_hash"], case["hidden_size"]) == (block_hash, hidden_size)
        ]
        job = self.job(*(case["nonce"] for case in cases), block_hash=block_hash)
        tensors = self.tensors(hidden_size)
        _, prepared = tensors.make(job, job.nonces)
        tensors.enter(job)
        drawn = [gpu_random.seed(case["hidden_seed"]) for case in cases]
        rows = tensors.read(gpu_random.normal(drawn, hidden_size), prepared, job)
        for text, case in zip(tensors.proofs(rows, job), cases, strict=True):
            assert text is not None
            apart = artifact.decode(text) - artifact.decode(case["vector_b64"])
            assert np.linalg.norm(apart) < 1e-3
        assert len(cases) == 6

    @pytest.mark.parametrize("strong_rng", [False, True])
    def test_inputs_are_the_generators(self, strong_rng: bool) -> None:
        tensors = self.tensors(dtype=torch.bfloat16)
        job = self.job(5, 6, 7, strong_rng=strong_rng)
        inputs, _ = tensors.make(job, [6, 7, 7])
        expected = gpu_random.generate_inputs(
            "b", job.public_key, [6, 7, 7], 64, 3, CPU, torch.bfloat16, strong_rng=strong_rng
        )
        assert torch.equal(inputs, expected)

    def test_a_nonce_that_is_not_finite_has_no_proof(self) -> None:
        tensors, job = self.tensors(), self.job(1, 2)
        rows = torch.ones(2, 12)
        rows[0] = math.nan
        none, some = tensors.proofs(rows, job)
        assert none is None
        assert some is not None

    def test_hidden_states_of_another_block_are_an_error(self) -> None:
        tensors, job = self.tensors(), self.job(1)
        _, prepared = tensors.make(job, job.nonces)
        for use in (lambda: None, lambda: tensors.enter(self.job(1, block_hash="other"))):
            use()
            with pytest.raises(EngineError, match="hidden states of block b were reflected for"):
                tensors.read(torch.ones(1, 64), prepared, job)

    def test_other_numbers_of_dimensions_are_possible(self) -> None:
        tensors, job = self.tensors(), replace(self.job(1), parameters={"k_dim": 5})
        _, prepared = tensors.make(job, job.nonces)
        tensors.enter(job)
        (text,) = tensors.proofs(tensors.read(normals(0, 1, 64), prepared, job), job)
        assert text is not None
        assert np.linalg.norm(artifact.decode(text, 5)) == pytest.approx(1, abs=1e-3)
