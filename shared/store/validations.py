"""Validations: batches that are cut into chunks, shared by all workers, and judged once."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from shared.config import PoCConfig
from shared.errors import (
    CouldNotCompute,
    InvalidRequest,
    PoCError,
    RoundMismatch,
    RoundNotInitialized,
    as_fields,
)
from shared.evidence import Computer, Evidence
from shared.requests import ValidateRequest
from shared.schemes import Batch, Proof, Verdict, batch_from
from shared.schemes.distance import Distance, ProofBatch
from shared.store.ask import Ask
from shared.store.connection import redis_errors
from shared.store.context import Context
from shared.store.current import CurrentRound
from shared.store.dead_letters import DeadLetters
from shared.store.outbox import Message

log = logging.getLogger(__name__)

#: Ended validations that are kept for viewers.
KEEP_OUTCOMES = 100


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some nonces of a validation that one worker computes under a lease."""

    token: str
    validation: str
    start: int
    count: int
    attempts: int
    #: It failed too often: it is only to be committed, without proofs.
    given_up: bool
    error: str
    batch: Batch
    config: PoCConfig
    #: The trace that it is of; empty without one.
    traceparent: str = ""

    @property
    def public_key(self) -> str:
        """Whose nonces they are."""
        return self.batch.public_key

    @property
    def nonces(self) -> tuple[int, ...]:
        """The nonces to compute."""
        return tuple(self.batch.nonces[self.start : self.start + self.count])


@dataclass(frozen=True, slots=True)
class ComputedValidation:
    """A validation whose chunks are all in. A proof is None where none could be computed."""

    id: str
    round_id: str
    batch: Batch
    config: PoCConfig
    proofs: list[Proof | None]
    error: str
    #: What computed it, as JSON; the last chunk's.
    profile: str
    #: The trace that it is of; empty without one.
    traceparent: str = ""
    #: All that computed it.
    computed_by: list[Computer] = field(default_factory=list)
    opened_at: float | None = None

    @property
    def not_computed(self) -> list[int]:
        """The nonces without a proof."""
        pairs = zip(self.batch.nonces, self.proofs, strict=True)
        return [nonce for nonce, proof in pairs if proof is None]

    def evidence(self, outcome: Verdict | PoCError) -> Evidence:
        """All that this `outcome` rests on."""
        ended = None if isinstance(outcome, PoCError) else outcome.ended
        return Evidence(
            validation=self.id,
            batch=self.batch,
            config=self.config.model_copy(update={"callback_url": None}),
            proofs=self.proofs,
            error=str(outcome) if isinstance(outcome, PoCError) else "",
            n_invalid=ended and ended.n_invalid,
            probability_honest=ended and ended.probability_honest,
            fraud_detected=ended and ended.fraud_detected,
            computed_by=self.computed_by,
            opened_at=self.opened_at,
            judged_at=time.time(),
        )


#: The id, batch, config and trace of a validation.
_Opened = tuple[str, Batch, PoCConfig, str]


class Validations:
    """The validations of a namespace. The task that asked for one is its id and its ticket."""

    def __init__(self, context: Context, current: CurrentRound, dead_letters: DeadLetters) -> None:
        self._context, self._current, self._dead_letters = context, current, dead_letters
        self._redis, self._keys, self._scripts = context.redis, context.keys, context.scripts
        # What the last chunk was of: the next one mostly is, too, and a batch may be megabytes.
        self._opened: _Opened | None = None

    def open(self, command: str, request: ValidateRequest, traceparent: str = "") -> None:
        """Record the validation of the batch of `request`; `command` is its ticket.

        `traceparent` is the trace that it is of.

        The config of `request` says what it is judged by, and its batch_size is what a worker
        takes at a time; without one the current round's counts, which then must be of the same
        block. Raises `RoundNotInitialized` or `RoundMismatch`.
        """
        batch = request.batch
        if batch is None:
            raise ValueError("a validation needs a batch")

        def args(config: PoCConfig | None) -> dict[str, Any]:
            refusal = _refusal(batch, config, named=request.config is not None)
            size = config.batch_size if config else 1
            return {
                "command": command,
                "batch": batch.model_dump_json(),
                "config": config and config.model_dump_json(),
                "scheme": batch.scheme_name,
                "total": len(batch),
                "chunks": [(at, min(size, len(batch) - at)) for at in range(0, len(batch), size)],
                "refusal": refusal and as_fields(refusal),
                "memory_s": self._context.settings.command_memory_s,
                "traceparent": traceparent,
            }

        if request.config:
            self._scripts.call("open_validation", **args(request.config))
        else:
            self._current.call_by_config("open_validation", args)

    def chunk_of(self, ask: Ask, answer: Mapping[str, Any]) -> Chunk | None:
        """The chunk that `ask` got; None if its validation ended while it waited: it is dropped."""
        claim = answer["claim"]
        opened = self._open(claim["job"])
        _, batch, config, traceparent = opened or ("", _NO_BATCH, _NO_CONFIG, "")
        chunk = Chunk(
            token=ask.token,
            validation=claim["job"],
            start=int(claim["start"]),
            count=int(claim["count"]),
            attempts=int(claim["attempts"]),
            given_up=claim["given_up"],
            error=claim.get("error", ""),
            batch=batch,
            config=config,
            traceparent=traceparent,
        )
        if opened:
            return chunk
        self.commit(chunk, [])
        return None

    def commit(
        self,
        chunk: Chunk,
        proofs: Sequence[Proof | None],
        error: str | None = None,
        profile: str | None = None,
        computer: Computer | None = None,
    ) -> str | None:
        """Keep a chunk's proofs (None: could not) once; None, or why they were refused.

        `computer` is what computed them, for the evidence.

        Those of a model of another fingerprint than the first chunk's count as not computed.
        """
        answer = self._scripts.call(
            "commit_chunk",
            token=chunk.token,
            job=chunk.validation,
            start=str(chunk.start),
            count=chunk.count,
            proofs=json.dumps(list(proofs)),
            error=error,
            profile=profile,
            worker=computer and computer.worker,
            computer=computer and computer.model_dump_json(),
        )
        refused: str | None = answer.get("refused")
        return refused

    def give_back(self, chunk: Chunk, error: str | None = None) -> None:
        """Free a chunk; `error` counts as a failed attempt."""
        self._scripts.call("give_back", token=chunk.token, error=error)

    def next_computed(self) -> ComputedValidation | None:
        """A validation that waits for its verdict; it stays in the queue until `finish`.

        One that this version can't read ends with an error.
        """
        while (raw := self._dead_letters.head("verdicts")) is not None:
            validation = raw.decode(errors="replace")
            with redis_errors():
                fields, parts = self._read(validation)
                if "batch" not in fields:  # another clerk has finished it, or it never was
                    if self._redis.lrem(self._keys("verdicts"), 0, raw):
                        log.error("verdicts: dropped %.80r: no open validation has this id", raw)
                    continue
            try:
                return _computed(validation, fields, parts)
            except _UNREADABLE as error:
                self._give_up(validation, error)
        return None

    def finish(
        self,
        validation: ComputedValidation,
        verdict: Verdict | None = None,
        error: PoCError | None = None,
        message: Message | None = None,
        evidence: Evidence | None = None,
    ) -> None:
        """End a validation with its `verdict` or an `error`, once.

        `evidence` is kept as long as the validation is.
        """
        of = _about(validation.batch)
        self._finish(validation.id, validation.round_id, of, verdict, error, message, evidence)

    def evidence(self, validation: str) -> str | None:
        """The evidence of an ended validation (an `Evidence` as JSON), if any is kept."""
        with redis_errors():
            kept: str | None = self._redis.hget(self._keys("job", validation), "evidence")
        return kept

    def cancel(
        self,
        command: str,
        validation: str,
        error: PoCError,
        tell: Callable[[ComputedValidation], Message | None],
    ) -> bool:
        """End a validation with `error` before it has a verdict; False if it had ended before.

        `tell` makes its callback. What is still computed of it is refused. Raises `InvalidRequest`
        for what is no validation, or not kept.
        """
        while True:
            with redis_errors():
                fields, _ = self._read(validation)
            opened: ComputedValidation | None = None
            if "batch" in fields:
                with suppress(*_UNREADABLE):  # another version's; then nobody can tell it either
                    opened = _computed(validation, fields, {})
            _, answer = self._current.call(
                "cancel_validation",
                command=command,
                counted=(opened and opened.round_id) or None,
                read="batch" in fields,
                memory_s=self._context.settings.command_memory_s,
                **self._end(
                    validation,
                    "cancelled",
                    _about(opened.batch) if opened else {},
                    error=error,
                    message=tell(opened) if opened else None,
                ),
            )
            if "again" not in answer:
                return bool(answer["cancelled"])

    def progress(self) -> dict[str, dict[str, int]]:
        """Nonces done and total of each open validation."""
        with redis_errors():
            open_ids = self._redis.zrange(self._keys("jobs"), 0, -1)
            with self._redis.pipeline(transaction=False) as pipe:
                for validation in open_ids:
                    pipe.hmget(self._keys("job", validation), ["done", "total"])
                counts = pipe.execute()
        return {
            validation: {"done": int(done or 0), "total": int(total or 0)}
            for validation, (done, total) in zip(open_ids, counts, strict=True)
        }

    def _read(self, validation: str) -> tuple[dict[str, str], dict[str, str]]:
        """A validation and its proofs, at one moment: another clerk may end it in between."""
        if not validation:
            return {}, {}
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(self._keys("job", validation))
            pipe.hgetall(self._keys("job_dist", validation))
            fields, parts = pipe.execute()
        return fields, parts

    def _open(self, validation: str) -> _Opened | None:
        """What never changes of a validation; None when it has ended."""
        key = self._keys("job", validation)
        with redis_errors():
            if self._redis.hget(key, "state") != "OPEN":
                return None
            opened = self._opened
            if opened is None or opened[0] != validation:
                names = ["batch", "config", "traceparent"]
                batch, config, traceparent = self._redis.hmget(key, names)
                if not batch:  # it has ended since
                    return None
                try:
                    self._opened = opened = (
                        validation,
                        batch_from(json.loads(batch)),
                        PoCConfig.model_validate_json(config),
                        traceparent or "",
                    )
                except _UNREADABLE as error:
                    self._give_up(validation, error)
                    return None
        return opened

    def _give_up(self, validation: str, why: Exception) -> None:
        """End a validation that another version wrote, say; its caller learns of it."""
        log.error("validation %s can't be read: %s", validation, why)
        # Of thousands of bad nonces each has its line.
        message = f"this version of the worker can't read the validation: {str(why)[:500]}"
        self._finish(validation, "", {}, error=CouldNotCompute(message))

    def _finish(
        self,
        validation: str,
        round_id: str,
        of: Mapping[str, Any],
        verdict: Verdict | None = None,
        error: PoCError | None = None,
        message: Message | None = None,
        evidence: Evidence | None = None,
    ) -> None:
        outcome, result, judged = "error", None, None
        if verdict is not None:  # that on an empty batch is false
            result, judged = verdict.model_dump_json(), verdict.ended
            outcome = "fraud" if judged and judged.fraud_detected else "honest"
            outcome = outcome if judged else "computed"
        of = {**of, **(judged._asdict() if judged else {})}
        ended = self._end(validation, outcome, of, result, error, message)
        kept = evidence and evidence.model_dump_json()
        self._scripts.call("finish_validation", round=round_id, evidence=kept, **ended)

    def _end(
        self,
        validation: str,
        outcome: str,
        of: Mapping[str, Any],
        result: str | None = None,
        error: PoCError | None = None,
        message: Message | None = None,
    ) -> dict[str, Any]:
        """What the scripts take that end a validation; `of` is what is told of it afterwards."""
        return {
            "job": validation,
            "result": result,
            "error": error and as_fields(error),
            "message": message and message.as_args(),
            "keep_s": self._context.settings.keep_rounds_s,
            "outcome": outcome,
            "summary": json.dumps({**of, "id": validation, "error": str(error or "")}),
            "keep_outcomes": KEEP_OUTCOMES,
        }


#: What reading a validation raises that was not written by this version.
_UNREADABLE = (ValueError, TypeError, LookupError)
# Stand in for what a validation has that has ended and is not looked at.
_NO_CONFIG = PoCConfig(block_hash="-", block_height=0, public_key="-", terms=Distance(r_target=1.0))
_NO_BATCH = ProofBatch.empty()


def _about(batch: Batch) -> dict[str, Any]:
    """What an outcome tells of the batch that was judged."""
    return {
        "public_key": batch.public_key,
        "block_hash": batch.block_hash,
        "block_height": batch.block_height,
        "node_id": batch.node_id,
        "nonces": len(batch),
    }


def _computed(validation: str, fields: dict[str, str], parts: dict[str, str]) -> ComputedValidation:
    batch = batch_from(json.loads(fields["batch"]))
    # A chunk that was given up has no proofs.
    proofs: list[Proof | None] = [None] * len(batch)
    for start, part in parts.items():
        found = json.loads(part)
        proofs[int(start) : int(start) + len(found)] = found
    return ComputedValidation(
        id=validation,
        round_id=fields["round"],
        batch=batch,
        config=PoCConfig.model_validate_json(fields["config"]),
        proofs=proofs,
        error=fields.get("error", ""),
        profile=fields.get("profile", ""),
        traceparent=fields.get("traceparent", ""),
        computed_by=[
            Computer.model_validate_json(value)
            for name, value in sorted(fields.items())
            if name.startswith("by:")
        ],
        opened_at=float(fields["opened_at"]) if "opened_at" in fields else None,
    )


def _refusal(batch: Batch, config: PoCConfig | None, *, named: bool) -> PoCError | None:
    """Why `batch` can't be judged by `config`, the round's or the one `named` beside it."""
    if config is None:
        return RoundNotInitialized()
    of = "the config beside it" if named else "the current round"
    if batch.scheme_name != config.scheme:
        return RoundMismatch(
            f"the batch is of the scheme {batch.scheme_name}, {of} is of the scheme {config.scheme}"
        )
    if why := config.terms.refusal_of_batch(batch):
        return InvalidRequest(f"batch.{why}")
    block, ours = (f"{each.block_hash} at {each.block_height}" for each in (batch, config))
    if block != ours:
        return RoundMismatch(
            f"the batch is of block {block}, {of} is of block {ours}; "
            "send the config that it was made with (poc validate --batch FILE --config FILE)"
        )
    # With a single node every nonce is its own.
    if config.node_count == 1:
        return None
    if batch.node_id >= config.node_count:
        return RoundMismatch(f"node_id {batch.node_id} is not in [0, {config.node_count})")
    strangers = [n for n in batch.nonces if n % config.node_count != batch.node_id]
    if strangers:
        return RoundMismatch(
            f"{len(strangers)} of {len(batch)} nonces are not of node {batch.node_id} of "
            f"{config.node_count}, the first is {strangers[0]}"
        )
    return None
