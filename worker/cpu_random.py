"""The generator and the distance of `gpu_random` on a CPU: the same bits in less time.

    inputs         hash ──▶ torch's log, sqrt, cos and sin
    permutations   hash ──▶ sort ──▶ unhash
    distances      gather ──▶ `gpu_random.distances_of`

numpy has the arithmetic of uint32 that torch lacks, and sorts plain numbers with vector
instructions, in less than half of the time of an argsort. `murmur3` of one seed is a bijection, so
a sorted hash tells which entry of the vocabulary it came from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker import gpu_random

Words = NDArray[np.uint32]

#: Hashes that are made at a time: enough to be worth the calls, few enough for a cache.
_BLOCK = 1 << 16
#: Elements of all rows together that torch gets at a time.
_ELEMENTS = 1 << 18

# The steps of the hash, and what takes them back.
_C1, _C2, _C3, _C4, _C5, _FIVE = (np.uint32(each) for each in (*gpu_random.MURMUR3, 5))
_I1, _I2, _I4, _I5, _FIFTH = (
    np.uint32(pow(int(each), -1, 1 << 32)) for each in (_C1, _C2, _C4, _C5, _FIVE)
)


def generate_inputs(
    block_hash: str,
    public_key: str,
    nonces: Sequence[int],
    dim: int,
    seq_len: int,
    device: torch.device | str,
    dtype: torch.dtype,
    strong_rng: bool = False,
) -> Tensor:
    """As `gpu_random.generate_inputs`: `dtype` [len(nonces), seq_len, dim] on a CPU."""
    seeds = gpu_random.input_seeds(block_hash, public_key, nonces, device, strong_rng=strong_rng)
    out = torch.empty(len(nonces), seq_len * dim, dtype=dtype)
    for part, its_seeds in gpu_random.segments_of(out, seeds):
        _fill_normal(part, list(_rotated(its_seeds)))
    return out.view(len(nonces), seq_len, dim)


def generate_permutations(
    block_hash: str,
    public_key: str,
    nonces: Sequence[int],
    vocab_size: int,
    device: torch.device | str,
) -> Tensor:
    """What `gpu_random.generate_permutations` makes, as int32 [len(nonces), vocab_size]."""
    seeds = gpu_random.permutation_seeds(block_hash, public_key, nonces, device)
    out = torch.empty(len(nonces), vocab_size, dtype=torch.int32)
    keys = _mixed_keys(0, vocab_size)
    scratch = np.empty_like(keys[:_BLOCK])
    words: Words = out.numpy().view(np.uint32)
    for row, seed in zip(words, _rotated(seeds), strict=True):
        for at in _blocks(vocab_size, _BLOCK):
            _hash(keys[at], seed, row[at], scratch)
        row.sort()
        for at in _blocks(vocab_size, _BLOCK):
            _unhash(row[at], seed, scratch)
    return out


def compute_distances(logits: Tensor, permutations: Tensor, target: Tensor) -> Tensor:
    """As `gpu_random.compute_distances`: float32 [batch]; `permutations` int32 or int64."""
    shuffled = torch.empty(logits.shape, dtype=torch.float32)
    for row, given, permutation in zip(shuffled, logits, permutations, strict=True):
        torch.index_select(given.to(torch.float32), 0, permutation, out=row)
    return gpu_random.distances_of(shuffled, target.to(torch.float32))


def hashes(seeds: Sequence[int], n: int) -> Iterator[tuple[slice, Words]]:
    """What `gpu_random.murmur3_32` makes of 0..n-1 by each of `seeds`, some rows at a time.

    Gives which of `seeds` they are of, and uint32 [rows, n], to be read before the next: it is the
    same memory again, since fresh memory of this size takes longer to get than to fill.
    """
    keys = _mixed_keys(0, n)
    column = _turned(np.array(seeds, np.uint32))[:, None]
    height = max(1, min(len(seeds), _BLOCK // max(1, n)))
    words, scratch = np.empty((2, height, n), np.uint32)
    for rows in _blocks(len(seeds), height):
        out = words[: rows.stop - rows.start]
        _hash(keys, column[rows], out, scratch)
        yield rows, out


def _fill_normal(out: Tensor, seeds: Sequence[np.uint32]) -> None:
    """Fill `out` [rows, segments, n] with normals; `seeds` are the rotated ones of all segments."""
    n = out.shape[2]
    pairs = -(-n // 2)
    width = max(1, min(pairs, _BLOCK, _ELEMENTS // max(1, len(seeds))))
    for at in _blocks(pairs, width):
        shape = *out.shape[:2], at.stop - at.start
        # torch computes all rows at once: each of its calls may have to wake up threads.
        radius = _hashes(at.start, at.stop, seeds).view(shape)
        radius.mul_(2.0**-32).clamp_(min=gpu_random.MIN_UNIFORM).log_().mul_(-2.0).sqrt_()
        angle = _hashes(pairs + at.start, pairs + at.stop, seeds).view(shape)
        angle.mul_(2.0 * math.pi * 2.0**-32)  # a power of two: as exact as in two steps
        out[..., at] = torch.cos(angle).mul_(radius)
        sines = angle.sin_().mul_(radius)
        # An odd n drops the very last sine.
        out[..., pairs + at.start : pairs + at.stop] = sines[..., : n - pairs - at.start]


def _hashes(start: int, stop: int, seeds: Sequence[np.uint32]) -> Tensor:
    """Of start..stop-1 by each seed: float32 [len(seeds), stop - start]."""
    mixed = _mixed_keys(start, stop)
    hashes, scratch = np.empty_like(mixed), np.empty_like(mixed)
    found = np.empty((len(seeds), len(mixed)), np.float32)
    for row, seed in zip(found, seeds, strict=True):
        _hash(mixed, seed, hashes, scratch)
        row[:] = hashes
    return torch.from_numpy(found)


def _blocks(n: int, width: int) -> Iterator[slice]:
    for start in range(0, n, width):
        yield slice(start, min(n, start + width))


# All that follows wraps modulo 2^32. The hash turns a mixed key left after the seed has entered;
# here both are turned before, so that this is done once for all rows.


def _mixed_keys(start: int, stop: int) -> Words:
    """The part of the hash of start..stop-1 that no seed enters, rotated."""
    keys = np.arange(start, stop, dtype=np.uint32)
    scratch = np.empty_like(keys)
    keys *= _C1
    _rotate_left(keys, 15, scratch)
    keys *= _C2
    _rotate_left(keys, 13, scratch)
    return keys


def _rotated(seeds: Tensor) -> Iterable[np.uint32]:
    """Each of `seeds`, int32 bits, as `_hash` takes it."""
    words: Words = seeds.flatten().numpy().view(np.uint32).copy()
    return _turned(words)


def _turned(words: Words) -> Words:
    """`words`, each rotated in place as `_hash` takes seeds."""
    _rotate_left(words, 13, np.empty_like(words))
    return words


def _hash(mixed: Words, seed: np.uint32 | Words, out: Words, scratch: Words) -> None:
    """Write the hashes of what `mixed` was made of; `scratch` is at least as long.

    Of one seed, or into rows by a column of them.
    """
    scratch = scratch[: len(out)]
    np.bitwise_xor(mixed, seed, out=out)
    out *= _FIVE
    out += _C3
    _xor_shifted(out, 16, scratch)
    out *= _C4
    _xor_shifted(out, 13, scratch)
    out *= _C5
    _xor_shifted(out, 16, scratch)


def _unhash(words: Words, seed: np.uint32, scratch: Words) -> None:
    """Turn hashes into the keys that they are of: each step taken back, the last one first."""
    scratch = scratch[: len(words)]
    _xor_shifted(words, 16, scratch)
    words *= _I5
    _xor_shifted(words, 13, scratch)
    scratch >>= np.uint32(13)
    words ^= scratch
    words *= _I4
    _xor_shifted(words, 16, scratch)
    words -= _C3
    words *= _FIFTH
    words ^= seed
    _rotate_left(words, 32 - 13, scratch)
    words *= _I2
    _rotate_left(words, 32 - 15, scratch)
    words *= _I1


def _xor_shifted(words: Words, by: int, scratch: Words) -> None:
    """`words ^= words >> by`, which leaves `words >> by` in `scratch`."""
    np.right_shift(words, np.uint32(by), out=scratch)
    words ^= scratch


def _rotate_left(words: Words, by: int, scratch: Words) -> None:
    np.right_shift(words, np.uint32(32 - by), out=scratch)
    words <<= np.uint32(by)
    words |= scratch
