"""Rounds: begun and stopped by the client, shown from the store."""

from __future__ import annotations

import asyncio
import logging
import uuid

from shared.client import AsyncPoCClient
from shared.config import PoCState
from shared.errors import NoAnswer, PoCError, RoundInProgress, StoreError, StoreUnavailable
from shared.gateway.deployed import Answer, Deployed, Refused, doing, not_now
from shared.gateway.in_time import ANSWER_S, soon
from shared.gateway.messages import InitBody
from shared.serving import RETRY_AFTER_S
from shared.settings import Settings
from shared.status import RoundStatus, WorkerStatus

#: Seconds for which a round that began too late is withdrawn.
WITHDRAW_S = 600.0

log = logging.getLogger(__name__)


class Rounds:
    """The round of a namespace, for those who speak the network's HTTP."""

    def __init__(self, settings: Settings, deployed: Deployed, client: AsyncPoCClient) -> None:
        self._settings, self._deployed, self._client = settings, deployed, client
        #: What withdraws a round, by the round's id.
        self._withdrawing: dict[str, asyncio.Task[None]] = {}

    async def aclose(self) -> None:
        """Let what goes on by itself end."""
        if self._withdrawing:
            await asyncio.wait(self._withdrawing.values(), timeout=ANSWER_S)

    async def begin(self, asked: InitBody) -> Answer:
        """Open a round, and generate in it. A worker that has not answered will not do it later."""
        workers = await self._deployed.check(asked)
        if self._settings.gateway_replace:
            await self._make_room(asked)
        round_id = str(uuid.uuid4())
        try:
            await soon(
                self._client.generate(
                    asked.config(self._settings.gateway_batch_size),
                    round_id,
                    seconds=self._settings.gateway_round_s,
                )
            )
        except RoundInProgress:
            running = await self._deployed.round()
            # Nobody must take for a round what is ending.
            if running.round_id in self._withdrawing or running.state != PoCState.GENERATING:
                raise not_now("the round that was generating is being ended") from None
            known = running.model_dump(include={"block_hash", "block_height", "public_key"})
            raise Refused(409, "Already generating", **known) from None
        except NoAnswer:
            self._withdraw(round_id)  # it must not begin by itself after this
            raise not_now("no worker began the round in time; it was withdrawn") from None
        except StoreUnavailable:  # it may have been sent before Redis went away
            self._withdraw(round_id)
            raise
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
        running = await self._deployed.round()
        if not await self._deployed.listing():
            if running.state == PoCState.GENERATING:
                self._withdraw(running.round_id)  # the next worker must not go on with it
            return {"status": "OK", "message": "No backends to stop"}
        await self._stop(running.round_id)
        return {"status": "OK", "pow_status": {"status": PoCState.STOPPED}}

    async def status(self) -> Answer:
        """What the node does."""
        node = await self._deployed.node()
        does = doing(node)
        generates = does == PoCState.GENERATING
        return {
            "status": does,
            "config": _shown(node) if generates else None,
            "stats": {
                "total_processed": node.total_checked,
                "nonces_per_second": node.recent_rate_per_second or node.rate_per_second,
            }
            if generates
            else None,
            "backends": [_backend(each, generates=generates) for each in node.workers],
        }

    async def gate(self) -> Answer:
        """Whether chat may go on. Nothing is closed while Redis is away, or all workers are."""
        if not self._settings.gate_chat:
            return {}
        try:
            node = await self._deployed.node()
        except (Refused, StoreError):
            return {}
        if doing(node) != PoCState.GENERATING:
            return {}
        raise not_now(
            "a round is generating",
            error="poc_generation_active",
            reason="a round is generating",
            retry_after_ms=1000 * RETRY_AFTER_S,
        )

    async def _make_room(self, asked: InitBody) -> None:
        """Stop the round that is generating, unless it is the one that is asked for.

        By its id: of two gateways that do so at once, neither stops what the other then begins.
        """
        running = await self._deployed.round()
        if running.state == PoCState.GENERATING and not _is_of(running, asked):
            await self._stop(running.round_id)

    async def _stop(self, round_id: str) -> None:
        """By its id: should this come late, it stops no later round."""
        try:
            await soon(self._client.stop(round_id or None))
        except NoAnswer:
            raise not_now("no worker has stopped yet; the first to answer will") from None

    def _withdraw(self, round_id: str) -> None:
        """See to it that a round whose begin nobody waits for any more never begins, or ends."""
        if round_id in self._withdrawing:
            return

        async def withdraw() -> None:
            try:
                await self._client.within(WITHDRAW_S).stop(round_id)
            except PoCError as error:
                log.warning("round %s may begin although it was refused: %s", round_id, error)

        task = self._withdrawing[round_id] = asyncio.create_task(withdraw())
        task.add_done_callback(lambda _: self._withdrawing.pop(round_id, None))


def _is_of(running: RoundStatus, asked: InitBody) -> bool:
    """Whether the round is the one that is asked for, so that it must not be begun anew."""
    ours = (asked.block_hash, asked.block_height, asked.public_key, asked.node_id)
    return ours == (
        running.block_hash,
        running.block_height,
        running.public_key,
        running.node_id,
    )


def _shown(status: RoundStatus) -> Answer:
    """The round's config as callers of the network read it. All workers are one group."""
    names = {"block_hash", "block_height", "public_key", "node_id", "node_count", "seq_len"}
    return status.model_dump(include=names) | {
        "group_id": 0,
        "n_groups": 1,
        "k_dim": status.terms.get("k_dim", 0),
        "round_id": status.round_id,
    }


def _backend(worker: WorkerStatus, *, generates: bool) -> Answer:
    state = worker.state.upper()
    if not generates and state == PoCState.GENERATING:
        state = PoCState.IDLE  # it says so with its next heartbeat
    return {
        "name": worker.name,
        "status": state,
        "model": worker.model,
        "nonces_per_second": worker.rate_per_second,
    }
