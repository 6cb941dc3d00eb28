"""What a worker has computed for a round, by bins of distances, until a heartbeat tells it.

Proofs of another kind have no bins.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from shared.histogram import LAST, place
from shared.schemes import Proof
from shared.store import Claim


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
        self._batches: list[Sequence[Proof | None]] = []
        self._untold: Counted | None = None

    def add(self, claim: Claim, proofs: Sequence[Proof | None]) -> None:
        """Count proofs that were committed; those of an earlier round are forgotten."""
        with self._lock:
            if claim.round_id != self._round_id:
                self._round_id, self._batches = claim.round_id, []
            if claim.config.terms.has_distances:
                self._batches.append(proofs)

    def take(self) -> Counted | None:
        """What has come since the last call, and what that one gave if it was not `told`."""
        with self._lock:
            round_id, batches, self._batches = self._round_id, self._batches, []
        untold = self._untold
        bins = untold.bins if untold and untold.round_id == round_id else Counter[int]()
        if batches:
            found: Any = np.array([each for batch in batches for each in batch if each is not None])
            numbers = np.floor(place(found, self._vocab_size)).clip(-LAST, LAST - 1)
            bins = bins + Counter(numbers.astype(int).tolist())
        self._untold = Counted(round_id, bins) if bins else None
        return self._untold

    def told(self) -> None:
        """What `take` gave has arrived."""
        self._untold = None
