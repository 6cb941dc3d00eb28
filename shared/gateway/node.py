"""What becomes of a request: commands by the client, all else from the store."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from pydantic import ValidationError

from shared.client import AsyncPoCClient, AsyncTicket
from shared.config import PoCState
from shared.errors import (
    Cancelled,
    NoAnswer,
    PoCError,
    RoundInProgress,
    StoreError,
    StoreUnavailable,
)
from shared.gateway.messages import GenerateBody, InitBody, Params, answered
from shared.receivers import Receivers
from shared.requests import explain
from shared.schemes.artifact import ArtifactTerms, ComputedArtifacts, ValidatedArtifacts
from shared.serving import RETRY_AFTER_S
from shared.settings import Settings
from shared.status import NodeStatus, RoundStatus, WorkerStatus
from shared.store import Store
from shared.version import installed
from shared.wire import MAX_PROOF_NONCES

T = TypeVar("T")
Answer = dict[str, Any]

#: Seconds until whoever did not ask to wait has an answer, and of these what a worker has.
ANSWER_S, COMMAND_S = 1.6, 1.3
#: Seconds for which a round that began too late is withdrawn.
WITHDRAW_S = 600.0
#: The longest that a caller may wait for a job: what the network's controller waits, nearly.
WAIT_S = 870.0
#: Nonces of jobs, and commands, that may wait for workers.
MAX_NONCES, MAX_COMMANDS = MAX_PROOF_NONCES, 64
#: Seconds that whoever is told 429 shall stay away.
BUSY_S = 5

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

log = logging.getLogger(__name__)


class Refused(Exception):
    """An answer that is none of success: its status, body and headers."""

    def __init__(self, status: int, detail: str, retry_after_s: int = 0, **more: Any) -> None:
        super().__init__(detail)
        self.status, self.body = status, {"detail": detail} | more
        self.headers = {"Retry-After": str(retry_after_s)} if retry_after_s else None


class _TooLate(NoAnswer):
    """A step took so long that it was not waited for; what came of it is not known."""


def _not_now(why: str) -> Refused:
    return Refused(503, why, RETRY_AFTER_S)


class Node:
    """The node of a namespace, for those who speak the network's HTTP."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings, self._store = settings, store
        self._client = AsyncPoCClient(settings, COMMAND_S)
        self._withdraws = AsyncPoCClient(settings, WITHDRAW_S)
        self._receivers = Receivers.of(settings.callback_allow)
        self._background: set[asyncio.Task[None]] = set()
        #: When a request must have its answer, by the loop's clock, however much it waits for in
        #: turn; from the first of that on. Each has a task of its own.
        self._answer_by: WeakKeyDictionary[asyncio.Task[Any], float] = WeakKeyDictionary()

    async def aclose(self) -> None:
        """Give the connections back."""
        if self._background:
            await asyncio.wait(self._background, timeout=ANSWER_S)
        await self._client.aclose()
        await self._withdraws.aclose()

    # Rounds.

    async def begin(self, asked: InitBody) -> Answer:
        """Open a round, and generate in it. A worker that has not answered will not do it later."""
        workers = await self._workers()
        self._check(asked, workers)
        running = await self._round()
        round_id = str(uuid.uuid4())
        try:
            await self._soon(
                self._client.generate(
                    asked.config(self._settings.gateway_batch_size),
                    round_id,
                    replace=self._settings.gateway_replace and not _is_of(running, asked),
                    seconds=self._settings.gateway_round_s,
                )
            )
        except RoundInProgress:
            running = await self._round()
            known = running.model_dump(include={"block_hash", "block_height", "public_key"})
            raise Refused(409, "Already generating", **known) from None
        except NoAnswer:
            self._withdraw(round_id)  # it must not begin by itself after this
            raise _not_now("no worker began the round in time; it was withdrawn") from None
        log.info("round %s of block %s begins", round_id, asked.block_hash)
        return {
            "status": "OK",
            "pow_status": {"status": PoCState.GENERATING},
            "round_id": round_id,
            "backends": len(workers),
            "n_groups": 1,
            "results": [{"worker": each.name, "status": "OK"} for each in workers],
            "errors": [],
        }

    async def stop(self) -> Answer:
        """End the round. What was computed is delivered all the same, and jobs go on."""
        running = await self._round()
        if not await self._read(self._store.workers.listing):
            if running.state == PoCState.GENERATING:
                self._withdraw(running.round_id)  # the next worker must not go on with it
            return {"status": "OK", "message": "No backends to stop"}
        try:
            # By its id: should this come late, it stops no later round.
            await self._soon(self._client.stop(running.round_id or None))
        except NoAnswer:
            raise _not_now("no worker has stopped yet; the first to answer will") from None
        return {"status": "OK", "pow_status": {"status": PoCState.STOPPED}}

    async def status(self) -> Answer:
        """What the node does."""
        node = await self._read(self._store.status)
        doing = _doing(node)
        generates = doing == PoCState.GENERATING
        return {
            "status": doing,
            "config": _shown(node) if generates else None,
            "stats": {
                "total_processed": node.total_checked,
                "nonces_per_second": node.recent_rate_per_second or node.rate_per_second,
            }
            if generates
            else None,
            "backends": [
                {
                    "name": each.name,
                    "status": each.state.upper(),
                    "model": each.model,
                    "nonces_per_second": each.rate_per_second,
                }
                for each in node.workers
            ],
        }

    # Jobs.

    async def compute(self, asked: GenerateBody) -> Answer:
        """Take a job on; with `wait` its end, else its id.

        It is in Redis when this answers. A worker that did not take it in time takes it later.
        """
        self._check(asked, await self._workers())
        if asked.claims_others:
            raise Refused(400, "validation.artifacts nonces must match nonces field")
        await self._check_room(asked.size)
        try:
            batch, config = asked.batch, asked.config(self._settings.gateway_batch_size)
        except ValidationError as error:
            raise Refused(400, explain(error)) from None
        request_id = str(uuid.uuid4())
        await self._read(lambda: self._store.results.expect(request_id))
        queued = {"status": "queued", "request_id": request_id, "queued_count": len(batch)}
        try:
            ticket = await self._soon(self._client.validate_batch(batch, config, request_id))
        except _TooLate:  # nobody knows whether Redis has it
            why = "Redis does not answer in time; the job may still be taken"
            raise Refused(503, why, RETRY_AFTER_S, request_id=request_id) from None
        except NoAnswer:
            return queued
        return await self._ended(ticket, queued) if asked.wait else queued

    async def job(self, request_id: str) -> Answer:
        """How the job stands, or how it ended."""
        if not _ID.fullmatch(request_id):
            raise Refused(400, "request_id: is none that a job here has had")
        meta = await self._read(lambda: self._store.results.look(request_id))
        if meta is None:
            raise Refused(404, f"there is no job {request_id}, or it is too long ago")
        return {"request_id": request_id, **_standing(meta)}

    async def _ended(self, ticket: AsyncTicket[Any], queued: Answer) -> Answer:
        try:
            async with asyncio.timeout(WAIT_S):
                verdict = await ticket.wait()
        except TimeoutError:
            return queued
        except Cancelled as error:
            return queued | {"status": "cancelled", "error": str(error)}
        except StoreUnavailable:
            raise
        except PoCError as error:
            raise Refused(503, str(error), RETRY_AFTER_S, request_id=ticket.id) from None
        return {"status": "completed", "request_id": ticket.id, **answered(verdict)}

    async def _check_room(self, more: int) -> None:
        def waiting() -> tuple[int, int]:
            open_jobs = self._store.validations.progress().values()
            left = sum(each["total"] - each["done"] for each in open_jobs)
            return left, self._store.commands.waiting

        nonces, commands = await self._read(waiting)
        if nonces + more > MAX_NONCES or commands >= MAX_COMMANDS:
            raise Refused(
                429,
                f"queue full: {nonces} nonces wait for workers, at most {MAX_NONCES} may; "
                f"{more} are too many",
                BUSY_S,
            )

    # The rest.

    async def state(self) -> Answer:
        """What the network's node software says of itself."""
        node = await self._read(self._store.status)
        lives = bool(node.workers)
        return {
            "state": "INFERENCE" if lives else "STOPPED",
            "version": installed(),
            "poc_validation_inference": True,
            "poc_status": _doing(node),
            "inference_healthy": lives,
            "loaded_model": self._model(node.workers),
        }

    async def versions(self) -> Answer:
        """Of what computes."""
        workers = await self._read(self._store.workers.listing)
        found = next((each.versions for each in workers if each.versions), {})
        return {
            "vllm_version": found.get("vllm", ""),
            "poc_worker_version": installed(),
            "poc_validation_inference": True,
        }

    async def models(self) -> Answer:
        """The one that workers have, by its name on the network."""
        workers = await self._workers()
        model = {"id": self._model(workers), "object": "model", "created": 0}
        return {"object": "list", "data": [model | {"owned_by": "poc-worker"}]}

    async def ready(self) -> Answer:
        """How many workers can compute."""
        return {"status": "ok", "workers": len(await self._workers())}

    async def gate(self) -> Answer:
        """Whether chat may go on. A Redis that is away closes nothing."""
        if not self._settings.gate_chat:
            return {}
        try:
            running = await self._round()
        except (Refused, StoreError):
            return {}
        if running.state != PoCState.GENERATING:
            return {}
        raise Refused(
            503,
            "a round is generating",
            RETRY_AFTER_S,
            error="poc_generation_active",
            reason="a round is generating",
            retry_after_ms=1000 * RETRY_AFTER_S,
        )

    async def _round(self) -> RoundStatus:
        """The current round, also one that has ended; an empty one before the first."""
        return await self._read(lambda: self._store.rounds.status() or RoundStatus())

    async def _workers(self) -> list[WorkerStatus]:
        workers = await self._read(self._store.workers.listing)
        if not workers:
            raise _not_now("no worker is ready")
        return workers

    def _model(self, workers: list[WorkerStatus]) -> str:
        return self._settings.gateway_model or (workers[0].model if workers else "")

    def _check(self, body: InitBody | GenerateBody, workers: list[WorkerStatus]) -> None:
        """Raise `Refused` for what is not deployed here, and for a receiver that is not allowed."""
        if body.url and (why := self._receivers.refusal_of_url(body.url)):
            raise Refused(400, f"url: {why}")
        asked = body.params
        seq_len = self._settings.gateway_seq_len or asked.seq_len
        can = [each.max_seq_len for each in workers if each.max_seq_len]
        deployed = Params(model=self._model(workers), seq_len=min([seq_len, *can]))
        if asked != deployed:
            raise Refused(
                409,
                "params: this node has another model or seq_len deployed",
                error="params mismatch",
                requested=asked.model_dump(),
                deployed=deployed.model_dump(),
            )

    async def _read(self, look: Callable[[], T]) -> T:
        """What the store gives, in time."""
        try:
            return await self._soon(asyncio.to_thread(look))
        except NoAnswer:
            raise _not_now("Redis does not answer in time") from None

    async def _soon(self, answer: Awaitable[T]) -> T:
        """What is waited for as long as a caller may; `NoAnswer` after that."""
        task: asyncio.Task[Any] = asyncio.current_task()  # type: ignore[assignment]
        answer_by = self._answer_by.setdefault(task, task.get_loop().time() + ANSWER_S)
        try:
            async with asyncio.timeout_at(answer_by):
                return await answer
        except TimeoutError:
            raise _TooLate("nothing came in time") from None

    def _withdraw(self, round_id: str) -> None:
        """See to it that a round whose begin nobody waits for any more never begins, or ends."""

        async def withdraw() -> None:
            try:
                await self._withdraws.stop(round_id)
            except PoCError as error:
                log.warning("round %s may begin although it was refused: %s", round_id, error)

        task = asyncio.create_task(withdraw())
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _is_of(running: RoundStatus, asked: InitBody) -> bool:
    """Whether the round is the one that is asked for, so that it must not be begun anew."""
    ours = (asked.block_hash, asked.block_height, asked.public_key, asked.node_id)
    return ours == (
        running.block_hash,
        running.block_height,
        running.public_key,
        running.node_id,
    )


def _doing(node: NodeStatus) -> str:
    if not node.workers:
        return "NO_BACKENDS"
    return PoCState.GENERATING if node.state == PoCState.GENERATING else PoCState.IDLE


def _shown(status: RoundStatus) -> Answer:
    """The round's config as callers of the network read it. All workers are one group."""
    names = {"block_hash", "block_height", "public_key", "node_id", "node_count", "seq_len"}
    return status.model_dump(include=names) | {
        "group_id": 0,
        "n_groups": 1,
        "k_dim": status.terms.get("k_dim", 0),
        "round_id": status.round_id,
    }


def _standing(meta: Mapping[str, Any]) -> Answer:
    """What the state of a task means for a job."""
    state, result = meta["status"], meta.get("result") or {}
    if state == "SUCCESS":
        verdict: ValidatedArtifacts | ComputedArtifacts = ArtifactTerms.verdict_from(result)
        return {"status": "completed", **answered(verdict)}
    if state == "PROGRESS":
        return {"status": "running" if result.get("done") else "queued", **result}
    if state in ("FAILURE", "REVOKED"):
        cancelled = state == "REVOKED" or result.get("exc_type") == Cancelled.__name__
        said = result.get("exc_message", "")
        text = " ".join(map(str, said)) if isinstance(said, list) else str(said)
        return {"status": "cancelled" if cancelled else "failed", "error": text or state}
    return {"status": "queued"}
