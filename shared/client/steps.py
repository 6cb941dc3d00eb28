"""Logic that is written once, for callers that have a thread and for those on an event loop.

It is a generator. Each of its steps asks Redis, which is quick, and yields the seconds to wait
before the next one. Waiting is the caller's: a thread sleeps, an event loop does other things.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")

#: Yields pauses in seconds, and returns what came of it.
Steps = Generator[float, None, T]


def run(steps: Steps[T]) -> T:
    """What comes of `steps`; blocks this thread."""
    while True:
        pause, ended = _step(steps)
        if ended:
            return ended[0]
        time.sleep(pause)


async def run_async(steps: Steps[T]) -> T:
    """The same beside an event loop. A cancellation ends it before the next step."""
    while True:
        # A step may hang as long as Redis does, so it has a thread; a pause needs none.
        pause, ended = await asyncio.to_thread(_step, steps)
        if ended:
            return ended[0]
        await asyncio.sleep(pause)


def _step(steps: Steps[T]) -> tuple[float, tuple[T] | None]:
    """The next pause; or what came of it, in a tuple, since that may be None."""
    try:
        return next(steps), None
    except StopIteration as end:  # which no future can carry
        return 0.0, (end.value,)
