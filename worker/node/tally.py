"""What a worker has computed for a round, by bins of distances, until a heartbeat tells it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from shared.histogram import LAST, place


class Counted(NamedTuple):
    """Nonces of a round by the bin that their distance is in."""

    round_id: str
    bins: Counter[int]


class Tally:
    """Thread-safe. `add` costs the loop next to nothing; `take` does the work."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._round_id = ""
        self._batches: list[Sequence[float]] = []
        self._untold: Counted | None = None

    def add(self, round_id: str, distances: Sequence[float]) -> None:
        """Count distances that were committed; those of an earlier round are forgotten."""
        with self._lock:
            if round_id != self._round_id:
                self._round_id, self._batches = round_id, []
            self._batches.append(distances)

    def take(self) -> Counted | None:
        """What has come since the last call, and what that one gave if it was not `told`."""
        with self._lock:
            round_id, batches, self._batches = self._round_id, self._batches, []
        untold = self._untold
        bins = untold.bins if untold and untold.round_id == round_id else Counter[int]()
        if batches:
            found = np.fromiter(chain.from_iterable(batches), float)
            found = found[np.isfinite(found)]
            numbers = np.floor(place(found, self._vocab_size)).clip(-LAST, LAST - 1)
            bins = bins + Counter(numbers.astype(int).tolist())
        self._untold = Counted(round_id, bins) if bins else None
        return self._untold

    def told(self) -> None:
        """What `take` gave has arrived."""
        self._untold = None
