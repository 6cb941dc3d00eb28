"""The functional check: a device that is well gives known nonces the distances that they have.

    at its start   twice the same, and what POC_MODEL_DISTANCES or the model's first worker says
    later on       its own first answer, to the last bit where the engine promises that

What it committed since the check last passed is in doubt when it fails, so that is kept here.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import deque
from collections.abc import Sequence

from shared.errors import EngineDied, EngineError, Quarantined
from shared.settings import CHECK_LEN, Settings
from shared.status import Commit
from shared.store import Reference
from worker.engines import Engine, Job, JobCancelled

log = logging.getLogger(__name__)

#: What is computed: one small tile, of a block that no chain has. Settings know how many.
BLOCK_HASH = PUBLIC_KEY = "poc-functional-check"
NONCES = tuple(range(8))
#: How far distances of two honest engines may lie from each other, in units of 1/sqrt(vocab_size):
#: their noise has a standard deviation of 0.013 (docs/numerics.md), two models differ by 1.
TOLERANCE = 0.2
#: Commits in doubt that are kept by name; consecutive batches are one.
KEPT = 100


class FunctionalCheck:
    """The check of one engine. All but `distances` belongs to the thread that owns the engine."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        info = engine.info
        self._engine, self._every_s = engine, settings.check_every_s
        self._pinned = settings.model_distances
        # Memory that another process took is no reason to call a device wrong.
        self._job = Job(
            BLOCK_HASH, PUBLIC_KEY, NONCES, min(CHECK_LEN, info.max_seq_len), whole_tiles=True
        )
        self._tolerance = TOLERANCE / math.sqrt(info.vocab_size)
        self._due_at = 0.0
        #: The first answer; empty before `begin`.
        self.distances: tuple[float, ...] = ()
        #: Checks that passed, and the Unix time of the last one, by this machine's clock.
        self.passed = 0
        self.passed_at = 0.0
        #: Set for good when a check failed.
        self.failed: Quarantined | None = None
        #: Nonces committed since the last check that passed, and the newest of these commits.
        self.in_doubt = 0
        self.commits: deque[Commit] = deque(maxlen=KEPT)

    def begin(self) -> None:
        """Take the first answer. Raises `Quarantined` if it can't be trusted.

        Raises `EngineError` if it can't be computed.
        """
        first = self._compute()
        if not all(map(math.isfinite, first)):
            raise Quarantined(
                f"functional check: no finite distances, but {list(first)}; the weights may hold "
                "what is no number, POC_DTYPE may be too narrow for them, or the device is broken"
            )
        self.distances = first
        self._compare(self._compute(), first, "a moment before it was", self._own_tolerance)
        if self._pinned is not None:
            self._compare(first, self._pinned, "POC_MODEL_DISTANCES has", self._tolerance)
        self._passed()
        log.info("functional check passed: POC_MODEL_DISTANCES=%s", json.dumps(first))

    def agree_with(self, reference: Reference | None) -> None:
        """Compare with what the model's first worker gave; pinned distances count more.

        Raises `Quarantined`.
        """
        if reference is None or self._pinned is not None:
            return
        theirs = f"{reference.worker}, the first worker with this model, gave"
        try:
            self._compare(self.distances, reference.distances, theirs, self._tolerance)
        except Quarantined as error:
            raise Quarantined(
                f"{error}; if the other is the wrong one, set POC_MODEL_DISTANCES to what a "
                "healthy worker logs"
            ) from None

    @property
    def is_due(self) -> bool:
        """Whether it is time for `run`; always, once it has failed."""
        return self.failed is not None or time.monotonic() >= self._due_at

    def run(self) -> None:
        """Check the device now.

        Raises `Quarantined` if its numbers are wrong, and from then on, and `EngineDied` if it
        can't compute what it could at its start.
        """
        if self.failed is not None:
            raise self.failed
        try:
            found = self._compute()
        except EngineDied:
            raise
        except EngineError as error:
            raise EngineDied(f"not even the functional check can be computed: {error}") from None
        try:
            self._compare(found, self.distances, "at its start it was", self._own_tolerance)
        except Quarantined as error:
            self.failed = error
            log.critical("%s; in doubt: %s", error, self._describe_doubt())
            raise
        self._passed()

    def committed(self, commit: Commit) -> None:
        """Note what is in doubt if the next check fails."""
        self.in_doubt += commit.count
        merged = self.commits[-1].followed_by(commit) if self.commits else None
        if merged is None:
            self.commits.append(commit)
        else:
            self.commits[-1] = merged

    @property
    def _own_tolerance(self) -> float:
        return 0.0 if self._engine.info.exact else self._tolerance

    def _compute(self) -> tuple[float, ...]:
        try:
            found = self._engine.submit(self._job).result()
            return tuple(math.nan if each is None else float(each) for each in found)
        except JobCancelled:  # as an engine ends
            self._engine.ensure_alive()
            raise EngineError("the functional check was cancelled") from None

    def _passed(self) -> None:
        self.passed += 1
        self.passed_at, self._due_at = time.time(), time.monotonic() + self._every_s
        self.in_doubt = 0
        self.commits.clear()

    def _compare(
        self, found: Sequence[float], expected: Sequence[float], says: str, tolerance: float
    ) -> None:
        """Raise `Quarantined` unless they are equal; `says` introduces what was expected."""
        wrong = [
            (nonce, ours, theirs)
            for nonce, ours, theirs in zip(NONCES, found, expected, strict=True)
            if not abs(ours - theirs) <= tolerance  # NaN is wrong as well
        ]
        if wrong:
            nonce, ours, theirs = wrong[0]
            beyond = f" by more than {tolerance:.2g}" if tolerance else ""
            raise Quarantined(
                f"functional check: the distance of nonce {nonce} is {ours!r}, {says} {theirs!r}; "
                f"{len(wrong)} of {len(NONCES)} differ{beyond}: this device gives wrong numbers"
            )

    def _describe_doubt(self) -> str:
        """What was committed since the last check that passed, newest last."""
        since = f"since the check last passed, {time.time() - self.passed_at:.0f} s ago"
        if not self.commits:
            return f"nothing was committed {since}"
        named = ", ".join(
            f"nonces {each.first_nonce} to {each.last_nonce} ({each.count}) of "
            + (f"round {each.round_id}" if each.round_id else f"validation {each.validation}")
            for each in self.commits
        )
        return f"{self.in_doubt} nonces were committed {since}; the newest: {named}"
