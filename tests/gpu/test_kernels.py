"""The kernels against their specification in plain torch, on a CUDA device."""

from __future__ import annotations

import importlib
import math
import secrets
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest
import torch

from worker import gpu_random

pytestmark = pytest.mark.gpu

#: Of published models, and what no model has.
VOCABULARIES = (1, 2, 97, 32_000, 128_256, 151_936, 163_840, 202_048, 262_144)
#: Of distances, with the vocabulary of a model and with one where float32 itself is further off.
TOLERANCE, OF_FEW = 2.5e-7, 2e-6
EDGES = (2**63 - 1, 2**32, 2**32 - 1, 1, 0)


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    """Imported by tests that run: where they are interpreted, Triton is told before the import."""
    return importlib.import_module("worker.kernels")


def nonces(count: int) -> list[int]:
    """Fresh ones, one at least, with those at the edges."""
    fresh = max(1, count - len(EDGES))
    return [*(secrets.randbelow(2**63) for _ in range(fresh)), *EDGES][:count]


def distances_of(
    module: Any, logits: torch.Tensor, given: Sequence[Any], target: torch.Tensor
) -> torch.Tensor:
    """By a module of the two; `given` are a block, a key and nonces."""
    made = module.generate_permutations(*given, logits.shape[1], "cuda")
    found: torch.Tensor = module.compute_distances(logits, made, target)
    return found


def logits_of(rows: int, vocab_size: int, dtype: torch.dtype) -> torch.Tensor:
    """As a model gives them: more columns than its vocabulary has."""
    return torch.randn(rows, vocab_size + 64, device="cuda").mul_(3).to(dtype)[:, :vocab_size]


@pytest.mark.parametrize("strong", [False, True], ids=["plain", "strong"])
@pytest.mark.parametrize(("dim", "seq_len"), [(1024, 256), (4096, 7), (63, 5), (1, 1)])
@pytest.mark.parametrize("rows", [1, 33])
def test_inputs(kernels: ModuleType, rows: int, dim: int, seq_len: int, strong: bool) -> None:
    """To the last bit, before the cast to a half type."""
    given = secrets.token_hex(8), "key", nonces(rows), dim, seq_len, "cuda", torch.float32, strong
    ours, specified = kernels.generate_inputs(*given), gpu_random.generate_inputs(*given)
    assert ours.shape == specified.shape == (rows, seq_len, dim)
    assert torch.equal(ours, specified), (ours - specified).abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inputs_of_a_half_type(kernels: ModuleType, dtype: torch.dtype) -> None:
    """And after it."""
    given = secrets.token_hex(8), "key", nonces(32), 1024, 256, "cuda", dtype
    ours, specified = kernels.generate_inputs(*given), gpu_random.generate_inputs(*given)
    assert torch.equal(ours, specified), (ours != specified).float().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab_size", VOCABULARIES)
def test_distances(kernels: ModuleType, vocab_size: int, dtype: torch.dtype) -> None:
    block = secrets.token_hex(8)
    target = gpu_random.generate_target(block, vocab_size, "cuda")
    logits, given = logits_of(33, vocab_size, dtype), (block, "key", nonces(33))
    ours = distances_of(kernels, logits, given, target)
    specified = distances_of(gpu_random, logits, given, target)
    tolerance = TOLERANCE if vocab_size >= 32_000 else OF_FEW
    torch.testing.assert_close(ours, specified, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("fill", "spills"), [(1.0, 0.01), (2.0, 0.4), (4.0, 0.7)])
def test_a_bucket_that_overflows_changes_nothing(
    kernels: ModuleType, fill: float, spills: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some spill where buckets are meant to be just full, most where they are meant to overflow."""
    target = gpu_random.generate_target("b", 32_000, "cuda")
    logits, given = logits_of(4, 32_000, torch.bfloat16), ("b", "key", nonces(4))
    expected = distances_of(kernels, logits, given, target)
    monkeypatch.setattr(kernels, "_FILL", fill)
    spilled = kernels.generate_permutations(*given, 32_000, "cuda").counts[:, -1, 0]
    assert (spilled > spills * 32_000).all()
    assert torch.equal(distances_of(kernels, logits, given, target), expected)


def test_a_nonce_does_not_feel_its_tile(kernels: ModuleType) -> None:
    """The same bits alone, and among 6, 31, 32 or 255 others, in inputs and distances."""
    target = gpu_random.generate_target("b", 151_936, "cuda")
    logits, drawn = logits_of(256, 151_936, torch.bfloat16), nonces(256)
    together = distances_of(kernels, logits, ("b", "key", drawn), target)
    shape = 64, 16, "cuda", torch.float32
    inputs = kernels.generate_inputs("b", "key", drawn, *shape)
    for part in (slice(0, 1), slice(3, 10), slice(5, 37), slice(200, 233)):
        alone = distances_of(kernels, logits[part], ("b", "key", drawn[part]), target)
        assert torch.equal(alone, together[part])
        assert torch.equal(kernels.generate_inputs("b", "key", drawn[part], *shape), inputs[part])
    assert torch.equal(distances_of(kernels, logits, ("b", "key", drawn), target), together)


def test_what_has_no_direction_has_no_distance(kernels: ModuleType) -> None:
    """NaN, and no other row feels it."""
    logits = logits_of(6, 32_000, torch.float32)
    healthy = logits.clone()
    logits[1, 7], logits[2, 31_999], logits[3] = math.nan, math.inf, 0.0
    logits[4] = 1e38
    target = gpu_random.generate_target("b", 32_000, "cuda")
    found, expected = (
        distances_of(kernels, each, ("b", "key", range(6)), target) for each in (logits, healthy)
    )
    assert found.isnan().tolist() == [False, True, True, True, True, False]
    assert torch.equal(found[[0, 5]], expected[[0, 5]])
