"""The kernels against their specification in plain torch, run by Triton's interpreter on a CPU.

The interpreter takes seconds for what a GPU does in microseconds, so vocabularies are small and
buckets, too. `tests/gpu/test_kernels.py` has the real sizes.
"""

from __future__ import annotations

import math
from dataclasses import fields
from types import ModuleType

import pytest
import torch
from torch import Tensor

from worker import gpu_random, kernels
from worker.engines.vllm.memory import ENTRY_BYTES

NONCES = (0, 7, 2**32, 2**63 - 1)
TOLERANCE = 2e-6


def distances_of(module: ModuleType, logits: Tensor, target: Tensor, **options: int) -> Tensor:
    """By a module of the two."""
    made = module.generate_permutations("b", "k", NONCES, logits.shape[1], "cpu", **options)
    found: Tensor = module.compute_distances(logits, made, target)
    return found


def logits_of(vocab_size: int) -> Tensor:
    """One row for each nonce, with more columns than the vocabulary has."""
    seeded = torch.Generator().manual_seed(vocab_size)
    return torch.randn(len(NONCES), vocab_size + 5, generator=seeded)[:, :vocab_size]


@pytest.fixture(scope="module")
def expected() -> Tensor:
    """Distances of a vocabulary of 40, as the kernels give them."""
    return distances_of(kernels, logits_of(40), gpu_random.generate_target("b", 40, "cpu"), slots=8)


@pytest.mark.parametrize("strong", [False, True], ids=["plain", "strong"])
@pytest.mark.parametrize(("dim", "seq_len"), [(1, 1), (3, 3), (64, 33)])
def test_inputs(dim: int, seq_len: int, strong: bool) -> None:
    """Also of an odd length, and of fewer values than a strong input has segments."""
    given = "b", "k", NONCES, dim, seq_len, "cpu", torch.float32, strong
    ours, specified = kernels.generate_inputs(*given), gpu_random.generate_inputs(*given)
    torch.testing.assert_close(ours, specified, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("slots", [4, 8], ids=lambda slots: f"{slots} slots")
@pytest.mark.parametrize("vocab_size", [1, 2, 80])
def test_distances(vocab_size: int, slots: int) -> None:
    """With buckets of four some spill, and their ranks are right all the same."""
    logits, target = logits_of(vocab_size), gpu_random.generate_target("b", vocab_size, "cpu")
    ours = distances_of(kernels, logits, target, slots=slots)
    specified = distances_of(gpu_random, logits, target)
    torch.testing.assert_close(ours, specified, rtol=0, atol=TOLERANCE)


def test_logits_may_lie_in_memory_as_they_like(expected: Tensor) -> None:
    """Also column by column."""
    by_column = logits_of(40).t().contiguous().t()
    target = gpu_random.generate_target("b", 40, "cpu")
    assert torch.equal(distances_of(kernels, by_column, target, slots=8), expected)


def test_buckets_of_four_do_spill() -> None:
    """Or the test above shows nothing of it."""
    made = kernels.generate_permutations("b", "k", NONCES, 80, "cpu", slots=4)
    spilled = made.counts[:, -1, 0].tolist()  # the last count of each row
    assert all(0 < each < 40 for each in spilled)
    assert made.counts[:, :-1, 0].sum(1).tolist() == [80] * len(NONCES)


def test_a_row_takes_the_memory_that_is_reckoned_with() -> None:
    """Most where one entry more doubles the buckets, and they are little more than half full."""
    vocab_size = int(kernels._FILL * kernels._SLOTS * 64) + 1
    made = kernels.generate_permutations("b", "k", NONCES[:1], vocab_size, "cpu")
    sums = 3 * made.offsets.numel() * 8
    taken = sums + sum(getattr(made, each.name).nbytes for each in fields(made))
    assert 17 * vocab_size < taken <= ENTRY_BYTES * vocab_size


# numpy, which the interpreter computes with, says more than a device.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e38])
def test_what_has_no_direction_has_no_distance(bad: float, expected: Tensor) -> None:
    """No other row feels it."""
    logits, target = logits_of(40), gpu_random.generate_target("b", 40, "cpu")
    logits[1] = bad
    logits[2] = 0.0
    found = distances_of(kernels, logits, target, slots=8)
    assert found.isnan().tolist() == [False, True, True, False]
    assert torch.equal(found[[0, 3]], expected[[0, 3]])
