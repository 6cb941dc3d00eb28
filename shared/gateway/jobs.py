"""Jobs: some nonces to compute, or claims to judge, until their end."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from math import inf
from typing import Any

from shared.client import AsyncPoCClient
from shared.config import PoCConfig
from shared.errors import Cancelled, NoAnswer, PoCError, StoreError, StoreUnavailable
from shared.gateway import in_time
from shared.gateway.deployed import Answer, Deployed, Refused, not_now
from shared.gateway.in_time import ANSWER_S, TooLate, soon
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
        self._ending = asyncio.Event()

    def end(self) -> None:
        """Answer whoever waits: this process ends."""
        self._ending.set()

    async def compute(
        self, asked: GenerateBody, hangs_up: Callable[[], Coroutine[Any, Any, None]]
    ) -> Answer:
        """Take a job on; with `wait` its end, else its id.

        It is in Redis when this answers. A worker that did not take it in time takes it later.
        A caller who `hangs_up` is waited with for no longer; the job goes on.
        """
        await self._deployed.check(asked)
        if asked.size > MAX_NONCES:
            raise _full(Waiting(0, 0), asked.size)
        batch, config = asked.batch, asked.config(self._settings.gateway_batch_size)
        job = str(uuid.uuid4())
        queued = {"status": "queued", "request_id": job, "queued_count": len(batch)}
        await self._reserve(job, len(batch))
        if asked.wait:
            return await self._end_of(job, batch, config, hangs_up) or queued
        try:
            await soon(self._client.validate_batch(batch, config, job))
        except TooLate:  # nobody knows whether Redis has it
            raise not_now("Redis does not answer in time; the job may still be taken") from None
        except NoAnswer:
            await self._keep_room(job, len(batch))
        return queued

    async def job(self, request_id: str) -> Answer:
        """How the job stands, or how it ended."""
        if not _ID.fullmatch(request_id):
            raise Refused(400, "request_id: is none that a job here has had")
        meta = await self._deployed.read(lambda: self._store.jobs.look(request_id))
        if meta is None:
            raise Refused(404, f"there is no job {request_id}, or it is too long ago")
        return {"request_id": request_id, **_standing(meta)}

    async def _reserve(self, job: str, nonces: int) -> None:
        """Keep room for it while it is sent, or raise `Refused`."""
        reserve = self._store.jobs.reserve
        if waiting := await self._deployed.read(lambda: reserve(job, nonces, SENDING_S)):
            raise _full(waiting, nonces)

    async def _keep_room(self, job: str, nonces: int) -> None:
        """Keep it while the job waits for a worker; it waits without, too."""
        reserve = self._store.jobs.reserve
        with suppress(Refused, StoreError):
            await self._deployed.read(lambda: reserve(job, nonces, QUEUED_S, again=True))

    async def _end_of(
        self,
        job: str,
        batch: ArtifactBatch,
        config: PoCConfig,
        hangs_up: Callable[[], Coroutine[Any, Any, None]],
    ) -> Answer | None:
        """What a job comes to; None if that is not known after the longest time to wait.

        Nor is it if nobody waits any more, or this process ends.
        """
        taken = asyncio.Event()
        ends: asyncio.Task[Any] = asyncio.create_task(self._verdict(job, batch, config, taken))
        others = [asyncio.create_task(each) for each in (hangs_up(), self._ending.wait())]
        try:
            all_of = (ends, *others)
            await asyncio.wait(all_of, timeout=WAIT_S, return_when=asyncio.FIRST_COMPLETED)
            if ends.done():
                return {"status": "completed", "request_id": job, **answered(ends.result())}
        except Cancelled as error:
            return {"status": "cancelled", "request_id": job, "error": str(error)}
        except StoreUnavailable:
            raise
        except PoCError as error:
            raise not_now(str(error), request_id=job) from None
        finally:
            for each in (ends, *others):
                each.cancel()
        if self._ending.is_set() and not taken.is_set():  # nobody knows whether Redis has it
            raise not_now("this gateway ends; the job may still be taken")
        return None

    async def _verdict(
        self, job: str, batch: ArtifactBatch, config: PoCConfig, taken: asyncio.Event
    ) -> Any:
        """What a job comes to, however long no worker has `taken` it."""
        client = self._client.within(inf)
        taking = asyncio.create_task(client.validate_batch(batch, config, job))
        try:
            await asyncio.wait([taking], timeout=ANSWER_S)
            if not taking.done():
                in_time.begin()
                await self._keep_room(job, len(batch))
            ticket = await taking
        finally:
            taking.cancel()
        taken.set()
        return await ticket.wait()


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
