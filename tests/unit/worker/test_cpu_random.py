"""The CPU's way against the specification in plain torch: the same bits, whatever is asked for."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from worker import cpu_random, gpu_random

nonce_lists = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6)
names = st.text(max_size=12).filter(lambda text: text.isprintable())
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
examples = settings(deadline=None, max_examples=40)
#: For vocabularies and inputs of real sizes, which take milliseconds a nonce.
few_examples = settings(deadline=None, max_examples=4)


def logits_of(rows: int, vocab_size: int, dtype: torch.dtype) -> Tensor:
    """With more columns than the vocabulary has, as some models give them."""
    seeded = torch.Generator().manual_seed(vocab_size)
    return torch.randn(rows, vocab_size + 5, generator=seeded).to(dtype)[:, :vocab_size]


def same_inputs(*asked: object) -> bool:
    ours, specified = (each.generate_inputs(*asked) for each in (cpu_random, gpu_random))
    return ours.dtype == specified.dtype and torch.equal(ours, specified)


def same_permutations(*asked: object) -> bool:
    ours, specified = (each.generate_permutations(*asked) for each in (cpu_random, gpu_random))
    return torch.equal(ours, specified.to(torch.int32))


@given(names, names, nonce_lists, st.integers(1, 40), st.integers(1, 9), st.booleans(), dtypes)
@examples
def test_inputs(
    block: str,
    key: str,
    nonces: list[int],
    dim: int,
    seq_len: int,
    strong: bool,
    dtype: torch.dtype,
) -> None:
    """Also of an odd length, and of fewer values than a strong input has segments."""
    assert same_inputs(block, key, nonces, dim, seq_len, "cpu", dtype, strong)


@given(names, nonce_lists, st.booleans())
@few_examples
def test_inputs_of_several_blocks(key: str, nonces: list[int], strong: bool) -> None:
    """An odd number of values whose pairs are no multiple of a block."""
    assert same_inputs("b", key, nonces[:2], 1025, 1023, "cpu", torch.float32, strong)


@given(names, names, nonce_lists, st.integers(1, 1100))
@example("b", "k", [0], 1)
@example("b", "k", [0], 2)
@example("b", "k", [0], 3)
@example("b", "k", [0], 1024)
@examples
def test_permutations(block: str, key: str, nonces: list[int], vocab_size: int) -> None:
    assert same_permutations(block, key, nonces, vocab_size, "cpu")


@pytest.mark.parametrize("vocab_size", [(1 << 16) + 1, 151_936, 262_144])
@given(names, nonce_lists)
@few_examples
def test_permutations_of_real_vocabularies(vocab_size: int, key: str, nonces: list[int]) -> None:
    """Cut into blocks, the last of which may be short."""
    assert same_permutations("b", key, nonces[:2], vocab_size, "cpu")


@pytest.mark.parametrize("vocab_size", [1, 2, 3, 333, 1024, 151_936])
@given(nonce_lists, dtypes)
@few_examples
def test_distances(vocab_size: int, nonces: list[int], dtype: torch.dtype) -> None:
    logits, target = (
        logits_of(len(nonces), vocab_size, dtype),
        gpu_random.generate_target("b", vocab_size, "cpu"),
    )
    ours, specified = (
        module.compute_distances(
            logits, module.generate_permutations("b", "k", nonces, vocab_size, "cpu"), target
        )
        for module in (cpu_random, gpu_random)
    )
    assert torch.equal(ours, specified)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
def test_what_has_no_direction_has_no_distance(bad: float) -> None:
    """No other row feels it."""
    logits, target = logits_of(4, 40, torch.float32), gpu_random.generate_target("b", 40, "cpu")
    permutations = cpu_random.generate_permutations("b", "k", range(4), 40, "cpu")
    expected = cpu_random.compute_distances(logits, permutations, target)
    logits[1] = bad
    logits[2] = 0.0
    found = cpu_random.compute_distances(logits, permutations, target)
    assert found.isnan().tolist() == [False, True, True, False]
    assert torch.equal(found[[0, 3]], expected[[0, 3]])


@given(nonce_lists, st.booleans())
@examples
def test_a_nonce_does_not_feel_its_batch(nonces: list[int], strong: bool) -> None:
    """Alone or among others: the same bits."""

    def compute(batch: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        inputs = cpu_random.generate_inputs(
            "b", "k", batch, 33, 3, "cpu", torch.float32, strong_rng=strong
        )
        permutations = cpu_random.generate_permutations("b", "k", batch, 33, "cpu")
        target = gpu_random.generate_target("b", 33, "cpu")
        distances = cpu_random.compute_distances(inputs[:, -1], permutations, target)
        return inputs, permutations, distances

    together = compute(nonces)
    for at, nonce in enumerate(nonces):
        for whole, alone in zip(together, compute([nonce]), strict=True):
            assert torch.equal(whole[at], alone[0])


@pytest.mark.parametrize("block", [1, 7, 64])
def test_where_work_is_cut_changes_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_random, "_BLOCK", block)
    monkeypatch.setattr(cpu_random, "_ELEMENTS", 3 * block)
    for strong, vocab_size in product((False, True), (1, 31, 64)):
        assert same_inputs("b", "k", range(3), 9, 15, "cpu", torch.float32, strong)
        assert same_permutations("b", "k", range(3), vocab_size, "cpu")


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_nothing(threads: int) -> None:
    """Neither an input nor a permutation."""
    before = torch.get_num_threads()
    expected = cpu_random.generate_inputs("b", "k", [5], 1024, 200, "cpu", torch.float32)
    torch.set_num_threads(threads)
    try:
        assert same_inputs("b", "k", [5], 1024, 200, "cpu", torch.float32)
        found = cpu_random.generate_inputs("b", "k", [5], 1024, 200, "cpu", torch.float32)
        assert torch.equal(found, expected)
        assert same_permutations("b", "k", [5], 151_936, "cpu")
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("strong", [False, True])
def test_an_empty_batch_is_empty(strong: bool) -> None:
    inputs = cpu_random.generate_inputs("b", "k", [], 8, 4, "cpu", torch.float32, strong)
    permutations = cpu_random.generate_permutations("b", "k", [], 16, "cpu")
    target = gpu_random.generate_target("b", 16, "cpu")
    assert inputs.shape == (0, 4, 8)
    assert cpu_random.compute_distances(torch.zeros(0, 16), permutations, target).shape == (0,)
