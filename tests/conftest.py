"""Fixtures for everybody. Keep it small: a fixture of one room lives beside its tests."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import settings

from shared.about import NOTHING, note
from worker.tools.embedded import EmbeddedRedis

# Whoever runs the tests under nohup hands down that SIGHUP is ignored. A handler of our own is not
# handed on to the processes that the tests start.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

# What hypothesis makes up is the same each time, unless a run is asked to look further:
# pytest --hypothesis-profile=thorough
settings.register_profile("usual", derandomize=True, deadline=None)
settings.register_profile("thorough", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile("usual")


def pytest_configure(config: pytest.Config) -> None:
    """Where no GPU is tested, Triton's kernels are interpreted, and a process computes in a thread.

    Both must be known before Triton and torch are imported. Threads of tests that run beside each
    other would burn the time of all by waiting for each other.
    """
    chosen = re.sub(r"not (gpu|vllm)\b", "", config.option.markexpr or "")
    if not re.search(r"\b(gpu|vllm)\b", chosen):
        os.environ["TRITON_INTERPRET"] = "1"
        os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def _at_nothing() -> None:
    """A test that stands in for a worker's loop leaves behind what that was at."""
    note(NOTHING)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedRedis]:
    """One real server for the whole run."""
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """The URL of a real server that holds nothing."""
    redis_server.start()  # a test may have killed it
    with contextlib.closing(redis.Redis.from_url(redis_server.url)) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
def fault(tmp_path: Path) -> Path:
    """What is written into it breaks a fake device that knows it, until the file is gone."""
    return tmp_path / "fault"
