"""How the vLLM engine's owner feeds a device: with a stand-in for vLLM, so without vLLM itself.

The stand-in computes like a GPU, which the tests with a real vLLM on a CPU can't show: a launch
returns at once, and collecting keeps all other calls out until the job is done.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from shared.errors import EngineDied, EngineError
from support import wait_until
from worker.engines import Job
from worker.engines.vllm import owner as module
from worker.engines.vllm.owner import Owner

SECONDS = 0.2


class FakeVllm:
    """A device that takes `SECONDS` a job, one after the other."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.errored = False
        self.hangs = threading.Event()
        self._free_at = 0.0
        self._done_at: dict[int, float] = {}

    async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[Any]:
        if method == "poc_prepare":
            return [{}]
        ticket, now = args[0], time.monotonic()
        self.calls.append(f"{method.removeprefix('poc_')} {ticket}")
        if method == "poc_launch":
            self._free_at = self._done_at[ticket] = max(now, self._free_at) + SECONDS
            return [True]
        if self.hangs.is_set():
            await asyncio.sleep(3600)
        # As vLLM's process: while it waits for the device it hears of nothing else.
        await asyncio.to_thread(time.sleep, max(0.0, self._done_at[ticket] - now))
        return [([float(ticket)], SECONDS)]

    def shutdown(self) -> None:
        self.calls.append("shutdown")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeVllm:
    fake = FakeVllm()
    monkeypatch.setattr(module, "_start_vllm", lambda _: fake)
    monkeypatch.setattr(module, "HEALTH_S", 0.05)
    return fake


@pytest.fixture
def owner(fake: FakeVllm) -> Iterator[Owner]:
    owner = Owner(SimpleNamespace(model="m"), tile=4, listener=None, served_name="m")
    owner.start()
    yield owner
    owner.close()


def job(nonce: int = 0) -> Job:
    return Job("b", "k", (nonce,), 8)


def test_the_next_job_is_on_the_device_before_the_last_is_waited_for(
    owner: Owner, fake: FakeVllm
) -> None:
    """Given all jobs at once."""
    futures = [owner.submit(job()) for _ in range(3)]
    assert [future.result(timeout=10) for future in futures] == [[0.0], [1.0], [2.0]]
    order = ["launch 0", "launch 1", "collect 0", "launch 2", "collect 1", "collect 2"]
    assert fake.calls == order
    assert owner.busy_seconds == pytest.approx(3 * SECONDS)


def test_the_device_never_waits_for_a_manager_with_two_jobs(owner: Owner, fake: FakeVllm) -> None:
    """Given that each job is submitted a while after the one two before it was answered."""
    waiting = [owner.submit(job()), owner.submit(job())]
    for _ in range(6):
        waiting.pop(0).result(timeout=10)
        time.sleep(0.02)  # it commits
        waiting.append(owner.submit(job()))
    for future in waiting:
        future.result(timeout=10)
    # While one is waited for, which takes vLLM's whole attention, the next lies on the device.
    for k in range(7):
        assert fake.calls.index(f"launch {k + 1}") < fake.calls.index(f"collect {k}")


def test_a_job_that_is_not_launched_can_be_cancelled(owner: Owner, fake: FakeVllm) -> None:
    """It never reaches the device."""
    first, second, third = (owner.submit(job()) for _ in range(3))
    wait_until(lambda: "collect 0" in fake.calls, description="the first to be waited for")
    assert not first.cancel()
    assert not second.cancel()  # launched as well
    assert third.cancel()
    assert second.result(timeout=10) == [1.0]
    assert "launch 2" not in fake.calls


def test_a_vllm_that_dies_leaves_nobody_waiting(owner: Owner, fake: FakeVllm) -> None:
    """Its answers never come; running, waiting and later jobs all fail for good."""
    fake.hangs.set()
    futures = [owner.submit(job()) for _ in range(3)]
    wait_until(lambda: "collect 0" in fake.calls, description="the first to be waited for")
    fake.errored = True
    for future in futures:
        with pytest.raises(EngineDied, match="vLLM has ended"):
            future.result(timeout=10)
    with pytest.raises(EngineDied):
        owner.submit(job())


def test_a_vllm_that_dies_idle_is_noticed(owner: Owner, fake: FakeVllm) -> None:
    """Whoever asks is told, and a job is not queued any more."""
    owner.ensure_alive()
    fake.errored = True
    wait_until(lambda: "shutdown" in fake.calls, description="the owner to notice")
    with pytest.raises(EngineDied):
        owner.ensure_alive()
    with pytest.raises(EngineDied):
        owner.submit(job())


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit])
def test_a_defect_of_the_owner_leaves_nobody_waiting(
    kind: type[BaseException], owner: Owner, fake: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given that what feeds the device ends, then vLLM is ended and no job is taken any more."""

    async def fail(*_: Any) -> Any:
        raise kind("a defect")

    monkeypatch.setattr(owner, "_launch", fail)
    with pytest.raises(EngineDied):
        owner.submit(job()).result(timeout=10)
    wait_until(lambda: "shutdown" in fake.calls, description="vLLM to be told")
    with pytest.raises(EngineDied):
        owner.submit(job())
    with pytest.raises(EngineDied):
        owner.ensure_alive()


class FakeServer:
    """Serves until it is told not to; or ends at once, as one whose application does not start."""

    def __init__(self, ends: threading.Event) -> None:
        self._ends, self.started, self.should_exit = ends, False, False

    async def serve(self, sockets: list[socket.socket]) -> None:
        if self._ends.is_set():
            return
        self.started = True
        while not (self.should_exit or await asyncio.to_thread(self._ends.wait, 0.01)):
            pass


@pytest.fixture
def server_ends(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when the server of requests is to end by itself."""
    ends = threading.Event()

    async def server(*_: Any) -> FakeServer:
        return FakeServer(ends)

    monkeypatch.setattr(module, "_server", server)
    return ends


@pytest.fixture
def serving(fake: FakeVllm, server_ends: threading.Event) -> Iterator[Owner]:
    """An owner that serves requests, not started yet."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        owner = Owner(SimpleNamespace(model="m"), tile=4, listener=listener, served_name="m")
        yield owner
        owner.close()
        assert listener.fileno() == -1, "it was left open"


def test_a_server_that_ends_ends_the_engine(
    serving: Owner, fake: FakeVllm, server_ends: threading.Event
) -> None:
    """A worker that is to serve and does not is started anew."""
    serving.start()
    assert serving.submit(job()).result(timeout=10) == [0.0]
    server_ends.set()
    wait_until(lambda: "shutdown" in fake.calls, description="the owner to notice")
    with pytest.raises(EngineDied, match="server has ended"):
        serving.ensure_alive()


def test_a_server_that_does_not_start(serving: Owner, server_ends: threading.Event) -> None:
    """Neither does the engine."""
    server_ends.set()
    with pytest.raises(EngineError, match="server did not start"):
        serving.start()


def test_close_leaves_nobody_waiting(owner: Owner, fake: FakeVllm) -> None:
    """What runs fails, what waits is cancelled, and vLLM is told to end."""
    fake.hangs.set()
    futures = [owner.submit(job()) for _ in range(3)]
    wait_until(lambda: "collect 0" in fake.calls, description="the first to be waited for")
    owner.close()
    for future in futures[:2]:
        with pytest.raises(EngineError, match="was closed while it computed"):
            future.result(timeout=10)
    assert futures[2].cancelled()
    owner.ensure_alive()  # it was closed, it did not die
    assert fake.calls[-1] == "shutdown"


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit])
def test_what_fails_at_the_start_is_told_and_leaves_no_thread(
    kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the model and says where to read on."""

    def fail(_: Any) -> Any:
        raise kind("Engine core initialization failed")

    monkeypatch.setattr(module, "_start_vllm", fail)
    owner = Owner(SimpleNamespace(model="m"), tile=4, listener=None, served_name="m")
    with pytest.raises(EngineError, match=r"m: vLLM can't start .*initialization failed.*above"):
        owner.start()
    assert not owner._thread.is_alive()
