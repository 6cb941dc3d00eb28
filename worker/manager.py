"""The round on this worker's device: the engine computes, the store remembers.

`PoCManager.step` is the worker's whole work in one line: claim, submit, collect, commit.

    claim ──▶ submit ──▶ collect ──▶ commit
    store     engine     engine      store

One batch computes while the one before it is committed, so the device never waits for Redis.
Whatever raises `StoreUnavailable` may be called again: nothing is lost and nothing counts twice.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from shared.config import PoCConfig, PoCState
from shared.data import ProofBatch
from shared.errors import (
    EngineDied,
    EngineError,
    InvalidRequest,
    PoCError,
    Quarantined,
    RoundNotInitialized,
)
from shared.receivers import Receivers
from shared.status import Commit, RoundStatus
from shared.store import Chunk, Claim, Store
from shared.transitions import MESSAGES
from worker.callbacks.messages import generated_message
from worker.engines import Engine, Job, JobCancelled, Pending
from worker.node.functional_check import FunctionalCheck

log = logging.getLogger(__name__)

#: Batches that an engine has at a time: one computes, one waits behind it.
DEPTH = 2


@dataclass(frozen=True, slots=True)
class PoCStats:
    """The counters of the current round."""

    total_checked: int = 0
    total_valid: int = 0
    #: Seconds since the init, not counting those while STOPPED.
    elapsed: float = 0.0

    @property
    def rate(self) -> float:
        """Nonces per second."""
        return self.total_checked / self.elapsed if self.elapsed > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Flight:
    """Claimed work that an engine has."""

    work: Claim | Chunk
    pending: Pending


class PoCManager:
    """Joins one engine and the store. `worker` is the name that claims are held under.

    With a `check`, `step` lets the device prove itself now and then: a device whose numbers are
    wrong loses what it has not committed yet, and gets nothing any more.

    The commands may be called from any thread. What computes (`step`, `land`, `get_next_nonces`,
    `run_batch`) belongs to one thread, and a worker uses either `step` or `run_batch`.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        worker: str = "local",
        check: FunctionalCheck | None = None,
        receivers: Receivers | None = None,
    ) -> None:
        """`receivers` are those that a config may name."""
        self.engine, self.store, self.worker, self.check = engine, store, worker, check
        self._receivers = receivers or Receivers()
        #: Nonces computed since the start, whether they counted or not.
        self.computed = 0
        self._profile = json.dumps(
            {"fingerprint": engine.info.fingerprint, **engine.info.profile}, sort_keys=True
        )
        # Replaced, never changed: other threads look at it.
        self._flights: tuple[Flight, ...] = ()
        self._claimed: tuple[Claim, ...] = ()
        # The next claims' tokens outlive a lost answer, so that the same claim is asked for again.
        self._chunk_token, self._batch_token = _fresh(), _fresh()
        # Validations go first, but get at most every second batch.
        self._validated = False

    # Commands. `command` is the id that a repeat is recognised by.

    def init_round(
        self,
        config: PoCConfig,
        *,
        command: str | None = None,
        round_id: str | None = None,
        replace: bool = False,
    ) -> RoundStatus:
        """Open a round.

        Raises `InvalidRequest` for what the model can't compute and for a `callback_url` that
        nothing may be sent to, `RoundInProgress` while one is
        generating, unless `replace`.
        """
        self._check(config)
        return self.store.rounds.init(command or _fresh(), config, round_id, replace)

    def start_generate(
        self,
        config: PoCConfig | None = None,
        *,
        command: str | None = None,
        round_id: str | None = None,
        replace: bool = False,
    ) -> RoundStatus:
        """Generate; with a `config`, open the round in the same step.

        Raises `RoundNotInitialized`, `RoundMismatch` when `round_id` is another round than the
        current one, and with a `config` what `init_round` raises.
        """
        if config:
            self._check(config)
        return self.store.rounds.generate(command or _fresh(), config, round_id, replace)

    def start_validate(
        self,
        config: PoCConfig | None = None,
        *,
        command: str | None = None,
        round_id: str | None = None,
        replace: bool = False,
    ) -> RoundStatus:
        """End generation. Raises as `start_generate` does."""
        if config:
            self._check(config)
        return self.store.rounds.validate(command or _fresh(), config, round_id, replace)

    def start_validation(
        self, batch: ProofBatch, config: PoCConfig | None = None, *, command: str | None = None
    ) -> None:
        """Let all workers recompute `batch`; the task `command` gets the verdict.

        `config` says what it is judged by, by default the current round's. Raises
        `RoundNotInitialized`, `RoundMismatch` and `InvalidRequest`.
        """
        if config:
            self._check(config)
        self.store.rounds.open_job(command or _fresh(), batch, config)

    def stop_round(self, *, command: str | None = None, round_id: str | None = None) -> RoundStatus:
        """Stop the round at once; the batch that is computed is refused when it comes."""
        return self.store.rounds.stop(command or _fresh(), round_id)

    def get_status(self, newest: int = 100) -> dict[str, Any]:
        """The status as the API shows it, with the `newest` valid nonces."""
        status: dict[str, Any] = self.store.status(newest).model_dump(mode="json")
        return status

    @property
    def stats(self) -> PoCStats:
        """The counters of the current round."""
        status = self.store.rounds.status() or RoundStatus()
        return PoCStats(status.total_checked, status.total_valid, status.elapsed_seconds)

    # The worker's loop.

    @property
    def state(self) -> PoCState:
        """What this worker's device does."""
        flights = self._flights
        if not flights:
            return PoCState.IDLE
        validates = isinstance(flights[0].work, Chunk)
        return PoCState.VALIDATING if validates else PoCState.GENERATING

    @property
    def tokens(self) -> list[str]:
        """The claims that this worker holds, in the order that they are computed in."""
        return [work.token for work in (*(f.work for f in self._flights), *self._claimed)]

    def step(self) -> bool:
        """Claim and submit the next batch, collect and commit the one before; False if idle.

        Raises `EngineError` after the batch that failed was given back, and `Quarantined` after
        everything was.
        """
        if self.check and self.check.is_due:
            self._examine()
        work = self._claim() if len(self._flights) < DEPTH else None
        if work:
            self._flights += (Flight(work, self._submit(work)),)
        if self._flights and (not work or len(self._flights) == DEPTH):
            self._land(self._flights[0])
        return bool(work or self._flights)

    def drop_unwanted(self) -> None:
        """Cancel what would be refused anyway, so that the device is free for what counts."""
        for flight in self._flights:
            if isinstance(flight.work, Claim) and not self.store.rounds.wants(flight.work):
                flight.pending.cancel()

    def drop_waiting(self) -> None:
        """Cancel what the device has not begun; what it computes now is still committed."""
        for flight in self._flights:
            flight.pending.cancel()

    def land(self) -> None:
        """Commit what the device computes now and give back what waits behind it.

        Raises `Quarantined` after everything was given back.
        """
        if self.check and self.check.failed:
            self.abandon()
        self.drop_waiting()
        for flight in self._flights:
            try:
                self._land(flight)
            except Quarantined:
                raise
            except EngineError as error:
                log.warning("a batch was given back: %s", error)
            except PoCError:
                raise
            except Exception as error:  # noqa: BLE001 - a defect, and the worker ends already
                log.warning("a batch was given back: %r", error)

    def abandon(self, error: str | None = None) -> None:
        """Give everything back; `error` is held against what the device computes now."""
        self.drop_waiting()
        for place, flight in enumerate(self._flights):
            self._give_back(flight.work, error if place == 0 else None)
        self._flights = ()

    # One batch at a time, for use without a loop.

    def get_next_nonces(self) -> tuple[int, ...]:
        """Claim the next batch of the round for `run_batch`; empty outside GENERATING."""
        claim = self._claim_batch()
        if claim is None:
            return ()
        self._claimed += (claim,)
        return claim.nonces

    def run_batch(self) -> ProofBatch:
        """Compute and commit the batch claimed first; empty outside GENERATING or if refused."""
        if not self._claimed:
            self.get_next_nonces()
        if not self._claimed:
            return ProofBatch.empty()
        claim = self._claimed[0]
        try:
            dist = _collect(claim, self._submit(claim))
        except EngineError as error:
            self._give_back(claim, str(error))
            self._claimed = self._claimed[1:]
            raise
        refused = self._commit_claim(claim, dist)
        self._claimed = self._claimed[1:]
        if refused:
            return ProofBatch.empty()
        kept = [(n, d) for n, d in zip(claim.nonces, dist, strict=True) if isfinite(d)]
        return ProofBatch.of(claim.config, [n for n, _ in kept], [d for _, d in kept])

    async def run_batch_async(self) -> ProofBatch:
        """`run_batch` beside an event loop."""
        return await asyncio.to_thread(self.run_batch)

    def validate(self, nonces: Sequence[int], public_key: str) -> tuple[list[float], list[bool]]:
        """Distances of anybody's `nonces` in the current round's block, and which are valid."""
        config = self._config()
        dist = self.engine.submit(_job(config, public_key, nonces)).result()
        return dist, [d < config.r_target for d in dist]

    # Steps.

    def _claim(self) -> Claim | Chunk | None:
        """A validation's chunk or the round's next batch, in turns while there are both."""
        for claim in self._claim_order():
            if work := claim():
                self._validated = isinstance(work, Chunk)
                return work
        return None

    def _claim_order(self) -> tuple[Callable[[], Claim | Chunk | None], ...]:
        order = (self._claim_chunk, self._claim_batch)
        return order[::-1] if self._validated else order

    def _claim_chunk(self) -> Chunk | None:
        chunk = self.store.jobs.claim(self.worker, self._chunk_token)
        if chunk:
            self._chunk_token = _fresh()
        return chunk

    def _claim_batch(self) -> Claim | None:
        fingerprint = self.engine.info.fingerprint
        claim = self.store.rounds.claim(self.worker, self._batch_token, fingerprint)
        if claim:
            self._batch_token = _fresh()
        return claim

    def _submit(self, work: Claim | Chunk) -> Pending:
        if isinstance(work, Chunk) and work.given_up:
            return _Lost()
        key = work.batch.public_key if isinstance(work, Chunk) else work.config.public_key
        try:
            return self.engine.submit(_job(work.config, key, work.nonces))
        except EngineError as error:
            return _Failed(error)

    def _land(self, flight: Flight) -> None:
        """Collect and commit a flight, or give it back; without Redis it stays."""
        work = flight.work
        try:
            dist = _collect(work, flight.pending)
            if not all(map(isfinite, dist)):
                self._examine()  # before any of it counts
            self._commit(work, dist)
        except JobCancelled:
            self._give_back(work)
            self._forget(flight)
        except Quarantined:
            raise
        except EngineError as error:
            self._give_back(work, str(error))
            self._forget(flight)
            if not isinstance(error, EngineDied):
                self._examine()  # is it the batch, or the device?
            raise
        except PoCError:
            raise
        except Exception as error:  # a defect, which ends the worker
            self._give_back(work, repr(error))
            self._forget(flight)
            raise
        else:
            self._forget(flight)

    def _forget(self, flight: Flight) -> None:
        self._flights = tuple(each for each in self._flights if each is not flight)

    def _commit(self, work: Claim | Chunk, dist: list[float]) -> None:
        if isinstance(work, Claim):
            refused = self._commit_claim(work, dist)
        else:
            refused = self.store.jobs.commit(work, dist, work.error or None, self._profile)
        self.computed += len(dist)
        if refused:
            log.info("%d nonces were computed in vain: %s", len(dist), refused)
        elif dist and self.check:
            self.check.committed(_range_of(work))

    def _examine(self) -> None:
        """Let the device prove itself.

        Raises `Quarantined` after everything was given back, also what it has computed.
        """
        if self.check:
            try:
                self.check.run()
            except Quarantined:
                self.abandon()
                raise

    def _commit_claim(self, claim: Claim, dist: list[float]) -> str | None:
        """Count a batch; None, or why it did not count."""
        pairs = list(zip(claim.nonces, dist, strict=True))
        valid = [(n, d) for n, d in pairs if d < claim.config.valid_below]
        failed = [n for n, d in pairs if not isfinite(d)]
        error = None
        if failed:
            error = f"no finite distance for {len(failed)} nonces, the first is {failed[0]}"
            log.error("%s: they count as failed", error)
        return self.store.rounds.commit(
            claim,
            checked=len(pairs) - len(failed),
            valid=valid,
            failed=len(failed),
            error=error,
            message=generated_message(claim, valid),
            profile=self._profile,
        )

    def _give_back(self, work: Claim | Chunk, error: str | None = None) -> None:
        if isinstance(work, Claim):
            self.store.rounds.give_back(work, error)
        else:
            self.store.jobs.give_back(work, error)

    def _config(self) -> PoCConfig:
        _, config = self.store.rounds.current()
        if config is None:
            raise RoundNotInitialized(MESSAGES[RoundNotInitialized])
        return config

    def _check(self, config: PoCConfig) -> None:
        info = self.engine.info
        if config.seq_len > info.max_seq_len:
            raise InvalidRequest(
                f"seq_len={config.seq_len}: the model computes at most {info.max_seq_len} positions"
            )
        # What its name resolves to is looked at when something is sent.
        if config.callback_url and (why := self._receivers.refusal_of_url(config.callback_url)):
            raise InvalidRequest(f"callback_url: {why}")


@dataclass(frozen=True, slots=True)
class _Lost:
    """Stands in for a chunk that failed too often: nothing is computed."""

    def result(self) -> list[float]:
        return []

    def cancel(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class _Failed:
    """Stands in for a job that the engine did not take."""

    error: EngineError

    def result(self) -> list[float]:
        raise self.error

    def cancel(self) -> bool:
        return False


def _job(config: PoCConfig, public_key: str, nonces: Sequence[int]) -> Job:
    return Job(config.block_hash, public_key, tuple(nonces), config.seq_len, config.strong_rng)


def _collect(work: Claim | Chunk, pending: Pending) -> list[float]:
    """Wait for the distances of `work`. Raises what the engine does.

    Raises `ValueError` if the engine, by a defect, gives too few or too many.
    """
    dist = pending.result()
    expected = 0 if isinstance(work, Chunk) and work.given_up else len(work.nonces)
    if len(dist) != expected:
        raise ValueError(f"the engine gave {len(dist)} distances for {expected} nonces")
    return dist


def _range_of(work: Claim | Chunk) -> Commit:
    return Commit(
        round_id=work.round_id if isinstance(work, Claim) else "",
        validation=work.job if isinstance(work, Chunk) else "",
        start=work.start,
        count=work.count,
        first_nonce=work.nonces[0],
        last_nonce=work.nonces[-1],
        at=time.time(),
    )


def _fresh() -> str:
    return secrets.token_hex(8)
