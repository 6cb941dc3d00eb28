"""A request has its answer in time, however much it waits for in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextvars import ContextVar
from typing import TypeVar

from shared.errors import NoAnswer

T = TypeVar("T")

#: Seconds until whoever did not ask to wait has an answer.
ANSWER_S = 1.6

#: When the request that this task handles must have its answer, by the loop's clock.
_answer_by: ContextVar[float] = ContextVar("answer_by")


class TooLate(NoAnswer):
    """A step took so long that it was not waited for; what came of it is not known."""


def begin() -> None:
    """From now on the time of this task's request runs."""
    _answer_by.set(asyncio.get_running_loop().time() + ANSWER_S)


async def soon(answer: Awaitable[T]) -> T:
    """What is waited for as long as the request may; raises `TooLate` after that."""
    try:
        async with asyncio.timeout_at(_answer_by.get()):
            return await answer
    except TimeoutError:
        raise TooLate("nothing came in time") from None
