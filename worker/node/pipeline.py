"""The work of one device: claimed in the store, computed by the engine, committed in the store.

    claim ──▶ submit ──▶ collect ──▶ commit, and claim the next
    store     engine     engine      store

One batch computes while the one before it is committed, so the device never waits for Redis. A
commit claims the next batch in the same step, so each batch is one call of Redis.
Whatever raises `StoreUnavailable` may be called again: nothing is lost and nothing counts twice.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

from shared import tracing
from shared.about import NOTHING, About, note
from shared.config import PoCState
from shared.errors import EngineDied, EngineError, PoCError, Quarantined
from shared.schemes import SCHEMES, Proof
from shared.status import Commit
from shared.store import Ask, Assignment, Chunk, Claim, Computed, Kind, Store, fresh_id
from shared.tracing import Step
from worker.callbacks.messages import generated_message
from worker.engines import Engine, EngineInfo, Job, JobCancelled, Pending
from worker.engines.base import finite, tile_of
from worker.node.environment import computer
from worker.node.functional_check import FunctionalCheck
from worker.node.rounds import RoundLog
from worker.node.tally import Tally

log = logging.getLogger(__name__)

#: Batches that an engine has at a time, or tiles where these are larger: one computes, one waits
#: behind it.
DEPTH = 2


@dataclass(frozen=True, slots=True)
class InFlight:
    """Claimed work that the engine has."""

    work: Assignment
    pending: Pending
    #: Of its trace: from the claim to what became of it.
    step: Step


def depth_of(info: EngineInfo, seq_len: int, batch_size: int) -> int:
    """Batches that keep an engine busy."""
    if not info.joins_jobs:
        return DEPTH
    return max(DEPTH, DEPTH * tile_of(info.tile, info.max_tokens, seq_len) // batch_size)


class Pipeline:
    """Joins one engine and the store. `worker` is the name that claims are held under.

    With a `check`, the device proves itself now and then: one whose numbers are wrong loses what
    it has not committed yet, and gets nothing any more.

    What computes (`step`, `drain`, `reserve`, `run_reserved`) belongs to one thread, and a worker
    uses either `step` or `run_reserved`.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        worker: str = "local",
        check: FunctionalCheck | None = None,
    ) -> None:
        self.engine, self.store, self.worker, self.check = engine, store, worker, check
        #: Nonces and batches computed since the start, whether they counted or not.
        self.computed = self.batches = 0
        #: What counted, for those who look on.
        self.tally = Tally(engine.info.vocab_size)
        #: What the log says of the rounds that this worker sees.
        self.rounds = RoundLog(store, worker)
        #: What computes here, as evidence has it.
        self.computer = computer(worker, engine.info)
        self._profile = json.dumps(self.computer.profile, sort_keys=True)
        # Replaced, never changed: other threads look at them.
        self._in_flight: tuple[InFlight, ...] = ()
        self._reserved: tuple[Claim, ...] = ()
        # The next claim's token outlives a lost answer, so that the same claim is asked for again.
        self._token = fresh_id()
        # Validations go first, but get at most every second batch.
        self._validated = False
        # Set once nothing is to follow what the device computes now.
        self._ends = False

    def step(self) -> bool:
        """Claim and submit what the engine has room for, collect and commit a batch; False if idle.

        Raises `EngineError` after the batch that failed was given back, and `Quarantined` after
        everything was.
        """
        if self.check and self.check.is_due:
            self._examine()
        work = None if self._is_full else self._claim()
        if work:
            self._begin(work)
        if self._in_flight and (not work or self._is_full):
            self._complete(self._in_flight[0], and_claim=True)
        if not (work or self._in_flight):
            note(NOTHING)
        return bool(work or self._in_flight)

    def drain(self) -> None:
        """Commit what the device computes now and give back what waits behind it.

        Raises `Quarantined` after everything was given back.
        """
        if self.check and self.check.failed:
            self.abandon()
        self.cancel_waiting()
        for each in self._in_flight:
            try:
                self._complete(each)
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
        self._ends = True
        for each in self._in_flight:
            waited = each.pending.cancel()
            self._give_back(each.work, None if waited else error)
            each.step.failed("given back")
            each.step.end()
        self._in_flight = ()

    def cancel_unwanted(self) -> None:
        """Cancel what would be refused anyway, so that the device is free for what counts."""
        for each in self._in_flight:
            if isinstance(each.work, Claim) and not self.store.rounds.wants(each.work):
                each.pending.cancel()

    def cancel_waiting(self) -> None:
        """Cancel what the device has not begun, before the end.

        What it computes now is still committed, and nothing is claimed along with it.
        """
        self._ends = True
        for each in self._in_flight:
            each.pending.cancel()

    @property
    def _is_full(self) -> bool:
        """Whether the engine has enough to do."""
        if not self._in_flight:
            return False
        work = self._in_flight[-1].work
        return len(self._in_flight) >= depth_of(self.engine.info, work.config.seq_len, work.count)

    # One batch at a time, for use without a loop.

    def reserve(self) -> Claim | None:
        """Claim the next batch of the round for `run_reserved`; None outside GENERATING."""
        claim = self._claim_batch()
        if claim:
            self._reserved += (claim,)
        return claim

    def run_reserved(self) -> tuple[Claim, list[Proof | None]] | None:
        """Compute and commit the batch that was reserved first, or else the next one.

        Gives it with its proofs; None outside GENERATING or if the commit was refused. Raises
        `EngineError` after it was given back.
        """
        if not self._in_flight:
            claim = self._reserved[0] if self._reserved else self.reserve()
            if claim is None:
                return None
            # In this order: a heartbeat finds it in one of the two.
            self._in_flight = (self._in_engine(claim),)
            self._reserved = self._reserved[1:]
        work = self._in_flight[0].work
        proofs = self._complete(self._in_flight[0])
        return (work, proofs) if isinstance(work, Claim) and proofs is not None else None

    # What others see.

    @property
    def state(self) -> PoCState:
        """What this worker's device does."""
        in_flight = self._in_flight
        if not in_flight:
            return PoCState.IDLE
        validates = isinstance(in_flight[0].work, Chunk)
        return PoCState.VALIDATING if validates else PoCState.GENERATING

    @property
    def working_on(self) -> str:
        """The round or the validation that the device works on; empty if it is idle."""
        in_flight = self._in_flight
        if not in_flight:
            return ""
        work = in_flight[0].work
        if isinstance(work, Claim):
            return f"round {work.round_id}"
        return f"validation {work.validation}"

    @property
    def tokens(self) -> list[str]:
        """The claims that this worker holds, in the order that they are computed in."""
        reserved = self._reserved  # seen first, since from there a claim goes into flight
        return [work.token for work in (*(each.work for each in self._in_flight), *reserved)]

    @property
    def schemes(self) -> Collection[str]:
        """What this worker computes: not what only another version knows, or another engine can."""
        return SCHEMES.keys() - self.engine.info.without.keys()

    # Claim.

    def _claim(self) -> Assignment | None:
        """The next work; None if there is none, or none for this model."""
        return self._claimed(self.store.work.claim(self._ask()))

    def _claim_batch(self) -> Claim | None:
        """The round's next batch."""
        fingerprint = self.engine.info.fingerprint
        claim = self.store.rounds.claim(self.worker, self._token, fingerprint, self.schemes)
        self._claimed(claim)
        return claim

    def _ask(self) -> Ask:
        """For a validation's chunk or the round's next batch, in turns while there are both."""
        kinds: tuple[Kind, Kind] = ("batch", "chunk") if self._validated else ("chunk", "batch")
        return Ask(self.worker, self._token, kinds, self.engine.info.fingerprint, self.schemes)

    def _claimed(self, work: Assignment | None) -> Assignment | None:
        """Note what an ask got."""
        if work:
            note(_about(work))
            self._token = fresh_id()
            self._validated = isinstance(work, Chunk)
        if isinstance(work, Claim):
            self.rounds.claimed(work)
        return work

    # Submit.

    def _begin(self, work: Assignment) -> None:
        self._in_flight += (self._in_engine(work),)

    def _in_engine(self, work: Assignment) -> InFlight:
        name = "batch" if isinstance(work, Claim) else "chunk"
        shown = {"poc.start": work.start, "poc.count": work.count, "poc.attempts": work.attempts}
        return InFlight(
            work, self._submit(work), tracing.step(name, of=_about(work), attributes=shown)
        )

    def _submit(self, work: Assignment) -> Pending:
        if isinstance(work, Chunk) and work.given_up:
            return _NotComputed()
        # What failed before must not fail others with it.
        alone = work.attempts > 0
        job = Job.of(work.config, work.public_key, work.nonces, alone=alone)
        try:
            self.engine.ensure_alive()
            return self.engine.submit(job)
        except EngineDied:
            self._give_back(work)  # it never came to the device, so nothing is held against it
            raise
        except EngineError as error:
            return _NotTaken(error)

    # Collect, and commit or give back.

    def _complete(self, one: InFlight, *, and_claim: bool = False) -> list[Proof | None] | None:
        """Collect and commit, or give back; without Redis it stays in flight.

        Gives the proofs, or None if they did not count. The commit of a batch may claim and
        begin the next work as well.
        """
        note(one.step.about)
        try:
            proofs = self._collect(one)
            if None in proofs:
                self._examine()  # before any of it counts
            counted, work = self._commit(one.work, proofs, and_claim=and_claim)
        except JobCancelled:
            self._give_back(one.work)
            one.step.failed("cancelled")
            self._forget(one)
            return None
        except Quarantined:
            raise
        except EngineError as error:
            self._give_back(one.work, str(error))
            self._forget(one, error)
            if not isinstance(error, EngineDied):
                self._examine()  # is it the batch, or the device?
            raise
        except PoCError:
            raise
        except Exception as error:  # a defect, which ends the worker
            self._give_back(one.work, repr(error))
            self._forget(one, error)
            raise
        self._forget(one)
        if work:
            self._begin(work)
        return proofs if counted else None

    def _collect(self, one: InFlight) -> list[Proof | None]:
        """Wait for the proofs, None where there is none. Raises what the engine does.

        Raises `ValueError` if the engine, by a defect, gives too few or too many.
        """
        proofs = one.pending.result()
        given_up = isinstance(one.work, Chunk) and one.work.given_up
        expected = 0 if given_up else len(one.work.nonces)
        if len(proofs) != expected:
            raise ValueError(f"the engine gave {len(proofs)} proofs for {expected} nonces")
        return finite(proofs)

    def _commit(
        self, work: Assignment, proofs: list[Proof | None], *, and_claim: bool
    ) -> tuple[bool, Assignment | None]:
        """Whether they counted, and what was claimed in the same step."""
        claimed = None
        with tracing.step("commit") as step:
            if isinstance(work, Chunk):
                error = work.error or None
                refused = self.store.validations.commit(
                    work, proofs, error, self._profile, self.computer
                )
            elif and_claim and not self._ends:
                computed = self._computed_of(work, proofs)
                refused, claimed = self.store.work.commit_and_claim(work, computed, self._ask())
            else:
                refused = self.store.rounds.commit(work, self._computed_of(work, proofs))
            step.tell("poc.refused", refused or "")
        self.computed += len(proofs)
        self.batches += 1
        if refused:
            log.info("%d nonces do not count: %s", len(proofs), refused)
            return False, self._claimed(claimed)
        if isinstance(work, Claim):
            self.tally.add(work, proofs)
        if proofs and self.check:
            self.check.committed(_range_of(work))
        return True, self._claimed(claimed)

    def _computed_of(self, claim: Claim, proofs: list[Proof | None]) -> Computed:
        """What a commit takes of a computed batch."""
        terms, pairs = claim.config.terms, list(zip(claim.nonces, proofs, strict=True))
        valid = [(n, proof) for n, proof in pairs if proof is not None and terms.counts(proof)]
        failed = [n for n, proof in pairs if proof is None]
        error = None
        if failed:
            error = f"no finite numbers for {len(failed)} nonces, the first is {failed[0]}"
            log.error("%s: they count as failed", error)
        return Computed(
            checked=len(proofs) - len(failed),
            valid=[(n, terms.dumped(proof)) for n, proof in valid],
            failed=len(failed),
            error=error,
            message=generated_message(claim, valid),
            profile=self._profile,
        )

    def _give_back(self, work: Assignment, error: str | None = None) -> None:
        if isinstance(work, Claim):
            self.store.rounds.give_back(work, error)
        else:
            self.store.validations.give_back(work, error)

    def _forget(self, one: InFlight, error: Exception | None = None) -> None:
        one.step.end(error)
        self._in_flight = tuple(each for each in self._in_flight if each is not one)

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


@dataclass(frozen=True, slots=True)
class _NotComputed:
    """Stands in for a chunk that failed too often: it is committed without proofs."""

    def result(self) -> list[Proof | None]:
        return []

    def cancel(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class _NotTaken:
    """Stands in for a job that the engine did not take."""

    error: EngineError

    def result(self) -> list[Proof | None]:
        raise self.error

    def cancel(self) -> bool:
        return False


def _about(work: Assignment) -> About:
    return _known(work.round_id if isinstance(work, Claim) else "", work.traceparent)


@lru_cache(maxsize=8)
def _known(round_id: str, traceparent: str) -> About:
    """Most work is of the same."""
    return About(round_id, traceparent)


def _range_of(work: Assignment) -> Commit:
    return Commit(
        round_id=work.round_id if isinstance(work, Claim) else "",
        validation=work.validation if isinstance(work, Chunk) else "",
        start=work.start,
        count=work.count,
        first_nonce=work.nonces[0],
        last_nonce=work.nonces[-1],
        at=time.time(),
    )
