"""How often an address may ask a process that answers HTTP."""

from __future__ import annotations

import time
from typing import Any

import pytest

from shared.serving import Rate


def by(address: str) -> dict[str, Any]:
    """The scope of a request."""
    return {"client": (address, 40_000)}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Its first item is the time of the clock that nobody sets."""
    clock = [1000.0]
    monkeypatch.setattr("shared.serving.monotonic", lambda: clock[0])
    return clock


def test_each_address_may_ask_so_often_in_each_second(clock: list[float]) -> None:
    rate = Rate(2)
    for _ in range(3):
        assert [rate.allows(by("10.0.0.1")) for _ in range(4)] == [True, True, False, False]
        assert rate.allows(by("10.0.0.2"))
        clock[0] += 1


def test_a_clock_that_is_set_back_shuts_nobody_out(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A controller asks all the time, and would be refused until the clock is where it was."""
    began = time.time()
    rate = Rate(2)
    assert rate.allows(by("10.0.0.1"))
    monkeypatch.setattr(time, "time", lambda: began - 3600)
    for _ in range(4):
        clock[0] += 1
        assert rate.allows(by("10.0.0.1"))
