"""What a thread is at: the round and the trace that its log lines and its messages tell.

Each command, batch and callback notes it where it begins; the log reads it where a line is written.
Every thread, and every task of an event loop, has its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class About:
    """What a thread is at; empty where that is not known, or none."""

    round_id: str = ""
    #: The step of a trace that is under way, as W3C's header of that name has it.
    traceparent: str = ""

    @property
    def trace_id(self) -> str:
        """The trace that the step is of."""
        return self.traceparent[3:35]


NOTHING = About()

#: Known to this module and to `shared.tracing`.
ABOUT: ContextVar[About] = ContextVar("about", default=NOTHING)

#: What the calling thread is at.
about = ABOUT.get
#: From here on the calling thread is at something else.
note = ABOUT.set


def note_round(round_id: str) -> None:
    """From here on the calling thread knows which round it is at."""
    note(replace(about(), round_id=round_id))


@contextmanager
def at(what: About) -> Iterator[None]:
    """The calling thread is at `what` for as long as the block takes."""
    before = ABOUT.set(what)
    try:
        yield
    finally:
        ABOUT.reset(before)
