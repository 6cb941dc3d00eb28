"""What an engine is: jobs in, proofs out. It never sees Redis and holds no round.

`submit` queues a job and returns at once, `Pending.result` waits for its proofs. Keeping
one job queued behind the one that computes is all a caller must do to keep the device busy.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from math import isfinite
from typing import Protocol, runtime_checkable

from shared.errors import EngineError
from shared.schemes import DEFAULT, Proof, Terms
from worker.job import Job

#: Sequences in one forward, by the kind of device, unless the settings say otherwise.
DEFAULT_TILE = {"cpu": 8, "cuda": 32}


def tile_of(size: int, max_tokens: int | None, seq_len: int) -> int:
    """The sequences of one forward: `size`, or as many as have `max_tokens` positions together."""
    return size if max_tokens is None else min(size, max_tokens // seq_len)


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a loaded engine says of itself.

    `fingerprint` names the weights (config and safetensors digest) and must be equal between
    the workers of a namespace; `profile` names everything else that moves the last bits of a
    proof (engine, dtype, attention, tile, ...) and is recorded with rounds and verdicts.
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
    #: Sequences of one forward, and how many positions they may have together.
    tile: int = 1
    max_tokens: int | None = None
    #: Whether the sequences of one forward may be of several jobs.
    joins_jobs: bool = False
    #: Schemes that it can't compute, and why. Of some an engine learns by their first job.
    without: dict[str, str] = field(default_factory=dict)

    def refusal_of(self, terms: Terms) -> str | None:
        """Why proofs by these terms can't be computed; None if they can."""
        return self.without.get(terms.name) or terms.refusal_of_model(self.hidden_size)

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

    def result(self) -> list[Proof | None]:
        """Wait for the job; one proof per nonce.

        None, or a number that is not finite, where the model gave no finite numbers. Raises
        `shared.errors.EngineError` if the job as a whole could not be computed, and `JobCancelled`
        once `cancel` gave True. May be called again.
        """
        ...

    def cancel(self) -> bool:
        """Drop the job unless the device has begun it; whether it was dropped."""
        ...


def finite(proofs: Sequence[Proof | None]) -> list[Proof | None]:
    """What a job gave, with None for numbers that are none: an engine may say it either way."""
    return [None if isinstance(each, float) and not isfinite(each) else each for each in proofs]


class FuturePending:
    """A job whose proofs a future will hold; the future runs once the device has begun it."""

    def __init__(self, future: Future[list[Proof | None]]) -> None:
        self._future = future

    def result(self) -> list[Proof | None]:
        """Wait for the job; one proof per nonce. Raises `EngineError` if it failed."""
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

    def time_forwards(
        self, seq_len: int, seconds: float, scheme: str = DEFAULT
    ) -> tuple[int, float]:
        """Nonces, and the seconds that the device took for their forwards alone.

        It computes for at least `seconds`: whole tiles of random inputs, by the very path of jobs,
        but no generator and no proofs. Call it while there are no jobs. Raises as `submit` does.
        """
        ...
