"""The node, as those see it who speak the network's HTTP."""

from __future__ import annotations

from shared.client import AsyncPoCClient
from shared.gateway.deployed import Deployed
from shared.gateway.jobs import Jobs
from shared.gateway.rounds import Rounds
from shared.settings import Settings
from shared.store import Store

#: Of the seconds until an answer, those that a worker has for a command.
COMMAND_S = 1.3


class Node:
    """What a request may be about. Commands go by the client, all else is read from the store."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._client = AsyncPoCClient(settings, COMMAND_S)
        self.deployed = Deployed(settings, store)
        self.rounds = Rounds(settings, self.deployed, self._client)
        self.jobs = Jobs(settings, store, self.deployed, self._client)

    def end(self) -> None:
        """Answer whoever waits, before the process ends."""
        self.jobs.end()

    async def aclose(self) -> None:
        """Give the connections back."""
        await self.rounds.aclose()
        await self._client.aclose()
