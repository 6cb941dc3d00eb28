"""The one thread that talks to vLLM.

    submit ─▶ queue ─▶ launch n+1, collect n ─▶ Future
                          │           ▲
              collective_rpc, nonces  │ distances
                          ▼           │
                  PoCWorkerExtension in vLLM's process(es)     also serves requests, if asked to

It queues the next job on the device before it waits for the last one, so the device computes
without a break. vLLM's processes live in a session of their own and end with this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

from shared.errors import EngineDied, EngineError
from worker.children import end_with_us
from worker.engines.base import Job
from worker.engines.vllm.options import cause_of

log = logging.getLogger(__name__)

#: Seconds between two looks at whether vLLM still lives, while an answer is awaited.
HEALTH_S = 1.0
#: Seconds that requests have to end when the engine is closed.
SHUTDOWN_S = 3
#: Looks at whether vLLM still lives after a call that failed.
LOOKS_AFTER_FAILURE = 3
#: Share of the last job's time that the owner waits for another job before it waits for the
#: device, which keeps jobs out. The device is busy for longer, however its times vary.
WAIT_SHARE = 0.5
#: Seconds that the first job is taken to last.
FIRST_JOB_S = 0.1


@dataclass(slots=True)
class _Launched:
    """A job that the device has."""

    handle: int
    future: Future[list[float]]
    #: Whether the device still computes: a CPU has already done it when the launch returns.
    running: bool


class Owner:
    """The one thread that talks to vLLM: it starts it, feeds it jobs, serves it, and ends it."""

    def __init__(
        self, arguments: Any, tile: int, listener: socket.socket | None, served_name: str
    ) -> None:
        self._arguments, self._tile = arguments, tile
        self._listener, self._served_name = listener, served_name
        self.busy_seconds = 0.0
        self._job_seconds = FIRST_JOB_S
        self._handles = count()
        self._llm: Any = None
        self._queue: asyncio.Queue[tuple[Job, Future[list[float]]]] = asyncio.Queue()
        self._outstanding: set[Future[list[float]]] = set()
        # Why no job is taken any more, once there is a reason. Read and set under the lock,
        # so that no job slips into the queue after it was emptied.
        self._over: EngineError | None = None
        self._lock = threading.Lock()
        self._ready: Future[dict[str, Any]] = Future()
        # The kernel ends vLLM's processes when the thread that started them ends: this one.
        self._thread = threading.Thread(target=self._run, name="poc-vllm", daemon=True)

    def start(self) -> dict[str, Any]:
        """Start vLLM and wait until it can compute; what the extension says of it."""
        self._thread.start()
        try:
            return self._ready.result()
        except BaseException:
            self.close()
            raise

    def submit(self, job: Job) -> Future[list[float]]:
        """Queue `job`. Raises the reason why none is taken any more."""
        future: Future[list[float]] = Future()
        with self._lock:
            if self._over:
                raise self._over
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (job, future))
        return future

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
            if self._ready.done():
                with contextlib.suppress(RuntimeError):  # the loop has ended already
                    self._loop.call_soon_threadsafe(self._ending.set)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            # Also what a library ends its thread with, as sys.exit does.
            if not self._ready.done():
                self._ready.set_exception(_cant_start(self._arguments.model, error))

    async def _main(self) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        feed: asyncio.Task[None] | None = None
        server, serving = None, None
        try:
            self._llm = _start_vllm(self._arguments)
            facts = (await self._call("poc_prepare", self._tile))[0]
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
            self._clear()
            if server and serving:
                server.should_exit = True
                await asyncio.gather(serving, return_exceptions=True)
            if self._llm is not None:
                self._llm.shutdown()
                self._llm = None  # at the interpreter's end its finaliser would fail
            if self._listener:
                self._listener.close()

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
                item = await self._next(last)
                launched = await self._launch(*item) if item else None
                if last:
                    await self._collect(last)
                last = launched
        except EngineDied as error:
            self._end(error)

    async def _next(self, last: _Launched | None) -> tuple[Job, Future[list[float]]] | None:
        """The next job; none if there is none before the device may need to be waited for."""
        wait_s = None if last is None else WAIT_SHARE * self._job_seconds * last.running
        try:
            async with asyncio.timeout(wait_s):
                while True:
                    job, future = await self._queue.get()
                    if future.set_running_or_notify_cancel():
                        self._outstanding.add(future)
                        return job, future
        except TimeoutError:
            return None

    async def _launch(self, job: Job, future: Future[list[float]]) -> _Launched | None:
        handle = next(self._handles)
        running = await self._attempt(future, "poc_launch", handle, asdict(job))
        return None if running is None else _Launched(handle, future, running[0])

    async def _collect(self, launched: _Launched) -> None:
        answer = await self._attempt(launched.future, "poc_collect", launched.handle)
        if answer is not None:
            distances, self._job_seconds = answer[0]  # rank 0 has logits in any case
            self.busy_seconds += self._job_seconds
            self._settle(launched.future).set_result(distances)

    async def _attempt(self, future: Future[list[float]], method: str, *args: Any) -> Any:
        """What `method` gives; None if it failed, which ends `future` with an `EngineError`."""
        try:
            return await self._call(method, *args)
        except EngineDied:
            raise
        except Exception as error:  # noqa: BLE001 - raised again by whoever waits
            log.error("vLLM could not compute a job: %s", error)
            problem = EngineError(f"vLLM can't compute the batch: {cause_of(error)}")
            self._settle(future).set_exception(problem)
            return None

    async def _call(self, method: str, *args: Any) -> Any:
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

    def _settle(self, future: Future[list[float]]) -> Future[list[float]]:
        self._outstanding.discard(future)
        return future

    def _clear(self) -> None:
        """End all jobs: those that run fail, those that wait are cancelled, or fail if it died."""
        with self._lock:
            over = self._over = self._over or EngineDied("the engine's thread has ended")
        for future in self._outstanding:
            if isinstance(over, EngineDied):
                future.set_exception(over)
            else:
                future.set_exception(EngineError("the engine was closed while it computed"))
        self._outstanding.clear()
        while not self._queue.empty():
            _, future = self._queue.get_nowait()
            if isinstance(over, EngineDied) and future.set_running_or_notify_cancel():
                future.set_exception(over)
            else:
                future.cancel()


def _start_vllm(arguments: Any) -> Any:
    """Start vLLM and load the model, in processes that end with the calling thread."""
    # This process has threads, and CUDA must not be started before a fork.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # an operator who wants to report may
    from vllm import AsyncLLMEngine

    with end_with_us():
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
