"""The generator and the distance of `gpu_random` in Triton: some launches instead of two hundred.

What they compute is specified by `gpu_random`, in plain torch: hashes, seeds and permutations are
the same to the last bit, normals and distances within the contract's tolerance.

    inputs         one launch for a tile, straight into the model's dtype
    permutations   scatter ──▶ offsets
    distances      rank ──▶ spilled ──▶ finish

A permutation is never made: `murmur3` of one seed is a bijection, so a hash tells which entry of
the vocabulary it came from. Hashes are scattered to buckets by their first bits; each bucket is
sorted by itself, which gives the rank of each of its hashes, and so which entry of the target its
logit meets. Hashes are spread evenly, so hardly ever has a bucket more than its slots: in one of
94,000 rows of a vocabulary of 151,936, and in one of 1,700 of 163,840, the worst of published ones.
The others then spill into a list, and `_spilled` ranks that bucket by comparing: slowly, and
exactly.

A row is summed in an order of its own, in float64, so its bits are the same whatever is beside it.
What spills comes in any order. That moves a sum by 1e-16, far below what float32 shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from worker import gpu_random

#: Pairs of normals that one program makes, and entries of the vocabulary that one scatters.
_PAIRS, _BLOCK = 512, 512
#: Hashes that a bucket holds, and the share of them that is filled on average at most. The larger
#: the table, the slower the scatter; with twice the slots no bucket would ever spill.
_SLOTS, _FILL = 128, 5 / 8
#: How far the counters of two buckets are apart: 32 bytes, since a GPU adds to one such sector at a
#: time, whichever of its words it is.
_APART = tl.constexpr(8)
#: Spilled hashes that are looked at together.
_CHUNK = 64

#: Whether Triton interprets: then there are none of CUDA's own functions, which give torch's bits.
#: Triton's are faster, with other bits, and its logarithm is far off near 1.
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

_MIN_UNIFORM = tl.constexpr(gpu_random.MIN_UNIFORM)
_TURN = tl.constexpr(2.0 * math.pi)

# The steps of the hash, and what takes them back.
_C1, _C2, _C3, _C4, _C5 = (tl.constexpr(each) for each in gpu_random.MURMUR3)
_I1, _I2, _I4, _I5, _FIFTH = (
    tl.constexpr(pow(each, -1, 1 << 32))
    for each in (*gpu_random.MURMUR3[:2], *gpu_random.MURMUR3[3:], 5)
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
    """As `gpu_random.generate_inputs`: `dtype` [len(nonces), seq_len, dim] on a GPU."""
    seeds = gpu_random.input_seeds(block_hash, public_key, nonces, device, strong_rng=strong_rng)
    n, (rows, segments) = seq_len * dim, seeds.shape
    out = torch.empty(rows, seq_len, dim, dtype=dtype, device=seeds.device)
    pairs = triton.cdiv(triton.cdiv(n, segments), 2)
    _inputs[(triton.cdiv(pairs, _PAIRS), rows * segments)](out, seeds, n, segments, BLOCK=_PAIRS)
    return out


@dataclass(frozen=True, slots=True)
class Permutations:
    """Hashes of each row's vocabulary, in buckets, from which a rank and an entry can be told."""

    #: int32 bits [rows].
    seeds: Tensor
    #: int32 bits [rows, buckets, slots].
    table: Tensor
    #: int32 [rows, buckets + 1, 8], of which the first of each 8 counts; the last bucket is that of
    #: what spilled.
    counts: Tensor
    #: int32 [rows, buckets]: the rank of each bucket's first hash.
    offsets: Tensor
    #: int32 bits [rows, vocab_size].
    spill: Tensor


def generate_permutations(
    block_hash: str,
    public_key: str,
    nonces: Sequence[int],
    vocab_size: int,
    device: torch.device | str,
    slots: int = _SLOTS,
) -> Permutations:
    """What `gpu_random.generate_permutations` makes, in the form that `compute_distances` takes.

    `slots`, a power of two, is what a bucket holds. With few of them some buckets spill, which is
    slower and changes no rank.
    """
    seeds = gpu_random.permutation_seeds(block_hash, public_key, nonces, device)
    rows = len(nonces)
    buckets = max(2, triton.next_power_of_2(math.ceil(vocab_size / (_FILL * slots))))

    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=torch.int32, device=seeds.device)

    made = Permutations(
        seeds=seeds,
        table=empty(rows, buckets, slots),
        counts=empty(rows, buckets + 1, _APART.value).zero_(),
        offsets=empty(rows, buckets),
        spill=empty(rows, vocab_size),
    )
    bits, blocks = buckets.bit_length() - 1, triton.cdiv(vocab_size, _BLOCK)
    _scatter[(blocks, rows)](
        seeds, made.table, made.counts, made.spill, vocab_size,
        BITS=bits, SLOTS=slots, BLOCK=_BLOCK,
    )  # fmt: skip
    _offsets[(rows,)](made.counts, made.offsets, BUCKETS=buckets)
    return made


def compute_distances(logits: Tensor, permutations: Permutations, target: Tensor) -> Tensor:
    """As `gpu_random.compute_distances`: float32 [rows]; `logits` [rows, vocab_size]."""
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    rows, vocab_size = permutations.spill.shape
    _, buckets, slots = permutations.table.shape
    out = torch.empty(rows, dtype=torch.float32, device=logits.device)
    sums = torch.empty(rows, 3, buckets, dtype=torch.float64, device=logits.device)
    given = (
        logits, logits.stride(0), permutations.seeds, target, permutations.table,
        permutations.counts, permutations.offsets, sums,
    )  # fmt: skip
    shape = {"BITS": buckets.bit_length() - 1, "SLOTS": slots}
    _rank[(buckets, rows)](*given, num_warps=1, **shape)
    _spilled[(rows,)](*given, permutations.spill, vocab_size, CHUNK=_CHUNK, **shape)
    _finish[(rows,)](sums, out, BUCKETS=buckets)
    return out


@triton.jit
def _rotate(bits, by: tl.constexpr):
    return (bits << by) | (bits >> (32 - by))


@triton.jit
def _hash(keys, seed):
    """`gpu_random.murmur3_32` of uint32."""
    h = _rotate(_rotate(keys * _C1, 15) * _C2 ^ seed, 13) * 5 + _C3
    h = (h ^ (h >> 16)) * _C4
    h = (h ^ (h >> 13)) * _C5
    return h ^ (h >> 16)


@triton.jit
def _unhash(hashes, seed):
    """The keys that hash to `hashes`: each step taken back, the last one first."""
    h = (hashes ^ (hashes >> 16)) * _I5
    h = (h ^ (h >> 13) ^ (h >> 26)) * _I4
    h = ((h ^ (h >> 16)) - _C3) * _FIFTH
    return _rotate((_rotate(h, 19) ^ seed) * _I2, 17) * _I1


@triton.jit
def _log(x):
    return tl.log(x) if _INTERPRETED else libdevice.log(x)


@triton.jit
def _cos(x):
    return tl.cos(x) if _INTERPRETED else libdevice.cos(x)


@triton.jit
def _sin(x):
    return tl.sin(x) if _INTERPRETED else libdevice.sin(x)


@triton.jit
def _inputs(out, seeds, n, segments, BLOCK: tl.constexpr):
    """Normals of one segment of one row of `out` [rows, n], in its dtype."""
    row, segment = tl.program_id(1) // segments, tl.program_id(1) % segments
    seed = tl.load(seeds + tl.program_id(1)).to(tl.uint32, bitcast=True)
    length = (n + segments - 1) // segments
    start = segment * length
    length = tl.minimum(length, n - start)
    pairs = (length + 1) // 2
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    u1 = _hash(at.to(tl.uint32), seed).to(tl.float32) * (1.0 / (1 << 32))
    u2 = _hash((pairs + at).to(tl.uint32), seed).to(tl.float32) * (1.0 / (1 << 32))
    radius = tl.sqrt_rn(_log(tl.maximum(u1, _MIN_UNIFORM)) * -2.0)
    angle = u2 * _TURN
    first = out + row.to(tl.int64) * n + start
    tl.store(first + at, (_cos(angle) * radius).to(out.dtype.element_ty), at < pairs)
    # An odd length drops the very last sine.
    tl.store(
        first + pairs + at, (_sin(angle) * radius).to(out.dtype.element_ty), at < length - pairs
    )


@triton.jit
def _counter(counts, row, bucket, BUCKETS: tl.constexpr):
    """Where the hashes of a bucket of a row are counted; bucket BUCKETS is what spilled."""
    return counts + row * ((BUCKETS + 1) * _APART) + bucket * _APART


@triton.jit
def _scatter(
    seeds, table, counts, spill, vocab_size,
    BITS: tl.constexpr, SLOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Hashes of a block of the vocabulary to their buckets."""
    row = tl.program_id(1).to(tl.int64)
    buckets: tl.constexpr = 1 << BITS
    seed = tl.load(seeds + row).to(tl.uint32, bitcast=True)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < vocab_size
    hashes = _hash(at.to(tl.uint32), seed)
    bucket = (hashes >> (32 - BITS)).to(tl.int32)
    bits = hashes.to(tl.int32, bitcast=True)
    slot = tl.atomic_add(_counter(counts, row, bucket, buckets), 1, there, sem="relaxed")
    fits = there & (slot < SLOTS)
    tl.store(table + (row * buckets + bucket) * SLOTS + slot, bits, fits)
    over = there & (slot >= SLOTS)
    spilled = _counter(counts, row, buckets + tl.zeros_like(at), buckets)
    place = tl.atomic_add(spilled, 1, over, sem="relaxed")
    tl.store(spill + row * vocab_size + place, bits, over)


@triton.jit
def _offsets(counts, offsets, BUCKETS: tl.constexpr):
    """The rank of each bucket's first hash."""
    row, at = tl.program_id(0), tl.arange(0, BUCKETS)
    count = tl.load(_counter(counts, row, at, BUCKETS))
    tl.store(offsets + row * BUCKETS + at, tl.cumsum(count, 0) - count)


@triton.jit
def _sums(logits, seed, target, hashes, ranks, there):
    """Over these hashes: logits times the target's entries at their ranks, and squares of both."""
    at = _unhash(hashes, seed).to(tl.int32, bitcast=True)
    logit = tl.load(logits + at, there, other=0.0).to(tl.float64)
    aim = tl.load(target + ranks, there, other=0.0).to(tl.float64)
    return tl.sum(logit * aim), tl.sum(logit * logit), tl.sum(aim * aim)


@triton.jit
def _rank(
    logits, stride, seeds, target, table, counts, offsets, sums,
    BITS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """The sums of one bucket: once it is sorted, each of its hashes knows its rank."""
    bucket, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    buckets: tl.constexpr = 1 << BITS
    count = tl.load(_counter(counts, row, bucket, buckets))
    if count <= SLOTS:
        seed = tl.load(seeds + row).to(tl.uint32, bitcast=True)
        slot = tl.arange(0, SLOTS)
        there = slot < count
        hashes = tl.load(table + (row * buckets + bucket) * SLOTS + slot, there, other=-1)
        hashes = tl.sort(hashes.to(tl.uint32, bitcast=True))
        ranks = tl.load(offsets + row * buckets + bucket) + slot
        dot, square, aim = _sums(logits + row * stride, seed, target, hashes, ranks, there)
        first = sums + row * 3 * buckets + bucket
        tl.store(first, dot)
        tl.store(first + buckets, square)
        tl.store(first + 2 * buckets, aim)


@triton.jit
def _spilled(
    logits, stride, seeds, target, table, counts, offsets, sums, spill, vocab_size,
    BITS: tl.constexpr, SLOTS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The sums of buckets that have more than their slots: each hash is compared with all."""
    row = tl.program_id(0).to(tl.int64)
    buckets: tl.constexpr = 1 << BITS
    spilled = tl.load(_counter(counts, row, buckets, buckets))
    if spilled > 0:
        seed = tl.load(seeds + row).to(tl.uint32, bitcast=True)
        slot, chunk = tl.arange(0, SLOTS), tl.arange(0, CHUNK)
        all_slots = slot < SLOTS
        logits += row * stride
        spill += row * vocab_size
        for bucket in range(buckets):
            if tl.load(_counter(counts, row, bucket, buckets)) > SLOTS:
                held = tl.load(table + (row * buckets + bucket) * SLOTS + slot)
                held = held.to(tl.uint32, bitcast=True)
                offset = tl.load(offsets + row * buckets + bucket)
                below = _below(held, held, all_slots)
                dot = tl.zeros([], tl.float64)
                square, aim = dot, dot
                start = 0
                while start < spilled:
                    ours, mine = _chunk_of(spill, start + chunk, spilled, bucket, BITS)
                    below += _below(held, ours, mine)
                    if tl.max(mine.to(tl.int32)) > 0:
                        rank = _below(ours, held, all_slots)
                        other = 0
                        while other < spilled:
                            them, theirs = _chunk_of(spill, other + chunk, spilled, bucket, BITS)
                            rank += _below(ours, them, theirs)
                            other += CHUNK
                        a, b, c = _sums(logits, seed, target, ours, offset + rank, mine)
                        dot, square, aim = dot + a, square + b, aim + c
                    start += CHUNK
                a, b, c = _sums(logits, seed, target, held, offset + below, all_slots)
                first = sums + row * 3 * buckets + bucket
                tl.store(first, dot + a)
                tl.store(first + buckets, square + b)
                tl.store(first + 2 * buckets, aim + c)


@triton.jit
def _below(ours, others, there):
    """How many of `others` are below each of `ours`."""
    return tl.sum(((ours[:, None] > others[None, :]) & there[None, :]).to(tl.int32), 1)


@triton.jit
def _chunk_of(spill, at, spilled, bucket, BITS: tl.constexpr):
    """Some of what spilled, and which of it is of `bucket`."""
    hashes = tl.load(spill + at, at < spilled, other=0).to(tl.uint32, bitcast=True)
    return hashes, (at < spilled) & ((hashes >> (32 - BITS)).to(tl.int32) == bucket)


@triton.jit
def _finish(sums, out, BUCKETS: tl.constexpr):
    """|logits / norm - target| = sqrt(|logits|^2 / norm^2 - 2 dot / norm + |target|^2)."""
    row, bucket = tl.program_id(0), tl.arange(0, BUCKETS)
    first = sums + row * 3 * BUCKETS + bucket
    dot = tl.sum(tl.load(first))
    square = tl.sum(tl.load(first + BUCKETS))
    aim = tl.sum(tl.load(first + 2 * BUCKETS))
    # Rounded as the specification does, where a norm beyond float32 is no number to divide by.
    norm = tl.sqrt(square).to(tl.float32)
    has_direction = (norm > 0.0) & (norm < float("inf"))
    wide = norm.to(tl.float64)
    apart = tl.sqrt(tl.maximum(square / (wide * wide) - 2.0 * dot / wide + aim, 0.0))
    distance = tl.minimum(apart.to(tl.float32), 2.0)
    tl.store(out + row, tl.where(has_direction, distance, float("nan")))
