"""The published face of a worker: commands on the round, one batch at a time, and what there is.

The rounds live in the store, and the worker's own loop is `worker.node.pipeline`. A command may be
called from any thread, and again: the same `command` id is carried out once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, TypeVar

from shared.about import about
from shared.config import PoCConfig
from shared.data import ProofBatch
from shared.errors import Cancelled, InvalidRequest, RoundNotInitialized
from shared.receivers import Receivers
from shared.requests import (
    CancelRequest,
    GenerateRequest,
    InitRequest,
    RoundRequest,
    StopRequest,
    ValidateRequest,
)
from shared.schemes import Batch, Distance
from shared.status import Cancellation, RoundStatus
from shared.store import Store, fresh_id
from worker.callbacks.messages import validated_message
from worker.engines import Engine, Job
from worker.node.pipeline import Pipeline

Request = TypeVar("Request", bound=RoundRequest)


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


class PoCManager:
    """Carries out commands on the round of `store`, for a worker that computes with `engine`."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        worker: str = "local",
        *,
        pipeline: Pipeline | None = None,
        receivers: Receivers | None = None,
    ) -> None:
        """`receivers` are those that a config may name; `pipeline` is a worker's that has one."""
        self.engine, self.store = engine, store
        self.pipeline = pipeline or Pipeline(engine, store, worker)
        self._receivers = receivers or Receivers()

    # Commands. `command` is the id that a repeat is recognised by. A config alone stands for a
    # request with nothing else in it.

    def init_round(
        self, request: InitRequest | PoCConfig, command: str | None = None
    ) -> RoundStatus:
        """Open a round.

        Raises `InvalidRequest` for what the model can't compute and for a `callback_url` that
        nothing may be sent to, `RoundInProgress` while one is generating, unless it replaces.
        """
        return self.store.rounds.init(command or fresh_id(), self._admit(InitRequest, request))

    def start_generate(
        self, request: GenerateRequest | PoCConfig | None = None, command: str | None = None
    ) -> RoundStatus:
        """Generate; with a config, open the round in the same step.

        Raises `RoundNotInitialized`, `RoundMismatch` when the request names another round than
        the current one, and with a config what `init_round` raises.
        """
        asked = self._admit(GenerateRequest, request)
        return self.store.rounds.generate(command or fresh_id(), asked, about().traceparent)

    def start_validate(
        self, request: ValidateRequest | PoCConfig | None = None, command: str | None = None
    ) -> RoundStatus:
        """End generation. Raises as `start_generate` does."""
        asked = self._admit(ValidateRequest, request)
        return self.store.rounds.validate(command or fresh_id(), asked)

    def open_validation(self, request: ValidateRequest, command: str | None = None) -> None:
        """Let all workers recompute the request's batch; the task `command` gets the verdict.

        Its config says what it is judged by, by default the current round's. Raises
        `RoundNotInitialized`, `RoundMismatch` and `InvalidRequest`.
        """
        asked = self._admit(ValidateRequest, request)
        self.store.validations.open(command or fresh_id(), asked, about().traceparent)

    def cancel_validation(self, request: CancelRequest, command: str | None = None) -> Cancellation:
        """End a validation without a verdict; its ticket and its callback say `Cancelled`.

        Raises `InvalidRequest` for what is no validation, or not kept.
        """
        why = Cancelled(f"validation {request.validation} was cancelled before it had a verdict")
        cancelled = self.store.validations.cancel(
            command or fresh_id(),
            request.validation,
            why,
            lambda opened: validated_message(opened, why, opened.batch.nonces),
        )
        return Cancellation(validation=request.validation, cancelled=cancelled)

    def stop_round(
        self, request: StopRequest = StopRequest(), command: str | None = None
    ) -> RoundStatus:
        """Stop the round at once; the batch that is computed is refused when it comes."""
        return self.store.rounds.stop(command or fresh_id(), request)

    # Published names that the worker itself does not call: for those who drive an engine by hand.

    def get_status(self, newest: int = 100) -> dict[str, Any]:
        """The status as the API shows it, with the `newest` valid nonces."""
        status: dict[str, Any] = self.store.status(newest).model_dump(mode="json")
        return status

    @property
    def stats(self) -> PoCStats:
        """The counters of the current round."""
        status = self.store.rounds.status() or RoundStatus()
        return PoCStats(status.total_checked, status.total_valid, status.elapsed_seconds)

    def get_next_nonces(self) -> tuple[int, ...]:
        """Claim the next batch of the round for `run_batch`; empty outside GENERATING."""
        claim = self.pipeline.reserve()
        return claim.nonces if claim else ()

    def run_batch(self) -> Batch:
        """Compute and commit the batch claimed first; empty outside GENERATING or if refused.

        One of the round's scheme: a `ProofBatch` of the published one.
        """
        done = self.pipeline.run_reserved()
        if done is None:
            return ProofBatch.empty()
        claim, proofs = done
        kept = [(n, each) for n, each in zip(claim.nonces, proofs, strict=True) if each is not None]
        config = claim.config
        return config.terms.batch_of(config, [n for n, _ in kept], [each for _, each in kept])

    async def run_batch_async(self) -> Batch:
        """`run_batch` beside an event loop."""
        return await asyncio.to_thread(self.run_batch)

    def validate(self, nonces: Sequence[int], public_key: str) -> tuple[list[float], list[bool]]:
        """Distances of anybody's `nonces` in the current round's block, and which are valid.

        A distance is NaN where the model gave no finite numbers. Of the scheme `distance` only.
        """
        _, config = self.store.rounds.current()
        if config is None:
            raise RoundNotInitialized
        terms = Distance.of(config)
        proofs = self.engine.submit(Job.of(config, public_key, nonces)).result()
        dist = [nan if each is None else float(each) for each in proofs]
        return dist, [d < terms.r_target for d in dist]

    def _admit(self, kind: type[Request], request: Request | PoCConfig | None) -> Request:
        """`request` as one of `kind`. Raises `InvalidRequest` for a config that can't be run."""
        if request is None:
            return kind()
        asked = kind(config=request) if isinstance(request, PoCConfig) else request
        config, longest = asked.config, self.engine.info.max_seq_len
        if config and config.seq_len > longest:
            raise InvalidRequest(
                f"seq_len={config.seq_len}: the model computes at most {longest} positions"
            )
        if config and (why := self.engine.info.refusal_of(config.terms)):
            raise InvalidRequest(why)
        # What its name resolves to is looked at when something is sent.
        url = config and config.callback_url
        if url and (why := self._receivers.refusal_of_url(url)):
            raise InvalidRequest(f"callback_url: {why}")
        return asked
