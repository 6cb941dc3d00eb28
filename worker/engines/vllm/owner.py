"""The one thread that talks to vLLM.

    submit ─▶ queue ─▶ launch n+1, collect n ─▶ Future
                          │           ▲
              collective_rpc, nonces  │ proofs
                          ▼           │
                  PoCWorkerExtension in vLLM's process(es)     also serves requests, if asked to

It queues the next jobs on the device before it waits for the last ones, so the device computes
without a break. Jobs of one shape go together until a tile is full. vLLM's processes live in a
session of their own and end with this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import Any, TypeVar

from shared.errors import EngineDied, EngineError
from shared.schemes import DEFAULT, Proof
from worker.children import Forks, end_with_us, forks_of
from worker.engines.base import tile_of
from worker.engines.vllm.backlog import Backlog, Submitted
from worker.engines.vllm.memory import USUAL_LEN, tokens_of
from worker.engines.vllm.options import FORKED, cause_of
from worker.engines.vllm.timing import best_of, seconds_a_nonce
from worker.job import Job

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds between two looks at whether vLLM still lives, while an answer is awaited.
HEALTH_S = 1.0
#: Seconds that requests have to end when the engine is closed.
SHUTDOWN_S = 3
#: Looks at whether vLLM still lives after a call that failed.
LOOKS_AFTER_FAILURE = 3
#: Share of a job's time that the owner waits for another one before it waits for the device, which
#: keeps jobs out. The device is busy for longer, however its times vary.
WAIT_SHARE = 0.5
#: Seconds that the first job is taken to last.
FIRST_JOB_S = 0.1


@dataclass(frozen=True, slots=True)
class _Launched:
    """Jobs that the device has, as one."""

    handle: int
    parts: Sequence[Submitted]
    #: That the device computes: those of whole tiles.
    positions: int
    #: Whether the device still computes: a CPU has already done it when the launch returns.
    running: bool


class Owner:
    """The one thread that talks to vLLM: it starts it, feeds it jobs, serves it, and ends it."""

    def __init__(self, served_name: str, scheme: str = DEFAULT, *, serves: bool = False) -> None:
        """Begin to import vLLM, in a process that its own will be forks of.

        `scheme` is the one that its forward is made ready for; with `serves` it takes requests.
        """
        self._served_name, self._scheme, self._serves = served_name, scheme, serves
        #: What it is started with; cancelled if it never is.
        self._given: Future[tuple[Any, Sequence[int], socket.socket | None, int | None]] = Future()
        self._loop: Any = None
        self.busy_seconds = 0.0
        #: Schemes that can't be computed, and why. The first job of one may add it.
        self.without: dict[str, str] = {}
        #: Seconds and positions of the last jobs that the device was through with.
        self._pace = FIRST_JOB_S, 1
        self._handles = count()
        self._llm: Any = None
        self._queue: asyncio.Queue[Submitted] = asyncio.Queue()
        #: Taken off the queue, and not launched yet.
        self._backlog = Backlog(self._tile_of)
        self._outstanding: set[Future[list[Proof | None]]] = set()
        # The sequences and the positions of a tile, once vLLM has said so.
        self._tile = 0, 0
        # Why no job is taken any more, once there is a reason. Read and set under the lock,
        # so that no job slips into the queue after it was emptied.
        self._over: EngineError | None = None
        self._lock = threading.Lock()
        self._ready: Future[dict[str, Any]] = Future()
        # The kernel ends vLLM's processes when the thread that started them ends: this one.
        self._thread = threading.Thread(target=self._run, name="poc-vllm", daemon=True)
        self._thread.start()

    def start(
        self,
        arguments: Any,
        tiles: Sequence[int],
        listener: socket.socket | None = None,
        tokens: int | None = None,
    ) -> dict[str, Any]:
        """Start vLLM and wait until it can compute; what the extension says of it.

        `tiles` are those to choose from, in rising order, and `tokens` the positions of one, unless
        these follow from it; `listener` is where requests come in.
        """
        with self._lock:
            if self._over:
                raise self._over
            self._given.set_result((arguments, tiles, listener, tokens))
        try:
            return self._ready.result()
        except BaseException:
            self.close()
            raise

    def submit(self, job: Job) -> Future[list[Proof | None]]:
        """Queue `job`. Raises the reason why none is taken any more."""
        future: Future[list[Proof | None]] = Future()
        with self._lock:
            if self._over:
                raise self._over
            self._loop.call_soon_threadsafe(self._queue.put_nowait, Submitted(job, future))
        return future

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What `coroutine` gives in the thread's loop. Raises the reason why it runs no more."""
        with self._lock:
            if self._over:
                coroutine.close()
                raise self._over
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except CancelledError:  # the loop ended around it
            raise self._over or _dead() from None

    def ensure_alive(self) -> None:
        """Raise `EngineDied` once vLLM has ended."""
        if isinstance(over := self._over, EngineDied):
            raise over

    def close(self) -> None:
        """Take no more jobs, end vLLM, and wait for that."""
        self._end(EngineError("the engine is closed; load another to compute"))
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _end(self, reason: EngineError) -> None:
        """Take no more jobs, for the first reason given; the thread then clears up."""
        with self._lock:
            if self._over is None:
                self._over = reason
                if isinstance(reason, EngineDied):
                    log.critical("%s", reason)
            self._given.cancel()
            if self._loop and self._ready.done():
                with contextlib.suppress(RuntimeError):  # it has ended already
                    self._loop.call_soon_threadsafe(self._ending.set)

    def _run(self) -> None:
        try:
            log.info("importing vLLM")
            self._forks = _forks(serves=self._serves)
            try:
                self._arguments, self._tiles, self._listener, self._tokens = self._given.result()
            except CancelledError:
                return
            asyncio.run(self._main())
        except BaseException as error:
            # Also what a library ends its thread with, as sys.exit does.
            if self._ready.done():
                log.critical("the thread of vLLM has ended", exc_info=error)
            else:
                self._ready.set_exception(_cant_start(self._served_name, error))

    async def _main(self) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        feed: asyncio.Task[None] | None = None
        server, serving = None, None
        try:
            log.info(
                "starting vLLM: weights are loaded, the forward is compiled, memory is measured"
            )
            began = time.monotonic()
            self._llm = _start_vllm(self._arguments, self._forks)
            log.info("vLLM has started after %.0f s", time.monotonic() - began)
            facts = await self._prepare()
            if self._listener:
                server = await _server(self._llm, self._served_name)
                serving = asyncio.create_task(server.serve(sockets=[self._listener]), name="server")
                while not server.started:
                    if serving.done():
                        raise serving.exception() or EngineError("vLLM's server did not start")
                    await asyncio.sleep(0.01)
                address = self._listener.getsockname()[:2]
                log.info("serving %s on http://%s:%d/v1", self._served_name, *address)
            feed = asyncio.create_task(self._feed(), name="feed")
            self._ready.set_result(facts)
            await self._watch(feed, serving)
        finally:
            if feed:
                feed.cancel()
                await asyncio.gather(feed, return_exceptions=True)
            await self._clear()
            if server and serving:
                server.should_exit = True
                await asyncio.gather(serving, return_exceptions=True)
            if self._llm is not None:
                self._llm.shutdown()
                self._llm = None  # at the interpreter's end its finaliser would fail
            if self._listener:
                self._listener.close()

    async def _prepare(self) -> dict[str, Any]:
        """Let vLLM's processes make room for the best of the tiles; what they say of themselves."""
        *smaller, largest = self._tiles
        facts = await self._prepare_for(largest)
        if smaller:
            log.info("timing forwards of %s sequences", ", ".join(map(str, self._tiles)))
            seq_len = min(USUAL_LEN, facts["max_model_len"])
            seconds = await seconds_a_nonce(self.call, self._tiles, seq_len, self._scheme)
            tile = best_of(self._tiles, seconds)
            rates = ", ".join(
                f"{tile}: {1 / each:.0f}" for tile, each in zip(self._tiles, seconds, strict=True)
            )
            log.info("tile %d of %d positions (forwards alone: %s nonces/s)", tile, seq_len, rates)
            facts = await self._prepare_for(tile)
        self._tile, self.without = (facts["tile"], facts["max_tokens"]), facts["without"]
        return facts

    async def _prepare_for(self, tile: int) -> dict[str, Any]:
        facts: dict[str, Any]
        facts, *_ = await self.call(
            "poc_prepare", tile, self._tokens or tokens_of(tile), True, self._scheme
        )
        return facts

    async def _watch(self, *tasks: asyncio.Task[None] | None) -> None:
        """Wait for the end: ours, or that of vLLM, or that of a task, which is a defect."""
        while not self._ending.is_set() and self._over is None:
            if self._llm.errored:
                self._end(_dead())
            for task in tasks:
                if task and task.done():
                    self._end(EngineDied(f"the engine's {task.get_name()} has ended: {task!r}"))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEALTH_S):
                    await self._ending.wait()

    async def _feed(self) -> None:
        """Keep the device at work: the next job is on it before the last is waited for."""
        last: _Launched | None = None
        try:
            while True:
                parts = await self._next(last)
                launched = await self._launch(parts) if parts else None
                if last:
                    await self._collect(last)
                last = launched
        except EngineDied as error:
            self._end(error)

    async def _next(self, last: _Launched | None) -> Sequence[Submitted]:
        """The next jobs, which fill one tile if there are enough of them.

        Empty if there are none before the device may need to be waited for.
        """
        if last and last.parts[0].job.alone:
            return []  # it has the device for itself
        running = last is not None and last.running
        wait_s = None if last is None else WAIT_SHARE * self._seconds_of(last) * running
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while not self._backlog.is_full:
                    if self._backlog and not running and self._queue.empty():
                        break  # an idle device waits for nobody
                    self._backlog.add(await self._queue.get())
        if last and self._backlog.is_alone:
            return []
        return [each for each in self._backlog.take() if self._begin(each.future)]

    def _begin(self, future: Future[list[Proof | None]]) -> bool:
        """Whether it was not cancelled; from now on it can't be."""
        if future in self._outstanding:  # it failed together with others
            return True
        if not future.set_running_or_notify_cancel():
            return False
        self._outstanding.add(future)
        return True

    def _tile_of(self, job: Job) -> int:
        return tile_of(*self._tile, job.seq_len)

    def _positions_of(self, job: Job) -> int:
        tile = self._tile_of(job)
        return -(-len(job.nonces) // tile) * tile * job.seq_len

    def _seconds_of(self, launched: _Launched) -> float:
        """What it takes, by the last jobs' pace; as long as these if it is larger."""
        seconds, positions = self._pace
        return seconds * min(1.0, launched.positions / max(1, positions))

    async def _launch(self, parts: Sequence[Submitted]) -> _Launched | None:
        handle = next(self._handles)
        nonces = tuple(nonce for each in parts for nonce in each.job.nonces)
        job = replace(parts[0].job, nonces=nonces)
        running = await self._attempt(parts, "poc_launch", handle, asdict(job))
        if running is None:
            return None
        return _Launched(handle, parts, self._positions_of(job), running[0])

    async def _collect(self, launched: _Launched) -> None:
        answer = await self._attempt(launched.parts, "poc_collect", launched.handle)
        if answer is None:
            return
        proofs, seconds = answer[0]  # rank 0 has logits in any case
        self.busy_seconds += seconds
        self._pace = seconds, launched.positions
        start = 0
        for each in launched.parts:
            stop = start + len(each.job.nonces)
            self._settle(each.future).set_result(proofs[start:stop])
            start = stop

    async def _attempt(self, parts: Sequence[Submitted], method: str, *args: Any) -> Any:
        """What `method` gives; None if it failed.

        That ends the future of a single job with an `EngineError`. Several are tried again one by
        one, so that none fails for another.
        """
        try:
            return await self.call(method, *args)
        except EngineDied:
            raise
        except Exception as error:  # noqa: BLE001 - raised again by whoever waits
            log.error("vLLM could not compute %s: %s", _named(parts), error)
            if len(parts) > 1:
                self._backlog.put_back(parts)
                return None
            self.without, *_ = await self.call("poc_without")
            problem = EngineError(f"vLLM can't compute the batch: {cause_of(error)}")
            self._settle(parts[0].future).set_exception(problem)
            return None

    async def call(self, method: str, *args: Any) -> Any:
        """Call a method of the extension on all ranks; a list of what they give.

        Raises `EngineDied` if vLLM has ended, which would leave the call without an answer.
        """
        call = asyncio.ensure_future(self._llm.collective_rpc(method, args=args))
        try:
            while not (await asyncio.wait({call}, timeout=HEALTH_S))[0]:
                if self._llm.errored:
                    raise _dead()
            return call.result()
        except Exception:
            # While vLLM falls apart it answers with errors, before it is known to be dead.
            for _ in range(LOOKS_AFTER_FAILURE):
                if self._llm.errored:
                    raise _dead() from None
                await asyncio.sleep(HEALTH_S)
            raise
        finally:
            call.cancel()

    def _settle(self, future: Future[list[Proof | None]]) -> Future[list[Proof | None]]:
        self._outstanding.discard(future)
        return future

    async def _clear(self) -> None:
        """End all jobs: those that run fail, those that wait are cancelled: they are not to blame.

        In this order, so that who waits for one of them does not submit another meanwhile.
        """
        with self._lock:
            over = self._over = self._over or EngineDied("the engine's thread has ended")
        await asyncio.sleep(0)  # what was submitted until now comes into the queue
        while not self._queue.empty():
            self._backlog.add(self._queue.get_nowait())
        for each in self._backlog.take_all():
            each.future.cancel()
        closed = EngineError("the engine was closed while it computed")
        for future in self._outstanding:
            future.set_exception(over if isinstance(over, EngineDied) else closed)
        self._outstanding.clear()


def _named(parts: Sequence[Submitted]) -> str:
    return "a job" if len(parts) == 1 else f"{len(parts)} jobs at once, so one by one"


def _forks(*, serves: bool) -> Forks:
    """What vLLM takes its process from: it ends with the calling thread."""
    # For the ranks of a group: their process has threads, and may have started CUDA.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # an operator who wants to report may
    if not serves:
        # For minutes it would compile kernels for all numbers of tokens that requests may have.
        os.environ.setdefault("VLLM_DEEP_GEMM_WARMUP", "skip")
    return forks_of(FORKED)


def _start_vllm(arguments: Any, forks: Forks) -> Any:
    """Start vLLM and load the model, in processes that end with the calling thread."""
    from vllm import AsyncLLMEngine

    from worker.engines.vllm.internals import processes_from

    # A server that was killed meanwhile is started anew.
    with end_with_us(), processes_from(forks):
        return AsyncLLMEngine.from_engine_args(arguments)


async def _server(llm: Any, name: str) -> Any:
    """A server of vLLM's OpenAI-compatible API; `serve(sockets=[...])` runs it."""
    import uvicorn

    from worker.engines.vllm.internals import openai_app

    # What vLLM imports for it (model_hosting_container_standards) lets the whole process log errors
    # alone.
    loggers: list[logging.Logger | logging.Handler] = [logging.root, *logging.root.handlers]
    levels = [each.level for each in loggers]
    app = await openai_app(llm, llm.model_config.model, name)
    for each, level in zip(loggers, levels, strict=True):
        each.setLevel(level)
    return uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=SHUTDOWN_S)
    )


def _cant_start(model: str, error: BaseException) -> EngineError:
    if isinstance(error, EngineError):
        return error
    # What a process of vLLM fails with is in its own log only.
    return EngineError(
        f"{model}: vLLM can't start ({cause_of(error)}); what it logged above says more"
    )


def _dead() -> EngineDied:
    return EngineDied("vLLM has ended, what it logged above says why; start the worker again")
