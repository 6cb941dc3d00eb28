"""What a thread is at: the round that its log lines tell, with no call of the log naming it.

Each command, batch and callback notes it where it begins; the log reads it where a line is written.
Every thread, and every task of an event loop, has its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class About:
    """What a thread is at; empty where that is not known, or none."""

    round_id: str = ""


NOTHING = About()

_ABOUT: ContextVar[About] = ContextVar("about", default=NOTHING)

#: What the calling thread is at.
about = _ABOUT.get
#: From here on the calling thread is at something else.
note = _ABOUT.set


@contextmanager
def at(what: About) -> Iterator[None]:
    """The calling thread is at `what` for as long as the block takes."""
    before = _ABOUT.set(what)
    try:
        yield
    finally:
        _ABOUT.reset(before)
