"""The workers and their model, as a request finds them, and what it may ask of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from shared.config import PoCState
from shared.errors import NoAnswer
from shared.gateway import in_time
from shared.gateway.messages import GenerateBody, InitBody, Params
from shared.receivers import Receivers
from shared.serving import RETRY_AFTER_S
from shared.settings import Settings
from shared.status import NodeStatus, RoundStatus, WorkerStatus
from shared.store import Store
from shared.version import installed

T = TypeVar("T")
Answer = dict[str, Any]


class Refused(Exception):
    """An answer that is none of success: its status, body and headers."""

    def __init__(self, status: int, detail: str, retry_after_s: int = 0, **more: Any) -> None:
        super().__init__(detail)
        self.status, self.body = status, {"detail": detail} | more
        self.headers = {"Retry-After": str(retry_after_s)} if retry_after_s else None


def not_now(why: str, **more: Any) -> Refused:
    """A refusal of what may be asked for again at once."""
    return Refused(503, why, RETRY_AFTER_S, **more)


class Deployed:
    """The workers of a namespace, as those see them who speak the network's HTTP."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings, self._store = settings, store
        self._receivers = Receivers.of(settings.callback_allow)

    async def read(self, look: Callable[[], T]) -> T:
        """What the store gives, in time."""
        try:
            return await in_time.soon(asyncio.to_thread(look))
        except NoAnswer:
            raise not_now("Redis does not answer in time") from None

    async def listing(self) -> list[WorkerStatus]:
        """The workers that live."""
        return await self.read(self._store.workers.listing)

    async def workers(self) -> list[WorkerStatus]:
        """The same; raises `Refused` if there is none."""
        workers = await self.listing()
        if not workers:
            raise not_now("no worker is ready")
        return workers

    async def round(self) -> RoundStatus:
        """The current round, also one that has ended; an empty one before the first."""
        return await self.read(lambda: self._store.rounds.status() or RoundStatus())

    async def node(self) -> NodeStatus:
        """The round, and the workers."""
        return await self.read(self._store.status)

    async def check(self, body: InitBody | GenerateBody) -> list[WorkerStatus]:
        """The workers that can do it.

        Raises `Refused` for what is not deployed here, and for a receiver that is not allowed.
        """
        workers = await self.workers()
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
        return workers

    async def state(self) -> Answer:
        """What the network's node software says of itself."""
        node = await self.node()
        lives = bool(node.workers)
        return {
            "state": "INFERENCE" if lives else "STOPPED",
            "version": installed(),
            "poc_validation_inference": True,
            "poc_status": doing(node),
            "inference_healthy": lives,
            "loaded_model": self._model(node.workers),
        }

    async def versions(self) -> Answer:
        """Of what computes."""
        workers = await self.listing()
        found = next((each.versions for each in workers if each.versions), {})
        return {
            "vllm_version": found.get("vllm", ""),
            "poc_worker_version": installed(),
            "poc_validation_inference": True,
        }

    async def models(self) -> Answer:
        """The one that workers have, by its name on the network."""
        workers = await self.workers()
        model = {"id": self._model(workers), "object": "model", "created": 0}
        return {"object": "list", "data": [model | {"owned_by": "poc-worker"}]}

    async def ready(self) -> Answer:
        """How many workers can compute."""
        return {"status": "ok", "workers": len(await self.workers())}

    def _model(self, workers: list[WorkerStatus]) -> str:
        return self._settings.gateway_model or (workers[0].model if workers else "")


def doing(node: NodeStatus) -> str:
    """What the node does, in the network's words."""
    if not node.workers:
        return "NO_BACKENDS"
    return PoCState.GENERATING if node.state == PoCState.GENERATING else PoCState.IDLE
