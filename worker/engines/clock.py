"""How fast a device does one thing over and over."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

#: Launches that a GPU has in its queue: it never waits, and few are left at the end.
_AHEAD = 3


def keep_busy(
    launch: Callable[[], object], seconds: float, device: torch.device
) -> tuple[int, float]:
    """Launch again and again for `seconds`; how often, and the seconds until all was done.

    One launch before does not count: what is tuned or allocated at the first call is not the pace.
    """
    launch()
    _wait(device)
    ahead: deque[Any] = deque()
    began, count = time.perf_counter(), 0
    while not count or time.perf_counter() - began < seconds:
        launch()
        count += 1
        if device.type == "cuda":
            event: Any = torch.cuda.Event  # without types
            ahead.append(event())
            ahead[-1].record()
            if len(ahead) > _AHEAD:
                ahead.popleft().synchronize()
    _wait(device)
    return count, time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
