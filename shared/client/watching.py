"""What a round has found and how far it is: read from the store, without a worker's help."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property, partial
from typing import NamedTuple, TypeVar

from shared.client.steps import Steps
from shared.config import PoCState
from shared.errors import RoundMismatch, StoreRefused, StoreUnavailable
from shared.schemes import Proof
from shared.settings import Settings
from shared.status import RoundStatus
from shared.store import Store

T = TypeVar("T")

#: Seconds between two looks at a round, and the valid nonces that one look gives at most.
LOOK_S, PAGE = 0.25, 1000


class ValidNonce(NamedTuple):
    """A nonce with its proof: a distance, 0 to 2, or what another scheme has."""

    nonce: int
    proof: Proof

    @property
    def distance(self) -> float:
        """The proof, where it is a distance."""
        return float(self.proof)


class Watch:
    """The rounds of a namespace, as its store shows them."""

    def __init__(self, settings: Settings, timeout: float) -> None:
        """`timeout`: seconds that a Redis which is away is waited for."""
        self._settings, self._timeout = settings, timeout

    @cached_property
    def _store(self) -> Store:
        """Its own connection, made when it is first needed."""
        return Store(self._settings)

    def close(self) -> None:
        """Give the connections back."""
        if "_store" in self.__dict__:
            self._store.close()

    def reached(
        self, round_id: str, until_valid: int | None, seconds: float | None
    ) -> Steps[RoundStatus]:
        """Until the round has ended, has so many valid nonces, or the seconds are over."""
        ends_at = None if seconds is None else time.monotonic() + seconds
        while True:
            status = yield from self._status(round_id)
            enough = until_valid is not None and status.total_valid >= until_valid
            left = LOOK_S if ends_at is None else ends_at - time.monotonic()
            if enough or left <= 0 or _has_ended(status):
                return status
            yield min(LOOK_S, left)

    def page(self, round_id: str, start: int) -> Steps[list[ValidNonce]]:
        """The valid nonces from position `start` on, as soon as there are some.

        Empty when the round has ended and all are told.
        """
        while True:
            # The status first: a round that has ended by then has all its nonces in the list.
            status = yield from self._status(round_id)
            look = partial(self._store.rounds.found, round_id, start, PAGE, status.scheme)
            found = yield from self._patiently(look)
            if found[0]:
                return list(map(ValidNonce, *found))
            if _has_ended(status):
                if start < status.total_valid:
                    raise _not_kept(round_id)
                return []
            yield LOOK_S

    def _status(self, round_id: str) -> Steps[RoundStatus]:
        status = yield from self._patiently(lambda: self._store.rounds.status(round_id))
        if status is None:
            raise _not_kept(round_id)
        return status

    def _patiently(self, call: Callable[[], T]) -> Steps[T]:
        """What `call` gives, tried again while Redis is away."""
        gives_up_at: float | None = None
        while True:
            try:
                return call()
            except StoreRefused:
                raise
            except StoreUnavailable:
                now = time.monotonic()
                gives_up_at = gives_up_at or now + self._timeout
                if now >= gives_up_at:
                    raise
            yield LOOK_S


def _has_ended(status: RoundStatus) -> bool:
    return status.state in (PoCState.STOPPED, PoCState.VALIDATING)


def _not_kept(round_id: str) -> RoundMismatch:
    return RoundMismatch(f"no round {round_id} is kept: it is unknown, or ended too long ago")
