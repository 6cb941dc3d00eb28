"""A TCP proxy that can be slow, silent or gone: the network between Redis and everybody else."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

HOST = "127.0.0.1"
CHUNK = 1 << 16
#: Pieces that may be under way in one direction of a connection.
UNDER_WAY = 512


class Proxy:
    """Forwards `port` to `target`, on its own thread; its knobs may be turned from any.

    `target` may change at any time, which is what a fail-over looks like from outside; whoever
    is connected stays so until `cut`.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        #: Seconds that every piece of data takes longer.
        self.delay_s = 0.0
        #: Nothing goes through, and nobody is told: a pulled cable.
        self.stalled = False
        #: New connections are reset.
        self.refusing = False
        #: The same, whatever is healed: somebody works on what is behind it.
        self.shut = False
        #: Bytes to clients until all connections are reset, in the middle of some answer.
        self.cut_after: int | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._serve, HOST, 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def heal(self) -> None:
        """Let everything through again."""
        self.delay_s, self.stalled, self.refusing, self.cut_after = 0.0, False, False, None

    def cut(self) -> None:
        """Reset every connection."""
        self._loop.call_soon_threadsafe(self._cut)

    def close(self) -> None:
        """End the proxy with all its connections."""
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        self._cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _cut(self) -> None:
        self.cut_after = None
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            await self._open()
            if not self.refusing and not self.shut:
                await self._connect(reader, writer)
        except OSError:
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(HOST, self.target)
        self._writers.add(back)
        pumps = [
            asyncio.ensure_future(self._pump(reader, back, to_client=False)),
            asyncio.ensure_future(self._pump(there, writer, to_client=True)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            with contextlib.suppress(OSError):
                await asyncio.gather(*pumps, return_exceptions=True)
            self._writers.discard(back)
            back.transport.abort()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, to_client: bool
    ) -> None:
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(UNDER_WAY)
        arriving = asyncio.ensure_future(self._arrive(under_way, sink, to_client=to_client))
        try:
            while data := await source.read(CHUNK):
                # Each piece takes so long; how much can be under way is another matter.
                await under_way.put((self._loop.time() + self.delay_s, data))
            await under_way.put((0.0, b""))
            await arriving
        finally:
            arriving.cancel()

    async def _arrive(
        self,
        under_way: asyncio.Queue[tuple[float, bytes]],
        sink: asyncio.StreamWriter,
        *,
        to_client: bool,
    ) -> None:
        while True:
            due, data = await under_way.get()
            if not data:
                return
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            await self._open()
            if to_client and self.cut_after is not None:
                self.cut_after -= len(data)
                if self.cut_after < 0:
                    sink.write(data[: len(data) // 2])
                    await asyncio.sleep(0)
                    self._cut()
                    return
            try:
                sink.write(data)
                await sink.drain()
            except OSError:
                return

    async def _open(self) -> None:
        while self.stalled:  # noqa: ASYNC110 - the knob is turned from another thread
            await asyncio.sleep(0.02)
