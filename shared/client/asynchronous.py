"""The client for callers on an event loop."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from typing import Any, Self

from shared import tracing
from shared.client import asking
from shared.client.asking import Answer, Asked, Batch, Config
from shared.client.steps import run_async
from shared.client.tickets import Followed, Line, Progress
from shared.client.watching import ValidNonce, Watch
from shared.schemes import Verdict
from shared.settings import Settings
from shared.status import Cancellation, RoundStatus


class AsyncTicket(Followed[Answer]):
    """A command under way, as `Ticket`."""

    async def wait(self, on_progress: Progress | None = None) -> Answer:
        """Wait for the end; `on_progress` gets each news of it, on the event loop.

        Raises what ended the work. `asyncio.timeout` bounds the waiting; the work then goes on.
        """
        loop = asyncio.get_running_loop()

        def tell(news: dict[str, Any]) -> None:
            loop.call_soon_threadsafe(on_progress, news)  # type: ignore[arg-type]

        return await run_async(self.ended(None, tell if on_progress else None))


class AsyncPoCClient:
    """`PoCClient` for an event loop, with the same methods, answers and errors.

    A task that is cancelled while it waits only ends its waiting: what was sent goes on.
    """

    def __init__(self, settings: Settings, timeout: float = 30.0) -> None:
        self._timeout = timeout
        self._line, self._watch = Line(settings), Watch(settings, timeout)

    def within(self, seconds: float) -> Self:
        """As `PoCClient.within`."""
        other = copy.copy(self)
        other._timeout = seconds  # noqa: SLF001
        return other

    async def init(
        self, config: Config, round_id: str | None = None, replace: bool = False
    ) -> RoundStatus:
        """As `PoCClient.init`."""
        return await self._answer(asking.init(config, round_id, replace))

    async def generate(
        self,
        config: Config | None = None,
        round_id: str | None = None,
        replace: bool = False,
        until_valid: int | None = None,
        seconds: float | None = None,
    ) -> AsyncTicket[RoundStatus]:
        """As `PoCClient.generate`."""
        return await self._send(asking.generate(config, round_id, replace, until_valid, seconds))

    async def validate(
        self, config: Config | None = None, round_id: str | None = None, replace: bool = False
    ) -> RoundStatus:
        """As `PoCClient.validate`."""
        return await self._answer(asking.validate(config, round_id, replace))

    async def validate_batch(
        self, batch: Batch, config: Config | None = None, id: str | None = None
    ) -> AsyncTicket[Verdict]:
        """As `PoCClient.validate_batch`."""
        return await self._send(asking.validate_batch(batch, config), id)

    async def stop(self, round_id: str | None = None) -> RoundStatus:
        """As `PoCClient.stop`."""
        return await self._answer(asking.stop(round_id))

    async def cancel(self, validation: str) -> Cancellation:
        """As `PoCClient.cancel`."""
        return await self._answer(asking.cancel(validation))

    async def wait(
        self, round_id: str, until_valid: int | None = None, seconds: float | None = None
    ) -> RoundStatus:
        """As `PoCClient.wait`."""
        return await run_async(self._watch.reached(round_id, until_valid, seconds))

    async def nonces(self, round_id: str, start: int = 0) -> AsyncIterator[ValidNonce]:
        """As `PoCClient.nonces`."""
        while page := await run_async(self._watch.page(round_id, start)):
            for each in page:
                yield each
            start += len(page)

    async def aclose(self) -> None:
        """Give the connections back."""
        self._line.close()
        self._watch.close()

    async def _answer(self, asked: Asked[Answer]) -> Answer:
        ticket = await self._send(asked)
        return await run_async(ticket.ended(self._timeout))

    async def _send(self, asked: Asked[Answer], id: str | None = None) -> AsyncTicket[Answer]:
        with tracing.sending(asked.task):
            ticket = AsyncTicket(self._line, asked, id)
            await run_async(ticket.accepted(self._timeout))
            return ticket
