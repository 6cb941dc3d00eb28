"""How the tile is found: with a stand-in for vLLM's process, whose clock is written down."""

from __future__ import annotations

import asyncio
from math import inf
from typing import Any

import pytest

from shared.errors import EngineDied
from worker.engines.vllm.timing import TIMED_FORWARDS, best_of, seconds_a_nonce, time_forwards


class Device:
    """Takes `seconds` for a forward of each tile, or raises what stands in their place."""

    def __init__(self, seconds: dict[int, float | Exception]) -> None:
        self._seconds = seconds
        #: Tiles and forwards of each call.
        self.calls: list[tuple[int, int]] = []

    async def __call__(self, method: str, *args: Any) -> list[float]:
        assert method == "poc_time"
        tile, _, forwards, _ = args
        self.calls.append((tile, forwards))
        found = self._seconds[tile]
        if isinstance(found, Exception):
            raise found
        return [forwards * found, inf]  # another rank's clock does not count


@pytest.mark.parametrize(
    ("second", "forwards"), [(0.5, [3]), (0.25, [3]), (0.125, [3, 3]), (0.0625, [3, 9])]
)
def test_forwards_are_timed_for_as_long_as_was_asked(second: float, forwards: list[int]) -> None:
    """Some first, which show how many more it takes."""
    device = Device({4: second})
    found = asyncio.run(time_forwards(device, 4, 256, at_least_s=0.75))
    assert found == (sum(forwards), sum(forwards) * second)
    assert device.calls == [(4, each) for each in forwards]
    assert forwards[0] == TIMED_FORWARDS


def test_the_largest_tile_goes_first_and_its_first_time_does_not_count() -> None:
    """A device that was idle is faster for a moment, and the tiles rise in what is given."""
    device = Device({2: 1.0, 4: 2.0, 8: 2.0})
    found = asyncio.run(seconds_a_nonce(device, (2, 4, 8), 256))
    assert found == [0.5, 0.5, 0.25]
    assert [tile for tile, _ in device.calls] == [8, 8, 4, 2]


def test_a_tile_that_there_is_no_memory_for(caplog: pytest.LogCaptureFixture) -> None:
    """It is passed over, and said."""
    device = Device({2: 1.0, 4: MemoryError("9 GiB")})
    seconds = asyncio.run(seconds_a_nonce(device, (2, 4), 256))
    assert seconds == [0.5, inf]
    assert best_of((2, 4), seconds) == 2
    assert "a tile of 4 is too large: MemoryError: 9 GiB" in caplog.text


def test_a_vllm_that_died_times_nothing_more() -> None:
    device = Device({2: 1.0, 4: EngineDied("it has ended")})
    with pytest.raises(EngineDied):
        asyncio.run(seconds_a_nonce(device, (2, 4), 256))
    assert len(device.calls) == 1


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ((1.0, 1.0, 1.0), 2),
        ((1.01, 1.0, 1.0), 2),
        ((1.02, 1.0, 1.0), 4),
        ((1.03, 1.02, 1.0), 8),
        ((inf, inf, 1.0), 8),
        ((inf, inf, inf), 2),  # the smallest is left to try
    ],
)
def test_the_best_is_the_smallest_within_one_percent(seconds: tuple[float, ...], best: int) -> None:
    assert best_of((2, 4, 8), seconds) == best
