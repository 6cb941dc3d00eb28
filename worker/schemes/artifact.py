"""The artifact scheme, as the network has it: what lies between a nonce and its k numbers.

    nonce ──▶ inputs ──▶ forward, reflected after each layer ──▶ last hidden state, after the norm
          ──▶ its k picked dimensions ──▶ rotated, normalised ──▶ float16 ──▶ base64

What has to agree with the network's nodes was read in `gonka_poc/poc/gpu_random.py`,
`layer_hooks.py` and `poc_model_runner.py` of kaitakuai/gonka-poc at ece7c2b, and held against an
independent program (`tests/golden_artifacts.json`) and against vectors that nodes published
(`order_score`).

Picks, rotations and the vectors of layers are made on the host, in numpy, for every device: so
their bits are the same on all of them. Arithmetic is float32; logarithms, sines and sums are taken
in float64 and rounded, since libraries and processors differ in the last bit of float32.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker import cpu_random, gpu_random

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

#: Dimensions of a hidden state that go into a vector.
K_DIM = 12

#: What is added to norms of hidden states and of vectors, and of a rotation's reflections.
_NORM_EPSILON, _ROTATION_EPSILON = np.float32(1e-8), np.float32(1e-30)


def picks(
    block_hash: str, public_key: str, nonces: Sequence[int], hidden_size: int, k: int = K_DIM
) -> Indices:
    """The dimensions of the hidden state that each nonce shows: int64 [len(nonces), k].

    Those of the k smallest hashes, in the network's order: ascending, but the one that has the
    k-th smallest hash comes last. Published vectors show it (see `order_score`). Raises
    `ValueError` if there are fewer than k dimensions.
    """
    if not 1 <= k <= hidden_size:
        raise ValueError(f"k={k}: a hidden state of {hidden_size} has 1 to {hidden_size} to pick")
    seeds = [
        gpu_random.seed(f"{block_hash}_{public_key}_nonce_{nonce}_pick_{k}") for nonce in nonces
    ]
    scores = cpu_random.hashes(seeds, hidden_size)
    kth = np.partition(scores, k - 1, axis=1)[:, k - 1 : k]
    # For one seed the hash is a bijection: nothing ties, so each row has exactly k of them.
    found = (np.flatnonzero(scores <= kth) % hidden_size).reshape(len(seeds), k)
    last = np.take_along_axis(scores, found, axis=1).argmax(axis=1, keepdims=True)
    order = np.arange(k - 1)[None, :]
    order = order + (order >= last)
    return np.take_along_axis(found, np.concatenate([order, last], axis=1), axis=1)


def rotations(block_hash: str, public_key: str, nonces: Sequence[int], k: int = K_DIM) -> Floats:
    """The unit vectors whose reflections rotate each nonce's values: float32 [len(nonces), k-1, k].

    `rotate` applies those of a nonce in their order.
    """
    seeds = [
        gpu_random.seed(f"{block_hash}_{public_key}_nonce_{nonce}_haar_hh_{k}_{j}")
        for nonce in nonces
        for j in range(k - 1)
    ]
    drawn = _normal(seeds, k)
    return (drawn / (_norms(drawn) + _ROTATION_EPSILON)).reshape(len(nonces), k - 1, k)


@np.errstate(over="ignore", invalid="ignore")
def rotate(values: Floats, w: Floats) -> Floats:
    """`values` [n, k] reflected at each of `w` [n, k-1, k], of `rotations`, the first one first."""
    for j in range(w.shape[1]):
        values = _reflected(values, w[:, j])
    return values


@np.errstate(over="ignore", invalid="ignore")
def undo(values: Floats, w: Floats) -> Floats:
    """What `rotate` made `values` [n, k] of: a reflection undoes itself, the last one first."""
    for j in reversed(range(w.shape[1])):
        values = _reflected(values, w[:, j])
    return values


@np.errstate(over="ignore", invalid="ignore")
def normalised(values: Floats) -> Floats:
    """Each row of `values` [n, k] over its norm."""
    return values / (_norms(values) + _NORM_EPSILON)


def encode(values: Floats) -> list[str | None]:
    """Each row of `values` [n, k] as the network sends it: float16, little endian, in base64.

    None for a row that has a value which is not finite, or not as float16.
    """
    with np.errstate(over="ignore"):
        rows = values.astype("<f2")
    finite = np.isfinite(rows).all(axis=1)
    return [
        base64.b64encode(row.tobytes()).decode() if good else None
        for row, good in zip(rows, finite.tolist(), strict=True)
    ]


def decode(text: str, k: int = K_DIM) -> Floats:
    """The vector that `encode` wrote: float32 [k], not necessarily finite.

    Raises `ValueError` for what is no base64, or not of k values.
    """
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{text[:40]!r} is no base64: {error}") from None
    if len(raw) != 2 * k:
        raise ValueError(f"{text[:40]!r} holds {len(raw)} bytes; {k} values of float16 are {2 * k}")
    return np.frombuffer(raw, "<f2").astype(np.float32)


def layer_vectors(block_hash: str, layers: int, hidden_size: int) -> Floats:
    """The unit vectors at which a block reflects hidden states: float32 [layers, hidden_size].

    One for after each decoder layer, the same for all nonces and keys.
    """
    seeds = [gpu_random.seed(f"{block_hash}_layer_{i}_householder") for i in range(layers)]
    drawn = _normal(seeds, hidden_size)
    return drawn / _norms(drawn)


def order_score(
    block_hash: str, public_key: str, nonces: Sequence[int], vectors: Floats, hidden_size: int
) -> float:
    """By how many standard deviations `vectors` [n, k] of `nonces` show picks and rotations right.

    With its rotation undone, each value of a vector belongs to one hidden dimension, and values of
    one dimension are alike across nonces, as the final norm weights them: their products are
    positive rather than negative. This is the sum of the products of all pairs of nonces that share
    a dimension over the scatter that it would have if signs were random. Tens for vectors of a real
    model and some hundred nonces; about one for another order, key or block. Rows that are not
    finite are passed over; 0.0 if no pair is left.
    """
    k = vectors.shape[1]
    dimensions = picks(block_hash, public_key, nonces, hidden_size, k)
    values = undo(vectors, rotations(block_hash, public_key, nonces, k))
    good = np.isfinite(values).all(axis=1)
    at, weights = dimensions[good].ravel(), values[good].astype(np.float64).ravel()

    def sums(power: int) -> Any:
        return np.bincount(at, weights**power, minlength=hidden_size)

    # Over the pairs of a dimension: 2 * sum of y_i y_j = (sum of y)^2 - sum of y^2.
    products = (sums(1) ** 2 - sums(2)).sum() / 2
    squares = (sums(2) ** 2 - sums(4)).sum() / 2
    return float(products / np.sqrt(squares)) if squares > 0 else 0.0


def _normal(seeds: Sequence[int], n: int) -> Floats:
    """As `gpu_random.normal`, within its tolerance: float32 [len(seeds), n]."""
    pairs = -(-n // 2)
    uniform = cpu_random.hashes(seeds, 2 * pairs).astype(np.float32)
    uniform *= np.float32(2.0**-32)
    u1 = np.maximum(uniform[:, :pairs], np.float32(gpu_random.MIN_UNIFORM))
    radius = np.sqrt(np.float32(-2.0) * np.log(u1, dtype=np.float64).astype(np.float32))
    angle = uniform[:, pairs:] * np.float32(2.0 * np.pi)
    turned = [f(angle, dtype=np.float64).astype(np.float32) * radius for f in (np.cos, np.sin)]
    return np.concatenate(turned, axis=1)[:, :n]


def _norms(rows: Floats) -> Floats:
    """The L2 norm of each row of [..., n]: float32 [..., 1]."""
    squares: NDArray[np.float64] = np.square(rows, dtype=np.float64)
    norms: Floats = np.sqrt(squares.sum(axis=-1, keepdims=True)).astype(np.float32)
    return norms


def _reflected(values: Floats, at: Floats) -> Floats:
    """Each row of `values` [n, k] reflected at its unit vector of `at` [n, k]."""
    products: Floats = (values * at).sum(axis=-1, keepdims=True, dtype=np.float64)
    return values - np.float32(2.0) * products.astype(np.float32) * at
