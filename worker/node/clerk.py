"""The clerk: gives verdicts on computed validations and tells callers how their tickets stand.

Any worker's clerk may do any of it, again and again: each thing stays in its queue until it is
done, and doing it twice changes nothing.
"""

from __future__ import annotations

import json
import logging
from typing import Any, Protocol

from shared import tracing
from shared.about import About
from shared.errors import CouldNotCompute, PoCError, StoreError
from shared.store import ComputedValidation, Ending, Store, Subscription
from worker.callbacks.messages import validated_message

log = logging.getLogger(__name__)

#: Seconds between two reports of progress, whichever worker makes them.
REPORT_EVERY_S = 1.0
#: Nonces that an error names; its callback has them all.
NAMED = 10
#: Valid nonces in the status that a generation ends with; pages have the rest.
NEWEST = 1000


class TicketSink(Protocol):
    """Where tickets are reported to: the one way from here to Celery."""

    def progress(self, task: str, state: dict[str, Any], open_in: str) -> None:
        """Show how far `task` is, if it is still open and has not ended.

        `open_in` is the round that its ticket is of; empty for a validation.
        """
        ...

    def succeeded(self, task: str, result: dict[str, Any]) -> None:
        """End `task` with `result`, unless it has ended."""
        ...

    def failed(self, task: str, error: PoCError) -> None:
        """End `task` with `error`, unless it has ended."""
        ...


class Clerk:
    """`turn` is what a thread repeats."""

    def __init__(self, store: Store, sink: TicketSink, subscription: Subscription) -> None:
        self._store, self._sink, self._subscription = store, sink, subscription
        self._reported: dict[str, tuple[dict[str, Any], str]] = {}

    def turn(self) -> None:
        """Do what there is to do, then wait for news."""
        # By turns: thousands of tickets that end together must not keep a verdict waiting.
        while self._next_verdict() | self._next_ending():
            pass
        if self._store.endings.may_report(REPORT_EVERY_S):
            self._report()
        self._subscription.wait(REPORT_EVERY_S)

    def _next_verdict(self) -> bool:
        """Judge a validation, if one waits for it."""
        computed = self._store.validations.next_computed()
        if computed is None:
            return False
        with tracing.step("judge", of=About(computed.round_id, computed.traceparent)):
            try:
                self._judge(computed)
            except StoreError:
                raise
            except Exception as error:
                # A defect, which must not keep all later verdicts waiting behind this one.
                log.exception("validation %s has no verdict", computed.id)
                failure = CouldNotCompute(f"a worker failed to judge it: {error}; see its log")
                message = validated_message(computed, failure, computed.batch.nonces)
                self._store.validations.finish(computed, error=failure, message=message)
        return True

    def _next_ending(self) -> bool:
        """Tell the end of a ticket, if there is one to tell."""
        ending = self._store.endings.next()
        if ending is None:
            return False
        try:
            self._tell(ending)
        except StoreError:
            raise
        except Exception as error:
            # Another version wrote it, or a defect: no reason for the others to wait behind it.
            log.exception("the end of ticket %s can't be told", ending.task)
            failure = PoCError(f"it ended, and a worker failed to say how: {error}; see its log")
            self._sink.failed(ending.task, failure)
            self._store.endings.set_aside(ending, error)
        return True

    def _judge(self, done: ComputedValidation) -> None:
        terms, missing = done.config.terms, done.not_computed
        if len(missing) > terms.may_miss * len(done.batch):
            why = f": {done.error}" if done.error else ""
            named = ", ".join(map(str, missing[:NAMED])) + (", ..." if missing[NAMED:] else "")
            error = CouldNotCompute(
                f"no finite numbers for {len(missing)} of {len(done.batch)} nonces: {named}{why}; "
                "this accuses nobody: look at the workers, then send it again; all there is of it: "
                f"poc evidence {done.id}"
            )
            log.error("validation %s: %s", done.id, error)
            message = validated_message(done, error, missing)
            self._store.validations.finish(
                done, error=error, message=message, evidence=done.evidence(error)
            )
            return
        profile = json.loads(done.profile) if done.profile else {}
        verdict = terms.judge(done.batch, done.proofs, profile)
        ended = verdict.ended
        if ended is None:
            log.info("validation %s: %d proofs, nothing claimed", done.id, len(done.batch))
        else:
            log.info(
                "validation %s: %d of %d nonces invalid, %s",
                done.id,
                ended.n_invalid,
                ended.nonces,
                "fraud" if ended.fraud_detected else "honest",
            )
        self._store.validations.finish(
            done,
            verdict,
            message=validated_message(done, verdict),
            evidence=done.evidence(verdict) if ended and ended.fraud_detected else None,
        )

    def _tell(self, ending: Ending) -> None:
        if ending.error:
            self._sink.failed(ending.task, ending.error)
        elif ending.verdict:
            self._sink.succeeded(ending.task, json.loads(ending.verdict))
        else:
            status = self._store.rounds.complete(ending.round_fields or {}, NEWEST)
            self._sink.succeeded(ending.task, status.model_dump(mode="json"))
        self._store.endings.drop(ending)

    def _report(self) -> None:
        status, tasks = self._store.rounds.open_tickets()
        state = {
            "round_id": status.round_id,
            "total_checked": status.total_checked,
            "total_valid": status.total_valid,
            "rate_per_second": status.rate_per_second,
            "recent_rate_per_second": status.recent_rate_per_second,
            "elapsed_seconds": status.elapsed_seconds,
            "generating_seconds": status.generating_seconds,
            "updated_at": status.updated_at,
            "until_valid": status.until_valid,
            "ends_at": status.ends_at,
        }
        now: dict[str, tuple[dict[str, Any], str]] = dict.fromkeys(tasks, (state, status.round_id))
        for task, done in self._store.validations.progress().items():
            now[task] = (dict(done), "")
        for task, report in now.items():
            if self._reported.get(task) != report:
                self._sink.progress(task, *report)
        self._reported = now
