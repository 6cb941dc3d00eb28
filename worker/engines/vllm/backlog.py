"""Jobs that wait for the device, and which of them go through it next: bookkeeping, no vLLM."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from shared.schemes import Proof
from worker.job import Job


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job, and who waits for it."""

    job: Job
    future: Future[list[Proof | None]]


class Backlog:
    """Jobs in the order that they came in; those of one shape go together until a tile is full.

    None is torn apart, overtaken or put beside one that is to be alone. A job that is larger than a
    tile goes by itself. `tile_of` says how many sequences of a job make a tile.
    """

    def __init__(self, tile_of: Callable[[Job], int]) -> None:
        self._tile_of = tile_of
        self._waiting: deque[Submitted] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, one: Submitted) -> None:
        """Behind all others."""
        self._waiting.append(one)

    def put_back(self, parts: Sequence[Submitted]) -> None:
        """Before all others, one by one and alone: together they failed."""
        alone = [replace(each, job=replace(each.job, alone=True)) for each in parts]
        self._waiting.extendleft(reversed(alone))

    @property
    def is_full(self) -> bool:
        """Whether the next jobs are settled: none that comes later would go with them."""
        return self._next()[1]

    @property
    def is_alone(self) -> bool:
        """Whether the next job is to have the device for itself."""
        return bool(self._waiting) and self._waiting[0].job.alone

    def take(self) -> list[Submitted]:
        """The next jobs, which wait no longer; none if there is none."""
        return [self._waiting.popleft() for _ in range(self._next()[0])]

    def take_all(self) -> list[Submitted]:
        """Every job, which waits no longer."""
        taken = list(self._waiting)
        self._waiting.clear()
        return taken

    def _next(self) -> tuple[int, bool]:
        """How many jobs go next, and whether no more will."""
        if not self._waiting:
            return 0, False
        first = self._waiting[0].job
        tile, shape, sequences = self._tile_of(first), replace(first, nonces=()), 0
        for at, each in enumerate(self._waiting):
            sequences += len(each.job.nonces)
            if at and (sequences > tile or replace(each.job, nonces=()) != shape):
                return at, True
            if first.alone:
                return 1, True
        return len(self._waiting), sequences >= tile
