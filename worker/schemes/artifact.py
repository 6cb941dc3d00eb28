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
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.errors import EngineError
from shared.schemes import Proof
from shared.schemes.artifact import K_DIM
from worker import cpu_random, gpu_random
from worker.job import Job
from worker.schemes import layers as model_layers
from worker.schemes.base import Deployed, inputs_of

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

#: Blocks whose vectors are kept: a round's own, and those that validators ask about.
_BLOCKS_KEPT = 8

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
    found, last = np.empty((len(seeds), k), np.int64), np.empty((len(seeds), 1), np.int64)
    for rows, scores in cpu_random.hashes(seeds, hidden_size):
        kth = np.partition(scores, k - 1, axis=1)[:, k - 1 : k]
        # For one seed the hash is a bijection: nothing ties, so each row has exactly k of them.
        best = (np.flatnonzero(scores <= kth) % hidden_size).reshape(-1, k)
        found[rows] = best
        last[rows] = np.take_along_axis(scores, best, axis=1).argmax(axis=1, keepdims=True)
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


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `ArtifactTensors.read` needs besides the hidden states."""

    block_hash: str
    #: int64 [n, k], on the device.
    picks: Tensor


class ArtifactTensors:
    """See `Tensors`."""

    edits = True

    def __init__(self, deployed: Deployed) -> None:
        self._deployed = deployed
        self._reflections = Reflections(deployed.layers, deployed.hidden_size, deployed.device)

    def edit(self, index: int, layer: nn.Module) -> nn.Module:
        """The layer, with what it gives reflected."""
        return self._reflections.edit(index, layer)

    def enter(self, job: Job) -> None:
        """Reflect for its block."""
        self._reflections.use(job.block_hash)

    def leave(self) -> None:
        """Reflect nothing."""
        self._reflections.rest()

    def make(self, job: Job, nonces: Sequence[int]) -> tuple[Tensor, Prepared]:
        """Inputs, and the dimensions that each nonce shows."""
        deployed = self._deployed
        inputs = inputs_of(job, nonces, deployed)  # first: a GPU makes them meanwhile
        found = picks(job.block_hash, job.public_key, nonces, deployed.hidden_size, _k_dim(job))
        on_host = _pinned(found, deployed.device)
        return inputs, Prepared(job.block_hash, on_host.to(deployed.device, non_blocking=True))

    def read(self, output: Tensor, made: Prepared, job: Job) -> Tensor:
        """As `read_picks`; raises `EngineError` if another block was in use."""
        if made.block_hash != self._reflections.block_hash:
            raise EngineError(
                f"hidden states of block {made.block_hash} were reflected for block "
                f"{self._reflections.block_hash}; this is a fault of the worker, please report it"
            )
        return read_picks(output, made.picks)

    def proofs(self, rows: Tensor, job: Job) -> list[Proof | None]:
        """The vectors; None for a nonce whose hidden state was not finite."""
        values = rows.numpy(force=True)
        w = rotations(job.block_hash, job.public_key, job.nonces, _k_dim(job))
        return [*encode(normalised(rotate(values, w)))]


def _k_dim(job: Job) -> int:
    return job.parameters.get("k_dim", K_DIM)


class Reflections:
    """Reflects what each decoder layer gives, at vectors that the block decides.

    `vectors` [layers, hidden_size], float32 on `device`, is the same memory for good, so that what
    was recorded or compiled reads those of the block that is in use. Until one is, they are NaN.
    """

    def __init__(self, layers: int, hidden_size: int, device: torch.device) -> None:
        with torch.inference_mode(mode=False):  # else it could be written in that mode only
            self.vectors = torch.full(
                (layers, hidden_size), math.nan, dtype=torch.float32, device=device
            )
        self.block_hash: str | None = None
        # Bound to values, not to self: a cycle would keep tensors until the next collection.
        self._of_block = lru_cache(maxsize=_BLOCKS_KEPT)(
            lambda block_hash: _pinned(layer_vectors(block_hash, layers, hidden_size), device)
        )

    def use(self, block_hash: str) -> None:
        """Reflect for `block_hash` from here on, in the order of the current stream."""
        if block_hash != self.block_hash:
            self.block_hash = None  # if this fails, no block is in use
            self.vectors.copy_(self._of_block(block_hash), non_blocking=True)
            self.block_hash = block_hash

    def rest(self) -> None:
        """Reflect nothing from here on: along a vector of zeros."""
        self.block_hash = None
        self.vectors.zero_()

    def edit(self, index: int, layer: nn.Module) -> nn.Module:
        """For `layers.edited`: layer `index` with its output reflected.

        That is x - 2 (x · v) v, computed in x's dtype; of a layer that gives (hidden, residual,
        ...) both of these, so that their sum is reflected. The copy's forward raises
        `EngineError` if the layer gives anything else.
        """
        kind: Any = type(layer)  # mypy takes it for unhashable
        reflecting: nn.Module = model_layers.twin(layer, _reflecting(kind))
        reflecting.poc_vector = self.vectors[index]
        return reflecting


@cache
def _reflecting(kind: Any) -> Any:
    """A `kind` of decoder layer that reflects its output at its `poc_vector`."""

    class Reflecting(kind):  # type: ignore[misc]
        #: float32 [hidden_size].
        poc_vector: Tensor

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return reflected(super().forward(*args, **kwargs), self.poc_vector)

    return Reflecting


def reflected(output: Any, vector: Tensor) -> Any:
    """What a decoder layer gave, reflected at `vector` [hidden_size] of norm 1.

    A tensor [..., hidden_size], or a tuple: of that its first element, and its second, which is
    None or a residual; others are left alone. Raises `EngineError` for anything else.
    """
    if isinstance(output, Tensor):
        along = vector.to(output.dtype)
        products = (output * along).sum(dim=-1, keepdim=True)
        return output - 2.0 * products * along
    if not isinstance(output, tuple) or not output or not isinstance(output[0], Tensor):
        raise EngineError(
            f"a decoder layer gave {type(output).__name__}, no tensor and no tuple that begins "
            "with one, so it can't be reflected; use a model of another architecture"
        )
    hidden, residual = output[0], output[1] if len(output) > 1 else None
    if residual is None:
        return reflected(hidden, vector), *output[1:]
    if not isinstance(residual, Tensor) or residual.shape != hidden.shape:
        raise EngineError(
            "a decoder layer gave a second value that is no residual, so it can't be reflected; "
            "use a model of another architecture"
        )
    return reflected(hidden, vector), reflected(residual, vector), *output[2:]


def read_picks(hidden: Tensor, picked: Tensor) -> Tensor:
    """The picked dimensions of normalised hidden states: float32 [n, k]; does not wait.

    `hidden` [n, hidden_size] of any float dtype, `picked` int64 [n, k], both on one device. A row
    that is not finite, or whose norm is not, becomes NaN and touches no other.
    """
    # Summed in float64, since a device chooses the order by how many rows there are.
    norms = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True, dtype=torch.float64).float()
    # 0 * inf is NaN: an infinite norm would make plausible zeros of the others.
    norms = norms.add(norms * 0.0).add_(float(_NORM_EPSILON))
    return hidden.gather(1, picked).float().div_(norms)


def _pinned(values: NDArray[Any], device: torch.device) -> Tensor:
    """`values` as a tensor on the host, the copy of which to `device` makes nobody wait."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory() if device.type == "cuda" else tensor


def _normal(seeds: Sequence[int], n: int) -> Floats:
    """As `gpu_random.normal`, within its tolerance: float32 [len(seeds), n]."""
    pairs = -(-n // 2)
    uniform = np.empty((len(seeds), 2 * pairs), np.float32)
    for rows, hashes in cpu_random.hashes(seeds, 2 * pairs):
        uniform[rows] = hashes
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
