"""What a worker's log says of a round: its begin, how it goes each minute, its end.

Each is said once by each worker, whether it computes in the round or not. The loop tells of rounds
that it has work of, which may be over when the heartbeat looks; the heartbeat finds all others.
"""

from __future__ import annotations

import logging
import threading
import time
from math import inf

from shared.about import About, at
from shared.config import PoCConfig, PoCState
from shared.status import RoundStatus, printable
from shared.store import Claim, Store

log = logging.getLogger(__name__)

#: Seconds between two lines about a round.
REPORT_EVERY_S = 60.0


class RoundLog:
    """`claimed` for the thread that claims, `look` for one that looks every few seconds."""

    def __init__(self, store: Store, worker: str) -> None:
        self._store, self._worker = store, worker
        self._lock = threading.Lock()
        #: The rounds that began and whose end was not said, each with the time of its next line.
        self._running: dict[str, tuple[About, float]] = {}
        #: Seconds that rounds had generated for when they were over, of those that may go on.
        self._over: dict[str, float] = {}

    def first_look(self) -> None:
        """Before any other: what was over before this worker came is no news. As `look` raises."""
        now = self._store.rounds.status() or RoundStatus()
        if now.state != PoCState.GENERATING:
            self._over[now.round_id] = now.generating_seconds

    def claimed(self, claim: Claim) -> None:
        """There is work of a round."""
        # Whether one that was over goes on, or the claim was late, the next look tells.
        if claim.round_id not in self._running and claim.round_id not in self._over:
            self._begin(About(claim.round_id, claim.traceparent), claim.config)

    def look(self, rate: float, busy: float) -> None:
        """Say what there is to say; `rate` and `busy` are this worker's.

        Raises `StoreUnavailable`; then the next look says it.
        """
        # In this order: what was claimed before is of the current round, or of one before it.
        seen = set(self._running)
        now = self._store.rounds.status() or RoundStatus()
        self._over = {k: s for k, s in self._over.items() if k == now.round_id}
        generates = now.state == PoCState.GENERATING
        if generates or now.generating_seconds > self._over.get(now.round_id, 0.0):
            if now.round_id not in self._running:
                trace = self._store.rounds.traceparent(now.round_id)
                self._begin(About(now.round_id, trace), now)
            seen.add(now.round_id)
        for round_id in sorted(seen):
            what, due = self._running[round_id]
            with at(what):
                if round_id != now.round_id:
                    self._end(round_id, self._store.rounds.status(round_id), now.round_id)
                elif not generates:
                    self._end(round_id, now)
                elif time.monotonic() >= due:
                    self._running[round_id] = what, time.monotonic() + REPORT_EVERY_S
                    _report(now, rate, busy)

    def _begin(self, what: About, config: PoCConfig | RoundStatus) -> None:
        with self._lock:
            if what.round_id in self._running:
                return
            self._running[what.round_id] = what, time.monotonic() + REPORT_EVERY_S
        with at(what):
            log.info(
                "round %s is generating: block %s at %d, %s, batches of %d x %d, "
                "node %d of %d; this is worker %s",
                what.round_id,
                printable(config.block_hash),
                config.block_height,
                config.terms.title if isinstance(config, PoCConfig) else config.title_of_terms,
                config.batch_size,
                config.seq_len,
                config.node_id,
                config.node_count,
                self._worker,
            )

    def _end(self, round_id: str, status: RoundStatus | None, next_round: str = "") -> None:
        if status is None:
            log.warning("round %s is over: Redis does not know it any more", round_id)
        else:
            why = status.error or (next_round and f"round {next_round} came after it")
            log.info(
                "round %s is over, %s%s: %d checked, %d valid, %d failed in %.1f s, %.1f nonces/s; "
                "%d callbacks wait",
                round_id,
                status.state,
                f" ({why})" if why else "",
                status.total_checked,
                status.total_valid,
                status.total_failed,
                status.elapsed_seconds,
                status.rate_per_second,
                status.callbacks_pending,
            )
        self._over[round_id] = status.generating_seconds if status else inf
        with self._lock:
            del self._running[round_id]


def _report(status: RoundStatus, rate: float, busy: float) -> None:
    log.info(
        "round %s: %d checked, %d valid, %d failed, %.1f nonces/s; here %.1f nonces/s, device busy "
        "%.0f%%",
        status.round_id,
        status.total_checked,
        status.total_valid,
        status.total_failed,
        status.recent_rate_per_second,
        rate,
        100 * busy,
    )
