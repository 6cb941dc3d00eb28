"""Jobs: some nonces to compute, or claims to judge, until their end."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from math import inf
from typing import Any

from shared.client import AsyncPoCClient
from shared.config import PoCConfig
from shared.errors import Cancelled, NoAnswer, PoCError, StoreUnavailable
from shared.gateway.deployed import Answer, Deployed, Refused, not_now
from shared.gateway.in_time import TooLate, soon
from shared.gateway.messages import GenerateBody, answered
from shared.schemes.artifact import (
    ArtifactBatch,
    ArtifactTerms,
    ComputedArtifacts,
    ValidatedArtifacts,
)
from shared.settings import Settings
from shared.store import Store
from shared.store.jobs import MAX_COMMANDS, MAX_NONCES, Waiting

#: The longest that a caller may wait for a job: what the network's controller waits, nearly.
WAIT_S = 870.0
#: Seconds for which there is room for a job that is being sent, and for one that waits for workers.
SENDING_S, QUEUED_S = 10.0, WAIT_S
#: Seconds that whoever is told 429 shall stay away.
BUSY_S = 5

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Jobs:
    """The jobs of a namespace, for those who speak the network's HTTP."""

    def __init__(
        self, settings: Settings, store: Store, deployed: Deployed, client: AsyncPoCClient
    ) -> None:
        self._settings, self._store = settings, store
        self._deployed, self._client = deployed, client

    async def compute(self, asked: GenerateBody) -> Answer:
        """Take a job on; with `wait` its end, else its id.

        It is in Redis when this answers. A worker that did not take it in time takes it later.
        """
        await self._deployed.check(asked)
        if asked.size > MAX_NONCES:
            raise _full(Waiting(0, 0), asked.size)
        batch, config = asked.batch, asked.config(self._settings.gateway_batch_size)
        job = str(uuid.uuid4())
        queued = {"status": "queued", "request_id": job, "queued_count": len(batch)}
        await self._reserve(job, len(batch), QUEUED_S if asked.wait else SENDING_S)
        if asked.wait:
            return await self._end_of(job, batch, config) or queued
        try:
            await soon(self._client.validate_batch(batch, config, job))
        except TooLate:  # nobody knows whether Redis has it
            raise not_now("Redis does not answer in time; the job may still be taken") from None
        except NoAnswer:
            with suppress(Refused):
                await self._reserve(job, len(batch), QUEUED_S)
        return queued

    async def job(self, request_id: str) -> Answer:
        """How the job stands, or how it ended."""
        if not _ID.fullmatch(request_id):
            raise Refused(400, "request_id: is none that a job here has had")
        meta = await self._deployed.read(lambda: self._store.jobs.look(request_id))
        if meta is None:
            raise Refused(404, f"there is no job {request_id}, or it is too long ago")
        return {"request_id": request_id, **_standing(meta)}

    async def _reserve(self, job: str, nonces: int, for_s: float) -> None:
        """Keep room for it, or raise `Refused`."""
        waiting = await self._deployed.read(lambda: self._store.jobs.reserve(job, nonces, for_s))
        if waiting:
            raise _full(waiting, nonces)

    async def _end_of(self, job: str, batch: ArtifactBatch, config: PoCConfig) -> Answer | None:
        """What a job comes to; None if that is not known after the longest time to wait."""
        try:
            async with asyncio.timeout(WAIT_S):
                ticket = await self._client.within(inf).validate_batch(batch, config, job)
                verdict: Any = await ticket.wait()
        except TimeoutError:
            return None
        except Cancelled as error:
            return {"status": "cancelled", "request_id": job, "error": str(error)}
        except StoreUnavailable:
            raise
        except PoCError as error:
            raise not_now(str(error), request_id=job) from None
        return {"status": "completed", "request_id": job, **answered(verdict)}


def _full(waiting: Waiting, more: int) -> Refused:
    return Refused(
        429,
        f"queue full: {waiting.nonces} nonces and {waiting.commands} commands wait for workers, "
        f"at most {MAX_NONCES} and {MAX_COMMANDS} may; {more} nonces more are too many",
        BUSY_S,
    )


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
