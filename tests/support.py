"""What tests of all kinds lean on."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    predicate: Callable[[], T], timeout: float = 10.0, description: str = "the condition"
) -> T:
    """Poll `predicate` until it is true and return what it gave; fail after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain for {description}")
        time.sleep(0.01)
    return value


def clean_environment(**variables: str) -> dict[str, str]:
    """This process' environment with `variables`, and no other setting of ours."""
    return {k: v for k, v in os.environ.items() if not k.startswith("POC_")} | variables


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Clock:
    """Stands in for the module `time`, and stands still until the test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + 1_000_000
