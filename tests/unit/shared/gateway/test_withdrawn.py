"""A round that was refused, since nobody began it in time, and that has begun all the same."""

from __future__ import annotations

import asyncio
from typing import Any, Self, cast

import pytest

from calls import ROUND
from shared.client import AsyncPoCClient
from shared.config import PoCConfig
from shared.errors import NoAnswer, PoCError, StoreUnavailable
from shared.gateway import in_time
from shared.gateway.deployed import Deployed, Refused
from shared.gateway.messages import InitBody
from shared.gateway.rounds import Rounds
from shared.requests import GenerateRequest, StopRequest
from shared.settings import load_settings
from shared.store import Store

pytestmark = pytest.mark.usefixtures("worker")


class Late:
    """A client whose round begins although its sender is told `trouble`; stops come later."""

    def __init__(self, store: Store, trouble: PoCError) -> None:
        self._rounds, self._trouble = store.rounds, trouble
        self.stops = asyncio.Event()

    def within(self, _: float) -> Self:
        return self

    async def generate(self, config: PoCConfig, round_id: str, **_: Any) -> None:
        self._rounds.generate(round_id, GenerateRequest(config=config, round_id=round_id))
        raise self._trouble

    async def stop(self, round_id: str) -> None:
        await self.stops.wait()
        self._rounds.stop(f"stop-{round_id}", StopRequest(round_id=round_id))


@pytest.mark.parametrize("trouble", [NoAnswer("no worker"), StoreUnavailable("no Redis")])
def test_whoever_asks_for_it_again_meanwhile_is_not_told_that_it_generates(
    store: Store, trouble: PoCError
) -> None:
    """A controller that is told so begins none, and this one ends."""
    settings = load_settings({}, namespace="test")

    async def run() -> None:
        client = Late(store, trouble)
        deployed = Deployed(settings, store)
        rounds = Rounds(settings, deployed, cast(AsyncPoCClient, client))

        async def refused() -> PoCError | Refused:
            in_time.begin()
            with pytest.raises((PoCError, Refused)) as error:
                await rounds.begin(InitBody.model_validate(ROUND))
            return error.value

        await refused()
        again = await refused()
        assert isinstance(again, Refused)
        assert again.status == 503
        client.stops.set()
        await rounds.aclose()
        assert (await deployed.round()).state == "STOPPED"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_time, "ANSWER_S", 30)
        asyncio.run(run())
