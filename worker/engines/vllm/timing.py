"""How long the deployed model's forwards take, and which tile is the best for them."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from shared.errors import EngineDied
from shared.schemes import DEFAULT
from worker.engines.checkpoint import first_line

log = logging.getLogger(__name__)

#: Calls a method of the extension; one answer a rank, and the first one's clock counts.
Call = Callable[..., Awaitable[list[Any]]]

#: How long a tile is timed to choose one, and in how many forwards each pace is taken at first.
TIMED_S, TIMED_FORWARDS = 0.3, 3
#: How much slower a smaller tile may be, and is taken all the same.
ABOUT = 0.01


async def time_forwards(
    call: Call, tile: int, seq_len: int, at_least_s: float = TIMED_S, scheme: str = DEFAULT
) -> tuple[int, float]:
    """Forwards of `tile` sequences, and the seconds on the device that they took together."""
    forwards, spent, more = 0, 0.0, TIMED_FORWARDS
    while not forwards or spent < at_least_s:
        spent += (await call("poc_time", tile, seq_len, more, scheme))[0]
        forwards += more
        more = max(1, math.ceil((at_least_s - spent) * forwards / spent)) if spent else forwards
    return forwards, spent


async def seconds_a_nonce(
    call: Call, tiles: Sequence[int], seq_len: int, scheme: str = DEFAULT
) -> list[float]:
    """Of each of `tiles`, in rising order: seconds of a forward for a nonce."""
    seconds = []
    # The largest twice, and first: a GPU that was idle is faster for a second.
    for tile in (*tiles, tiles[-1])[::-1]:
        try:
            forwards, spent = await time_forwards(call, tile, seq_len, scheme=scheme)
            seconds.append(spent / forwards / tile)
        except EngineDied:
            raise
        except Exception as error:  # noqa: BLE001 - no memory, which the next one may have
            log.warning("a tile of %d is too large: %s", tile, first_line(error))
            seconds.append(math.inf)
    return seconds[:0:-1]


def best_of(tiles: Sequence[int], seconds: Sequence[float]) -> int:
    """The first of the tiles, in rising order, that is about as fast as the fastest."""
    enough = min(seconds) * (1 + ABOUT)
    return next(tile for tile, each in zip(tiles, seconds, strict=True) if each <= enough)
