"""What an engine is: jobs in, distances out. It never sees Redis and holds no round.

`submit` queues a job and returns at once, `Pending.result` waits for its distances. Keeping
one job queued behind the one that computes is all a caller must do to keep the device busy.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Protocol, Self, runtime_checkable

from shared.config import PoCConfig
from shared.errors import EngineError

#: Sequences in one forward, by the kind of device, unless the settings say otherwise.
DEFAULT_TILE = {"cpu": 8, "cuda": 32}


@dataclass(frozen=True, slots=True)
class Job:
    """Nonces to compute: the same work for generation and for anybody's validation."""

    block_hash: str
    public_key: str
    nonces: tuple[int, ...]
    seq_len: int
    strong_rng: bool = False
    #: Rather fail than halve a tile for want of memory, which may move the last bits.
    whole_tiles: bool = False
    #: In no tile with other jobs, which would share what becomes of it.
    alone: bool = False

    @classmethod
    def of(
        cls, config: PoCConfig, public_key: str, nonces: Sequence[int], *, alone: bool = False
    ) -> Self:
        """The job that computes `nonces` of `public_key` in a round of `config`."""
        return cls(
            config.block_hash,
            public_key,
            tuple(nonces),
            config.seq_len,
            config.strong_rng,
            alone=alone,
        )


def tile_of(size: int, max_tokens: int | None, seq_len: int) -> int:
    """The sequences of one forward: `size`, or as many as have `max_tokens` positions together."""
    return size if max_tokens is None else min(size, max_tokens // seq_len)


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a loaded engine says of itself.

    `fingerprint` names the weights (config and safetensors digest) and must be equal between
    the workers of a namespace; `profile` names everything else that moves the last bits of a
    distance (engine, dtype, attention, tile, ...) and is recorded with rounds and verdicts.
    """

    model: str
    device: str
    fingerprint: str
    vocab_size: int
    hidden_size: int
    max_seq_len: int
    profile: dict[str, str] = field(default_factory=dict)
    #: Whether a nonce has the same bits each time that this engine computes it, in any batch.
    exact: bool = False
    #: Sequences that it computes at a time, of several jobs if need be, and their positions.
    tile: int = 1
    max_tokens: int | None = None

    def check_length(self, seq_len: int, or_else: str = "") -> None:
        """Raise `EngineError` for a `seq_len` that the model has no positions for.

        Unchecked it would give numbers, but no meaningful ones.
        """
        if not 1 <= seq_len <= self.max_seq_len:
            raise EngineError(
                f"seq_len={seq_len}: {self.model} computes 1 to {self.max_seq_len} positions here; "
                "choose a seq_len in that range" + (f", or {or_else}" if or_else else "")
            )


class JobCancelled(Exception):
    """The job was dropped before the device began it: nothing was wrong with it."""


class Pending(Protocol):
    """A job that was queued."""

    def result(self) -> list[float]:
        """Wait for the job; one distance in [0, 2] per nonce, NaN where logits were not finite.

        Raises `shared.errors.EngineError` if the job as a whole could not be computed, and
        `JobCancelled` once `cancel` gave True. May be called again.
        """
        ...

    def cancel(self) -> bool:
        """Drop the job unless the device has begun it; whether it was dropped."""
        ...


class FuturePending:
    """A job whose distances a future will hold; the future runs once the device has begun it."""

    def __init__(self, future: Future[list[float]]) -> None:
        self._future = future

    def result(self) -> list[float]:
        """Wait for the job; one distance per nonce. Raises `EngineError` if it failed."""
        try:
            return self._future.result()
        except CancelledError:
            raise JobCancelled from None

    def cancel(self) -> bool:
        """Drop the job unless the engine has begun it."""
        return self._future.cancel()


class Engine(Protocol):
    """A model on a device."""

    @property
    def info(self) -> EngineInfo:
        """What was loaded."""
        ...

    @property
    def busy_seconds(self) -> float:
        """Seconds that the device has had jobs since the engine was loaded.

        Within a job it may still wait for its host, which only its own tools show.
        """
        ...

    def submit(self, job: Job) -> Pending:
        """Queue `job` behind those before it and return at once.

        Raises `EngineError` for a `seq_len` that the model has no positions for, and after
        `close`.
        """
        ...

    def ensure_alive(self) -> None:
        """Raise `EngineDied` if the engine is gone for good; returns at once."""
        ...

    def close(self) -> None:
        """End the engine: the running job fails with `EngineError`, queued ones are cancelled."""
        ...


@runtime_checkable
class TimesForwards(Protocol):
    """What an engine may have besides, so that `poc bench` can tell its forward from all else."""

    def time_forwards(self, seq_len: int, seconds: float) -> tuple[int, float]:
        """Nonces, and the seconds that the device took for their forwards alone.

        It computes for at least `seconds`: whole tiles of random inputs, by the very path of jobs,
        but no generator and no distances. Call it while there are no jobs. Raises as `submit` does.
        """
        ...
