"""How the vLLM engine's owner feeds a device: with a stand-in for vLLM, so without vLLM itself.

The stand-in computes like a GPU, which the tests with a real vLLM on a CPU can't show: a launch
returns at once, and collecting keeps all other calls out until the job is done.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from shared.errors import EngineDied, EngineError
from support import wait_until
from worker.engines import Job
from worker.engines.vllm import owner as module
from worker.engines.vllm.owner import Owner

SECONDS = 0.2
ARGUMENTS = SimpleNamespace(model="m")


class FakeVllm:
    """A device that takes `SECONDS` a job, or a nonce, one after the other."""

    def __init__(self) -> None:
        self.seconds_a_nonce: float | None = None
        self.calls: list[str] = []
        #: The nonces of each launch.
        self.tiles: list[tuple[int, ...]] = []
        self.refused: int | None = None
        self.without: dict[str, str] = {}
        #: Of each tile that there is to choose from.
        self.rates: dict[int, float] = {}
        self.errored = False
        self.hangs = threading.Event()
        self._free_at = 0.0
        self._done_at: dict[int, float] = {}

    async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[Any]:
        if method == "poc_prepare":
            return [{"tile": args[0], "max_tokens": 64, "max_model_len": 16, "without": {}}]
        if method == "poc_without":
            return [self.without]
        if method == "poc_time":
            tile, _, forwards, _ = args
            return [forwards * tile / self.rates[tile]]
        ticket, now = args[0], time.monotonic()
        self.calls.append(f"{method.removeprefix('poc_')} {ticket}")
        if method == "poc_launch":
            nonces = args[1]["nonces"]
            self.tiles.append(nonces)
            if self.refused in nonces:
                raise ValueError("loose wire")
            self._free_at = self._done_at[ticket] = max(now, self._free_at) + self._takes(nonces)
            return [True]
        if self.hangs.is_set():
            await asyncio.sleep(3600)
        # As vLLM's process: while it waits for the device it hears of nothing else.
        await asyncio.to_thread(time.sleep, max(0.0, self._done_at[ticket] - now))
        nonces = self.tiles[ticket]
        return [([float(nonce) for nonce in nonces], self._takes(nonces))]

    def _takes(self, nonces: tuple[int, ...]) -> float:
        return SECONDS if self.seconds_a_nonce is None else self.seconds_a_nonce * len(nonces)

    def shutdown(self) -> None:
        self.calls.append("shutdown")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeVllm:
    fake = FakeVllm()
    monkeypatch.setattr(module, "_forks", lambda *, serves: None)
    monkeypatch.setattr(module, "_start_vllm", lambda *_: fake)
    monkeypatch.setattr(module, "HEALTH_S", 0.05)
    return fake


@pytest.fixture
def owner(fake: FakeVllm) -> Iterator[Owner]:
    owner = Owner("m")
    owner.start(ARGUMENTS, (1,))
    yield owner
    owner.close()


def job(*nonces: int, seq_len: int = 8) -> Job:
    return Job("b", "k", nonces or (0,), seq_len)


def test_the_next_job_is_on_the_device_before_the_last_is_waited_for(
    owner: Owner, fake: FakeVllm
) -> None:
    """Given all jobs at once."""
    futures = [owner.submit(job(nonce)) for nonce in range(3)]
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


def test_a_small_job_behind_a_large_one_is_answered_when_it_is_done(
    owner: Owner, fake: FakeVllm
) -> None:
    """Given a functional check behind a chunk of thousands: nobody else is waited for as long."""
    fake.seconds_a_nonce = 0.02
    large = owner.submit(job(*range(100)))
    small = owner.submit(job(1, seq_len=7))
    large.result(timeout=10)
    began = time.monotonic()
    assert small.result(timeout=10) == [1.0]
    assert time.monotonic() - began < 0.8  # half of what the large one took is 1.0


def test_a_job_that_is_not_launched_can_be_cancelled(owner: Owner, fake: FakeVllm) -> None:
    """It never reaches the device."""
    first, second, third = (owner.submit(job(nonce)) for nonce in range(3))
    wait_until(lambda: "collect 0" in fake.calls, description="the first to be waited for")
    assert not first.cancel()
    assert not second.cancel()  # launched as well
    assert third.cancel()
    assert second.result(timeout=10) == [1.0]
    assert "launch 2" not in fake.calls


class TestTogether:
    """Jobs of one shape go together until a tile is full."""

    @pytest.fixture
    def owner(self, fake: FakeVllm) -> Iterator[Owner]:
        """With tiles of four."""
        owner = Owner("m")
        owner.start(ARGUMENTS, (4,))
        yield owner
        owner.close()

    def computed(self, owner: Owner, *jobs: Job) -> list[list[float]]:
        """What each gets, given that the device is busy when they come."""
        first = owner.submit(job(99, seq_len=7))
        futures = [owner.submit(each) for each in jobs]
        assert first.result(timeout=10) == [99.0]
        return [future.result(timeout=10) for future in futures]

    def test_each_gets_its_own(self, owner: Owner, fake: FakeVllm) -> None:
        """Whatever their sizes, in the order that they came in, and none is torn apart."""
        given = [(1, 2), (3,), (4, 5), (6, 7), (8,)]
        assert self.computed(owner, *(job(*each) for each in given)) == [list(g) for g in given]
        assert fake.tiles[1:] == [(1, 2, 3), (4, 5, 6, 7), (8,)]

    def test_another_shape_waits(self, owner: Owner, fake: FakeVllm) -> None:
        """A forward has one."""
        jobs = job(1), job(2, seq_len=9), job(3, seq_len=9), replace(job(4), public_key="other")
        assert self.computed(owner, *jobs) == [[1.0], [2.0], [3.0], [4.0]]
        assert fake.tiles[1:] == [(1,), (2, 3), (4,)]

    def test_a_tile_of_long_sequences_has_fewer(self, owner: Owner, fake: FakeVllm) -> None:
        """No more than vLLM has tokens for, 64 here."""
        self.computed(owner, *(job(nonce, seq_len=30) for nonce in range(4)))
        assert fake.tiles[1:] == [(0, 1), (2, 3)]

    def test_a_job_that_is_larger_than_a_tile_goes_alone(
        self, owner: Owner, fake: FakeVllm
    ) -> None:
        """The extension cuts it."""
        self.computed(owner, job(*range(9)), job(10))
        assert fake.tiles[1:] == [tuple(range(9)), (10,)]

    def test_a_job_that_is_to_be_alone(self, owner: Owner, fake: FakeVllm) -> None:
        """In its tile, and on the device: nothing is launched behind it, and it behind nothing."""
        lonely = [replace(job(nonce), alone=True) for nonce in (2, 3)]
        self.computed(owner, job(1), *lonely, job(4), job(5))
        assert fake.tiles[1:] == [(1,), (2,), (3,), (4, 5)]
        for launch in (2, 3):
            order = [f"collect {launch - 1}", f"launch {launch}", f"collect {launch}"]
            places = [fake.calls.index(each) for each in order]
            assert places == sorted(places)
            assert fake.calls.index(f"launch {launch + 1}") > places[-1]

    def test_an_idle_device_waits_for_no_more(self, owner: Owner, fake: FakeVllm) -> None:
        """One job that comes alone is computed at once."""
        assert owner.submit(job(1)).result(timeout=10) == [1.0]
        assert fake.tiles == [(1,)]

    def test_one_that_is_cancelled_leaves_the_others(self, owner: Owner, fake: FakeVllm) -> None:
        """It never reaches the device."""
        busy = [owner.submit(job(90 + k, seq_len=6 + k)) for k in range(2)]
        first, second, third = (owner.submit(job(nonce)) for nonce in range(3))
        wait_until(lambda: "collect 0" in fake.calls, description="the first to be waited for")
        assert second.cancel()
        assert [each.result(timeout=10) for each in (*busy, first, third)][2:] == [[0.0], [2.0]]
        assert fake.tiles[2:] == [(0, 2)]

    def test_none_fails_for_another(
        self, owner: Owner, fake: FakeVllm, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What failed together is computed one by one."""
        fake.refused = 2
        futures = [owner.submit(job(99, seq_len=7)), *(owner.submit(job(n)) for n in range(1, 4))]
        with pytest.raises(EngineError, match=r"can't compute the batch: .*loose wire"):
            futures[2].result(timeout=10)
        assert [futures[n].result(timeout=10) for n in (1, 3)] == [[1.0], [3.0]]
        assert "3 jobs at once, so one by one: loose wire" in caplog.text


def test_a_job_that_fails_may_tell_of_a_scheme_that_can_not_be_computed(
    owner: Owner, fake: FakeVllm
) -> None:
    """It is known by the time that the job has ended."""
    assert owner.without == {}
    fake.refused, fake.without = 0, {"artifact": "no layers"}
    with pytest.raises(EngineError, match="loose wire"):
        owner.submit(job(0)).result(timeout=10)
    assert owner.without == {"artifact": "no layers"}


@pytest.mark.parametrize(
    ("rates", "best"),
    [([100, 90, 80], 2), ([100, 100.9, 100], 2), ([100, 101.5, 102], 4), ([100, 110, 120], 8)],
)
def test_the_smallest_tile_that_is_about_as_fast_as_any(
    rates: list[float], best: int, fake: FakeVllm
) -> None:
    """Within one percent, measured where it computes; vLLM makes room for it."""
    fake.rates = dict(zip((2, 4, 8), rates, strict=True))
    owner = Owner("m")
    try:
        assert owner.start(ARGUMENTS, (2, 4, 8))["tile"] == best
    finally:
        owner.close()


def test_a_vllm_that_dies_leaves_nobody_waiting(owner: Owner, fake: FakeVllm) -> None:
    """Its answers never come: jobs that it has fail for good, and later ones.

    Those that wait are cancelled: they did it no harm, and it is not to be held against them.
    """
    fake.hangs.set()
    futures = [owner.submit(job()) for _ in range(3)]
    wait_until(lambda: "collect 0" in fake.calls, description="the first to be waited for")
    fake.errored = True
    for future in futures[:2]:
        with pytest.raises(EngineDied, match="vLLM has ended"):
            future.result(timeout=10)
    with pytest.raises(CancelledError):
        futures[2].result(timeout=10)
    with pytest.raises(EngineDied):
        owner.submit(job())


@pytest.mark.parametrize(
    ("ends", "reason"),
    [
        (lambda owner, _: owner.close(), "the engine is closed"),
        (lambda _, fake: setattr(fake, "errored", True), "vLLM has ended"),
    ],
    ids=["closed", "died"],
)
def test_what_runs_in_its_loop_learns_why_it_ended(
    ends: Callable[[Owner, FakeVllm], None], reason: str, owner: Owner, fake: FakeVllm
) -> None:
    """Whoever waits for it is told as whoever comes later."""
    began = threading.Event()

    async def long() -> None:
        began.set()
        await asyncio.sleep(3600)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: owner.run(long()))
        assert began.wait(timeout=10)
        ends(owner, fake)
        with pytest.raises(EngineError, match=reason):
            waiting.result(timeout=10)
    with pytest.raises(EngineError, match=reason):
        owner.run(long())


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


def test_what_ends_the_owners_thread_is_logged(
    owner: Owner, fake: FakeVllm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Given a defect of what looks after vLLM, nobody else would say what it was."""
    monkeypatch.setattr(FakeVllm, "errored", property(lambda _: 1 / 0), raising=False)
    wait_until(lambda: not owner._thread.is_alive(), description="the thread to end")
    with pytest.raises(EngineDied, match="thread has ended"):
        owner.submit(job())
    (record,) = (each for each in caplog.records if each.exc_info)
    assert record.exc_info
    assert isinstance(record.exc_info[1], ZeroDivisionError)


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
def serving(fake: FakeVllm, server_ends: threading.Event) -> Iterator[Callable[[], Owner]]:
    """Starts an owner that serves requests."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        owner = Owner("m")

        def start() -> Owner:
            owner.start(ARGUMENTS, (1,), listener)
            return owner

        yield start
        owner.close()
        assert listener.fileno() == -1, "it was left open"


def test_a_server_that_ends_ends_the_engine(
    serving: Callable[[], Owner], fake: FakeVllm, server_ends: threading.Event
) -> None:
    """A worker that is to serve and does not is started anew."""
    owner = serving()
    assert owner.submit(job()).result(timeout=10) == [0.0]
    server_ends.set()
    wait_until(lambda: "shutdown" in fake.calls, description="the owner to notice")
    with pytest.raises(EngineDied, match="server has ended"):
        owner.ensure_alive()


def test_a_server_that_does_not_start(
    serving: Callable[[], Owner], server_ends: threading.Event
) -> None:
    """Neither does the engine."""
    server_ends.set()
    with pytest.raises(EngineError, match="server did not start"):
        serving()


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

    def fail(*_: Any) -> Any:
        raise kind("Engine core initialization failed")

    monkeypatch.setattr(module, "_forks", lambda *, serves: None)
    monkeypatch.setattr(module, "_start_vllm", fail)
    owner = Owner("m")
    with pytest.raises(EngineError, match=r"m: vLLM can't start .*initialization failed.*above"):
        owner.start(ARGUMENTS, (1,))
    assert not owner._thread.is_alive()


def test_an_owner_that_is_never_started_ends(fake: FakeVllm) -> None:
    """What was found wrong with the model comes before vLLM."""
    owner = Owner("m")
    owner.close()
    assert not owner._thread.is_alive()
    assert not fake.calls


@pytest.mark.parametrize(
    ("serves", "said", "found"),
    [(False, None, "skip"), (True, None, None), (False, "full", "full")],
    ids=["rounds only", "requests", "the operator's"],
)
def test_kernels_for_requests_are_compiled_for_requests_only(
    serves: bool, said: str | None, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of DeepGEMM take minutes."""
    name = "VLLM_DEEP_GEMM_WARMUP"
    monkeypatch.setattr(module, "forks_of", lambda _: None)
    monkeypatch.setattr(module.os, "environ", {} if said is None else {name: said})
    module._forks(serves=serves)
    assert module.os.environ.get(name) == found
