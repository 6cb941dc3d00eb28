"""A nonce has the same distance whatever tile it is in: with a forward that a test can follow."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace
from math import inf, isfinite, nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shared.schemes import Proof
from worker import gpu_random
from worker.engines import Job
from worker.engines.tile import Forward, Tiles, cut, join
from worker.schemes import Deployed

HIDDEN, VOCAB, SEQ_LEN = 8, 16, 3
CPU = torch.device("cpu")

nonces = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=9)


def tiles(size: int = 4, **options: int) -> Tiles:
    deployed = Deployed(
        layers=1, hidden_size=HIDDEN, vocab_size=VOCAB, device=CPU, dtype=torch.float32
    )
    return Tiles(size, deployed, **options)


def job(*wanted: int, seq_len: int = SEQ_LEN, strong_rng: bool = False) -> Job:
    return Job("b10c", "node", wanted, seq_len, strong_rng)


def forward(inputs: Tensor) -> Tensor:
    """Logits that each input of a row moves, with two more than the vocabulary has."""
    return torch.cat([inputs.flatten(1)[:, :VOCAB], torch.full((len(inputs), 2), inf)], dim=1)


def computed(one: Job, wanted: Sequence[int], through: Forward = forward) -> list[Proof | None]:
    """The distances of one tile."""
    mine = tiles()
    return mine.proofs(mine.rows(one, wanted, through, 4), one)


def alone(nonce: int, *, strong_rng: bool = False) -> float:
    """The distance of a nonce by the generator's own words."""
    inputs = gpu_random.generate_inputs(
        "b10c", "node", [nonce], HIDDEN, SEQ_LEN, CPU, torch.float32, strong_rng=strong_rng
    )
    permutations = gpu_random.generate_permutations("b10c", "node", [nonce], VOCAB, CPU)
    target = gpu_random.generate_target("b10c", VOCAB, CPU)
    logits = forward(inputs)[:, :VOCAB]
    return float(gpu_random.compute_distances(logits, permutations, target)[0])


@given(nonces, st.integers(1, 10), st.booleans())
def test_a_nonce_has_its_own_distance_in_any_tile(
    wanted: list[int], size: int, strong_rng: bool
) -> None:
    """To the last bit, however many others there are, and whatever a tile is filled up with."""
    one = job(*wanted, strong_rng=strong_rng)
    parts = [tiles().rows(one, each, forward, size) for each in cut(one.nonces, size)]
    expected = [alone(nonce, strong_rng=strong_rng) for nonce in wanted]
    assert tiles().proofs(join(parts), one) == expected


@given(nonces, st.integers(1, 10))
def test_every_forward_has_the_same_shape(wanted: list[int], size: int) -> None:
    """The last tile, too."""
    seen: list[torch.Size] = []

    def watched(inputs: Tensor) -> Tensor:
        seen.append(inputs.shape)
        return forward(inputs)

    for each in cut(wanted, size):
        tiles().rows(job(), each, watched, size)
    assert set(seen) == {torch.Size([size, SEQ_LEN, HIDDEN])}
    assert len(seen) == -(-len(wanted) // size)


def test_a_tile_is_filled_up_with_its_last_nonce() -> None:
    """Inputs that a model can take, whatever it makes of nothing."""
    seen: list[Tensor] = []

    def watched(inputs: Tensor) -> Tensor:
        seen.append(inputs.clone())
        return forward(inputs)

    tiles().rows(job(), [5, 6], watched, 4)
    first, *others = seen[0]
    assert not torch.equal(first, others[0])
    assert all(torch.equal(each, others[0]) for each in others)


@pytest.mark.parametrize("change", [{"block_hash": "other"}, {"public_key": "other"}])
def test_block_and_key_move_every_distance(change: dict[str, str]) -> None:
    """Nobody can use what was computed for another."""
    ours, theirs = (computed(each, [1, 2, 3]) for each in (job(), replace(job(), **change)))
    assert not set(ours) & set(theirs)


def test_what_a_forward_raises_is_not_hidden() -> None:
    """The engine knows what it means."""

    def fail(_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    with pytest.raises(torch.OutOfMemoryError, match="9 GiB"):
        tiles().rows(job(), [1], fail, 4)


def test_nothing_keeps_a_forward_that_is_done() -> None:
    """It holds the weights, which must go without waiting for a collection of cycles."""

    class Weights:
        def __call__(self, inputs: Tensor) -> Tensor:
            return forward(inputs)

    gc.disable()
    try:
        mine, model = tiles(), Weights()
        mine.rows(job(), [1], model, 4)
        gone = [weakref.ref(mine), weakref.ref(model)]
        del mine, model
        assert [each() for each in gone] == [None, None]
    finally:
        gc.enable()


@given(st.lists(st.floats(width=32)))
def test_numbers_leave_the_device_as_they_are(values: list[float]) -> None:
    """All that is not finite as None, which the manager counts as failed."""
    found = tiles().proofs(torch.tensor(values, dtype=torch.float32), job())
    assert found == [value if isfinite(value) else None for value in values]


@given(nonces, st.integers(1, 10))
def test_a_cut_leaves_nothing_out(wanted: list[int], size: int) -> None:
    """Nor changes the order."""
    parts = list(cut(wanted, size))
    assert [nonce for part in parts for nonce in part] == wanted
    assert all(len(part) == size for part in parts[:-1])


@pytest.mark.parametrize(
    ("size", "max_tokens", "seq_len", "fits"), [(4, None, 999, 4), (4, 8, 2, 4), (4, 8, 3, 2)]
)
def test_a_tile_has_no_more_positions_than_the_device_takes(
    size: int, max_tokens: int | None, seq_len: int, fits: int
) -> None:
    """Whatever the sequences are."""
    assert tiles(size, max_tokens=max_tokens).size_of(job(seq_len=seq_len)) == fits


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_what_is_not_finite_is_no_distance(bad: float) -> None:
    """It reaches no other nonce."""

    def spoilt(inputs: Tensor) -> Tensor:
        logits = forward(inputs)
        logits[1, 3] = bad
        return logits

    assert computed(job(), [5, 6, 7], spoilt) == [alone(5), None, alone(7)]


def test_a_rank_without_logits_has_no_distances() -> None:
    """As the others of its group have them."""
    assert tiles().rows(job(), [1, 2], lambda _: None, 4) is None
    assert computed(job(), [1, 2], lambda _: None) == tiles().proofs(join([None]), job()) == []


def test_a_target_is_made_once_for_each_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is as long as the vocabulary."""
    made: list[str] = []
    make = gpu_random.generate_target

    def generate_target(block_hash: str, **options: object) -> Tensor:
        made.append(block_hash)
        return make(block_hash, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(gpu_random, "generate_target", generate_target)
    mine = tiles()
    for _ in range(3):
        mine.rows(job(), [1], forward, 1)
    assert made == ["b10c"]
