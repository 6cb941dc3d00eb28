"""The deterministic generator and the distance: pure functions over tensors, on any device.

Everything a round compares follows from strings such as `{block_hash}_{public_key}_nonce{n}`:

    string -- SHA-256 --> seed -- MurmurHash3 of 0, 1, 2, ... --> uint32 stream
        uint32 stream -- / 2^32, Box-Muller --> normals  (inputs, target)
        uint32 stream -- stable argsort     --> permutation of the vocabulary

Hashes, seeds and permutations are exact on every device. Normals go through the device's own
log, sin and cos, so they agree between devices to 2e-6 before the cast to the model's dtype.

All nonces of a batch are computed together; only their SHA-256 seeds are a Python loop. The
work is cut into blocks, so that temporaries stay bounded however large the batch is (see
`_BLOCK_ELEMENTS`); every element depends on its own index and seed alone, so where the cuts
fall changes nothing. Nothing here waits for the device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

#: Elements of one block of temporary tensors, by kind of device. A block needs at most 32 bytes
#: an element, so temporaries stay under 8 MiB on a CPU, where small blocks stay in its cache,
#: and under 128 MiB elsewhere, where large blocks keep the number of kernel launches low. A
#: permutation or a distance needs its whole row: a vocabulary larger than a block is one block.
_BLOCK_ELEMENTS = {"cpu": 1 << 18}
_BLOCK_ELEMENTS_ELSEWHERE = 1 << 22

#: Segments of a strong input: the whole SHA-256 digest as 32-bit seeds.
_STRONG_SEGMENTS = 8

#: The least u1 of Box-Muller: hash 0 would give log(0).
MIN_UNIFORM = 1e-10

#: MurmurHash3's constants, in the order that it takes them.
MURMUR3 = (0xCC9E2D51, 0x1B873593, 0xE6546B64, 0x85EBCA6B, 0xC2B2AE35)

_UINT32_MASK = 0xFFFFFFFF
_INT32_MIN = -(1 << 31)


def seed(text: str) -> int:
    """The uint32 seed that `text` stands for: the first 4 bytes of its SHA-256, big-endian."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def strong_seeds(text: str) -> list[int]:
    """The whole SHA-256 of `text` as eight uint32 seeds, big-endian."""
    digest = hashlib.sha256(text.encode()).digest()
    return [int.from_bytes(digest[at : at + 4], "big") for at in range(0, len(digest), 4)]


def murmur3_32(keys: Tensor, seeds: Tensor | int) -> Tensor:
    """MurmurHash3 x86 32-bit of 4-byte keys, without the final exclusive-or with the length.

    `keys` and `seeds` are integer tensors that broadcast against each other (or `seeds` one
    int), their values taken modulo 2^32. Returns the hashes, 0 to 2^32 - 1, as int64. For one
    seed the hash is a bijection on 32 bits.
    """
    if isinstance(seeds, int):
        seeds = torch.tensor(_to_int32([seeds])[0], dtype=torch.int32, device=keys.device)
    hashes = _seeded_hash(_mix_keys(_as_int32(keys)), _as_int32(seeds))
    return hashes.to(torch.int64).bitwise_and_(_UINT32_MASK)


def uniform(seeds: Sequence[int], n: int, device: torch.device | str = "cpu") -> Tensor:
    """float32 [len(seeds), n]: element i of a row is float32(hash of i) / 2^32, in [0, 1]."""
    out = torch.empty(len(seeds), n, dtype=torch.float32, device=device)
    column = _upload(seeds, out.device)[:, None]
    for rows, start, stop in _blocks(len(seeds), n, _block_elements(out.device)):
        out[rows, start:stop] = _uniform_block(column[rows], start, stop)
    return out


def normal(
    seeds: Sequence[int],
    n: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`dtype` [len(seeds), n]: standard normals, one independent row a seed.

    Box-Muller in float32 over p = ceil(n / 2) pairs, u1 = u(0..p-1) and u2 = u(p..2p-1): all
    cosines, then all sines, the first n of them.
    """
    out = torch.empty(len(seeds), n, dtype=dtype, device=device)
    _fill_normal(out[:, None, :], _upload(seeds, out.device)[:, None])
    return out


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
    """The input embeddings of `nonces`: `dtype` [len(nonces), seq_len, dim].

    With `strong_rng` a nonce's values come from all 256 bits of its digest: eight segments of
    ceil(seq_len * dim / 8) normals, each of its own seed, the last ones shorter. Otherwise
    from its first 32 bits.
    """
    seeds = input_seeds(block_hash, public_key, nonces, device, strong_rng=strong_rng)
    out = torch.empty(len(nonces), seq_len * dim, dtype=dtype, device=seeds.device)
    for part, its_seeds in segments_of(out, seeds):
        _fill_normal(part, its_seeds)
    return out.view(len(nonces), seq_len, dim)


def segments_of(out: Tensor, seeds: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Which of the seeds that `input_seeds` gives fill what of the inputs `out` [rows, n].

    Gives views [rows, segments, length] and their seeds [rows, segments]: the whole segments, and
    then the shorter one. Segments that are left without values are in neither.
    """
    (rows, n), segments = out.shape, seeds.shape[1]
    length = -(-n // segments)
    whole, rest = divmod(n, length)
    yield out[:, : whole * length].view(rows, whole, length), seeds[:, :whole]
    if rest:
        yield out[:, None, whole * length :], seeds[:, whole : whole + 1]


def input_seeds(
    block_hash: str,
    public_key: str,
    nonces: Sequence[int],
    device: torch.device | str,
    *,
    strong_rng: bool = False,
) -> Tensor:
    """The seeds of the inputs of `nonces`, one a segment: int32 bits [len(nonces), 1 or 8]."""
    texts = [f"{block_hash}_{public_key}_nonce{nonce}" for nonce in nonces]
    if not strong_rng:
        return _upload([seed(text) for text in texts], torch.device(device))[:, None]
    seeds = [each for text in texts for each in strong_seeds(text)]
    return _upload(seeds, torch.device(device)).view(len(texts), _STRONG_SEGMENTS)


def permutation_seeds(
    block_hash: str, public_key: str, nonces: Sequence[int], device: torch.device | str
) -> Tensor:
    """The seeds of the permutations of `nonces`: int32 bits [len(nonces)]."""
    texts = [f"{block_hash}_{public_key}_nonce_{nonce}_permutations" for nonce in nonces]
    return _upload([seed(text) for text in texts], torch.device(device))


def generate_permutations(
    block_hash: str,
    public_key: str,
    nonces: Sequence[int],
    vocab_size: int,
    device: torch.device | str,
) -> Tensor:
    """The permutation of the vocabulary of each nonce: int64 [len(nonces), vocab_size]."""
    out = torch.empty(len(nonces), vocab_size, dtype=torch.int64, device=device)
    seeds = permutation_seeds(block_hash, public_key, nonces, device)
    keys = _mix_keys(torch.arange(vocab_size, dtype=torch.int32, device=out.device))
    for rows in _row_blocks(len(nonces), vocab_size, out.device):
        # Flipping the sign bit maps uint32 order to int32 order, which sorts at half the cost.
        hashes = _seeded_hash(keys, seeds[rows, None]).bitwise_xor_(_INT32_MIN)
        if out.device.type == "cpu":
            # By radix, as only a single row is: several at once take eight times as long.
            for row, each in zip(out[rows], hashes, strict=True):
                torch.argsort(each, stable=True, out=row)
        else:
            out[rows] = torch.argsort(hashes, dim=1, stable=True)
    return out


def generate_target(
    block_hash: str,
    vocab_size: int,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The direction that a round aims at: `dtype` [vocab_size], of L2 norm 1."""
    target = normal([seed(f"{block_hash}_target")], vocab_size, device)[0]
    return target.div_(_norm(target)).to(dtype)


def compute_distances(logits: Tensor, permutations: Tensor, target: Tensor) -> Tensor:
    """How far each row's permuted, normalised logits lie from `target`.

    `logits` [batch, vocab_size] of any float dtype, `permutations` int64 [batch, vocab_size],
    `target` [vocab_size], all on one device. Returns float32 [batch], each in [0, 2]; NaN for
    a row that has no direction: a logit that is not finite, all zeros, or a norm beyond
    float32. Such a row never raises and never touches another.
    """
    out = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    target = target.to(torch.float32)
    for rows in _row_blocks(len(logits), logits.shape[1], logits.device):
        shuffled = logits[rows].to(torch.float32).gather(1, permutations[rows])
        out[rows] = distances_of(shuffled, target)
    return out


def distances_of(shuffled: Tensor, target: Tensor) -> Tensor:
    """`compute_distances` of logits that are permuted already: float32, as is `target`.

    Takes `shuffled` [batch, vocab_size] over as scratch.
    """
    norms = _norm(shuffled, keepdim=True)
    # Without this an overflowing norm would give a row of zeros and a plausible distance.
    norms.masked_fill_(~torch.isfinite(norms) | (norms == 0), math.nan)
    distances = _norm(shuffled.div_(norms).sub_(target))
    return distances.clamp_(max=2.0)  # rounding may exceed 2 by an ulp; NaN passes through


def _norm(rows: Tensor, *, keepdim: bool = False) -> Tensor:
    """The L2 norm of each row, float32: summed in float64, since a device chooses the order.

    On a GPU it depends on how many rows there are, and in float32 that shows in the last bit.
    """
    wide: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=keepdim, dtype=torch.float64)
    return wide.to(torch.float32)


# The hash runs in int32: torch has no arithmetic for uint32, int64 takes several times as long,
# and int32 products wrap to the very bits of uint32. Only right shifts and conversions need
# care, since they would drag the sign bit along.


def _mix_keys(keys: Tensor) -> Tensor:
    """The part of the hash that no seed enters, once for all rows: int32, the shape of `keys`."""
    mixed = keys * _C1
    return _rotate_left(mixed, 15).mul_(_C2)


def _seeded_hash(mixed_keys: Tensor, seeds: Tensor) -> Tensor:
    """The bits of the hash as int32, `mixed_keys` (of `_mix_keys`) broadcast with `seeds`."""
    hashes = _rotate_left(mixed_keys ^ seeds, 13).mul_(5).add_(_C3)
    hashes ^= _shift_right(hashes, 16)
    hashes *= _C4
    hashes ^= _shift_right(hashes, 13)
    hashes *= _C5
    hashes ^= _shift_right(hashes, 16)
    return hashes


def _rotate_left(bits: Tensor, by: int) -> Tensor:
    """`bits` rotated; takes `bits` over as scratch."""
    low = _shift_right(bits, 32 - by)
    return bits.bitwise_left_shift_(by).bitwise_or_(low)


def _shift_right(bits: Tensor, by: int) -> Tensor:
    """Logical shift: torch's own is arithmetic and fills in the sign bit."""
    return (bits >> by).bitwise_and_((1 << (32 - by)) - 1)


def _uniform_block(seeds: Tensor, start: int, stop: int) -> Tensor:
    """u(start..stop-1) as float32 [*seeds.shape[:-1], stop - start]; `seeds` int32 [..., 1]."""
    keys = _mix_keys(torch.arange(start, stop, dtype=torch.int32, device=seeds.device))
    hashes = _seeded_hash(keys, seeds).to(torch.int64).bitwise_and_(_UINT32_MASK)
    return hashes.to(torch.float32).mul_(2.0**-32)  # a power of two: as exact as the division


def _fill_normal(out: Tensor, seeds: Tensor) -> None:
    """Fill `out` [rows, segments, n] with normals; `seeds` int32 [rows, segments]."""
    n = out.shape[-1]
    pairs = -(-n // 2)
    column = seeds[:, :, None]
    budget = _block_elements(out.device) // max(1, seeds.shape[1])
    for rows, start, stop in _blocks(len(out), pairs, budget):
        u1 = _uniform_block(column[rows], start, stop)
        radius = u1.clamp_(min=MIN_UNIFORM).log_().mul_(-2.0).sqrt_()
        angle = _uniform_block(column[rows], pairs + start, pairs + stop).mul_(2.0 * math.pi)
        out[rows, :, start:stop] = torch.cos(angle).mul_(radius)
        sines = angle.sin_().mul_(radius)
        # An odd n drops the very last sine.
        out[rows, :, pairs + start : pairs + stop] = sines[..., : n - pairs - start]


def _block_elements(device: torch.device) -> int:
    return _BLOCK_ELEMENTS.get(device.type, _BLOCK_ELEMENTS_ELSEWHERE)


def _blocks(rows: int, columns: int, budget: int) -> Iterator[tuple[slice, int, int]]:
    """Cut [rows, columns] into blocks of at most `budget` elements: rows, first, past-last."""
    width = max(1, min(columns, budget))
    height = max(1, budget // width)
    for row, start in product(range(0, rows, height), range(0, columns, width)):
        yield slice(row, row + height), start, min(columns, start + width)


def _row_blocks(rows: int, columns: int, device: torch.device) -> Iterator[slice]:
    """Cut [rows, columns] between rows only; a row larger than the budget is one block."""
    height = max(1, _block_elements(device) // max(1, columns))
    for row in range(0, rows, height):
        yield slice(row, row + height)


def _upload(seeds: Sequence[int], device: torch.device) -> Tensor:
    """`seeds` as int32 bits on `device`, without making the host wait for what runs there."""
    host = torch.tensor(_to_int32(seeds), dtype=torch.int32)
    if device.type == "cuda":
        return host.pin_memory().to(device, non_blocking=True)
    return host.to(device)


def _to_int32(values: Sequence[int]) -> list[int]:
    """Each value modulo 2^32, as the signed number with the same 32 bits."""
    return [((value & _UINT32_MASK) ^ 0x80000000) - 0x80000000 for value in values]


def _as_int32(values: Tensor) -> Tensor:
    """Each value modulo 2^32, as the signed number with the same 32 bits."""
    if values.dtype == torch.int32:
        return values
    bits = values.to(torch.int64).bitwise_and(_UINT32_MASK)
    return (bits - ((bits >> 31) << 32)).to(torch.int32)


_C1, _C2, _C3, _C4, _C5 = _to_int32(MURMUR3)
