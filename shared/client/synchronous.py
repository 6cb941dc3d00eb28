"""The client for callers that have a thread."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Self

from shared import tracing
from shared.client import asking
from shared.client.asking import Answer, Asked, Batch, Config
from shared.client.steps import run
from shared.client.tickets import Followed, Line, Progress
from shared.client.watching import ValidNonce, Watch
from shared.schemes import Verdict
from shared.settings import Settings
from shared.status import Cancellation, RoundStatus


class Ticket(Followed[Answer]):
    """A command under way. Its `id` is the Celery task's, as Flower shows it."""

    def wait(self, timeout: float | None = None, on_progress: Progress | None = None) -> Answer:
        """Wait for the end, for at most `timeout` seconds; `on_progress` gets each news of it.

        Raises what ended the work, `NoAnswer` after the timeout (the work goes on), or
        `StoreUnavailable` when Redis is away then. May be called again.
        """
        return run(self.ended(timeout, on_progress))


class PoCClient:
    """Sends commands to the workers of `settings.namespace`, and reads its rounds. Thread-safe.

    Every command returns when a worker has carried it out or taken it on. It raises what it raised
    there (see `shared.errors`), `InvalidRequest` before anything is sent, `NoAnswer` when no worker
    answers within `timeout` seconds, `StoreUnavailable` when Redis is away that long (a Redis that
    hangs may add some seconds) and, at once, `StoreRefused`.
    """

    def __init__(self, settings: Settings, timeout: float = 30.0) -> None:
        self._timeout = timeout
        self._line, self._watch = Line(settings), Watch(settings, timeout)

    def within(self, seconds: float) -> Self:
        """This client, but with so many seconds for an answer; closed with this one."""
        other = copy.copy(self)
        other._timeout = seconds  # noqa: SLF001
        return other

    def init(
        self, config: Config, round_id: str | None = None, replace: bool = False
    ) -> RoundStatus:
        """Open a round; `replace` ends one that is generating instead of being refused."""
        return self._send(asking.init(config, round_id, replace)).wait(self._timeout)

    def generate(
        self,
        config: Config | None = None,
        round_id: str | None = None,
        replace: bool = False,
        until_valid: int | None = None,
        seconds: float | None = None,
    ) -> Ticket[RoundStatus]:
        """Generate in the current round, or with a `config` in a new one.

        The ticket ends with the round's final status when anybody ends the generation. The workers
        do, when the round has `until_valid` valid nonces or `seconds` after the command.
        """
        return self._send(asking.generate(config, round_id, replace, until_valid, seconds))

    def validate(
        self, config: Config | None = None, round_id: str | None = None, replace: bool = False
    ) -> RoundStatus:
        """End the generation of the current round, or open a round in that state."""
        return self._send(asking.validate(config, round_id, replace)).wait(self._timeout)

    def validate_batch(
        self, batch: Batch, config: Config | None = None, id: str | None = None
    ) -> Ticket[Verdict]:
        """Have the distances of `batch` recomputed and judged, by `config` or the current round's.

        The ticket ends with the verdict. Its `id` may be given: a UUID that no command had.
        """
        return self._send(asking.validate_batch(batch, config), id)

    def stop(self, round_id: str | None = None) -> RoundStatus:
        """Stop the round; one that is named and not there yet is refused when it comes."""
        return self._send(asking.stop(round_id)).wait(self._timeout)

    def cancel(self, validation: str) -> Cancellation:
        """End a validation, named by its ticket's id, before it has a verdict.

        Its ticket and its callback then end with `Cancelled`.
        """
        return self._send(asking.cancel(validation)).wait(self._timeout)

    # What is read needs no worker. It raises `RoundMismatch` for a round that is not kept.

    def wait(
        self, round_id: str, until_valid: int | None = None, seconds: float | None = None
    ) -> RoundStatus:
        """Wait until the round has ended, or has so many valid nonces, or the `seconds` are over.

        This ends nothing. Gives the status then, without nonces.
        """
        return run(self._watch.reached(round_id, until_valid, seconds))

    def nonces(self, round_id: str, start: int = 0) -> Iterator[ValidNonce]:
        """The round's valid nonces from position `start` on, in order of discovery.

        Waits for new ones until the round has ended and all are told.
        """
        while page := run(self._watch.page(round_id, start)):
            yield from page
            start += len(page)

    def close(self) -> None:
        """Give the connections back."""
        self._line.close()
        self._watch.close()

    def _send(self, asked: Asked[Answer], id: str | None = None) -> Ticket[Answer]:
        with tracing.sending(asked.task):
            ticket = Ticket(self._line, asked, id)
            run(ticket.accepted(self._timeout))
            return ticket
