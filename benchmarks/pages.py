"""What open pages cost: a worker's rate with and without them, and what Redis spends on them.

    python benchmarks/pages.py --pages 100 --seconds 10

One node in this process, whose engine takes a fixed time for a batch; the embedded Valkey and a
status API in processes of their own, and the pages in another. Turns without and with pages follow
each other. Prints a table, and JSON last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import bookkeeping
import psutil

from shared.settings import Settings
from shared.store import Store
from worker.children import end, spawn
from worker.engines import Job
from worker.manager import PoCManager
from worker.node.node import Node
from worker.tools import script
from worker.tools.embedded import EmbeddedRedis

EVENTS = "/api/v1/pow/events"
#: Seconds that the engine takes for a batch: about what a GPU takes for 32 nonces of a small model.
BATCH_S = 0.02
#: Seconds that are not measured after each change.
SETTLE_S = 2.0


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", type=script.size, default=100)
    parser.add_argument("--turns", type=script.size, default=3, help="of each kind")
    parser.add_argument("--seconds", type=script.seconds, default=10.0, help="of each turn")
    parser.add_argument("--join", metavar="URL", help="be the process that has the pages open")
    options = parser.parse_args()
    if options.join:
        asyncio.run(look(options.join, options.pages))
        return
    figures = measure(options)
    for name, value in figures.items():
        print(f"{name:40} {value}")
    print(json.dumps(figures))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The figures."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    redis_cpu: dict[bool, list[float]] = {False: [], True: []}
    api_cpu, received = [], []
    with (
        EmbeddedRedis() as server,
        closing(bookkeeping._store(server.url)) as store,
        node(server.url),
        api(server.url) as (url, process),
    ):
        for turn in range(2 * options.turns):
            with_pages = turn % 2 == 1
            with opened(url, options.pages if with_pages else 0) as pages:
                time.sleep(SETTLE_S)
                before, cpu, at = _sample(store), _cpu(process), time.monotonic()
                time.sleep(options.seconds)
                after, seconds = _sample(store), time.monotonic() - at
                rates[with_pages].append((after[0] - before[0]) / seconds)
                redis_cpu[with_pages].append((after[1] - before[1]) / seconds)
                if with_pages:
                    api_cpu.append((_cpu(process) - cpu) / seconds)
            if pages:
                received.append(int(pages.communicate()[0]))
    seconds = SETTLE_S + options.seconds
    cost = statistics.median(redis_cpu[True]) - statistics.median(redis_cpu[False])
    return {
        "pages": options.pages,
        "nonces per second without pages": [round(rate) for rate in rates[False]],
        "nonces per second with pages": [round(rate) for rate in rates[True]],
        "ratio of the medians": round(
            statistics.median(rates[True]) / statistics.median(rates[False]), 4
        ),
        "Redis, share of a core without pages": round(statistics.median(redis_cpu[False]), 4),
        "Redis, share of a core with pages": round(statistics.median(redis_cpu[True]), 4),
        "Redis, share of a core for the pages": round(cost, 4),
        "API, share of a core": round(statistics.median(api_cpu), 3),
        "kB per second and page": round(
            statistics.median(received) / options.pages / seconds / 1000, 2
        ),
    }


class PacedEngine(bookkeeping.FreeEngine):
    """An engine whose batches take a fixed time, one after the other, as a device's do."""

    def __init__(self) -> None:
        super().__init__(valid_share=0.1)
        self._free_at = 0.0

    def submit(self, job: Job) -> PacedPending:
        """Queue it behind what is under way."""
        self._free_at = max(self._free_at, time.monotonic()) + BATCH_S
        return PacedPending(super().submit(job).result(), self._free_at)


class PacedPending(bookkeeping.FreePending):
    """Distances that are there at some time."""

    def __init__(self, distances: list[float], at: float) -> None:
        super().__init__(distances)
        self._at = at

    def result(self) -> list[float]:
        """The distances, when they are there."""
        time.sleep(max(0.0, self._at - time.monotonic()))
        return super().result()


def load(settings: Settings) -> PacedEngine:
    """What POC_ENGINE names."""
    return PacedEngine()


@contextmanager
def node(url: str) -> Iterator[None]:
    """A node in this process that generates."""
    settings = bookkeeping._settings(url, engine=f"{__name__}:load")
    running = Node(settings, on_failure=lambda error: print(error, file=sys.stderr))
    try:
        running.start("pages", bookkeeping._Silence())
        PoCManager(running.engine, running.store).start_generate(bookkeeping._config(32))
        yield
    finally:
        running.stop()


@contextmanager
def api(url: str) -> Iterator[tuple[str, psutil.Process]]:
    """A status API of its own, and its process."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("POC_")}
    env |= {"POC_REDIS_URL": url, "POC_NAMESPACE": "bench", "POC_API_PORT": "0"}
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "api.log"
        process = spawn([sys.executable, "-m", "worker.cli", "api"], env=env, log_path=log)
        try:
            while not (found := re.search(r"listens on (http://\S+)", log.read_text())):
                if process.poll() is not None:
                    raise SystemExit(f"the API ended: {log.read_text()}")
                time.sleep(0.1)
            yield found[1], psutil.Process(process.pid)
        finally:
            end(process)


@contextmanager
def opened(url: str, pages: int) -> Iterator[subprocess.Popen[str] | None]:
    """A process that has so many pages open, and says how many bytes came when it ends."""
    if not pages:
        yield None
        return
    command = [sys.executable, __file__, "--join", url, "--pages", str(pages)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        process.stdout.readline()
        yield process
    finally:
        assert process.stdin
        process.stdin.close()  # the end of its input ends it
        process.stdin = None


async def look(url: str, pages: int) -> None:
    """Have the pages open, and read what comes, until the input ends."""
    host, _, port = url.removeprefix("http://").partition(":")
    received = opened = 0
    all_open = asyncio.Event()

    async def page() -> None:
        nonlocal received, opened
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET {EVENTS} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        await reader.readuntil(b"data: ")
        opened += 1
        if opened == pages:
            all_open.set()
        while chunk := await reader.read(65_536):
            received += len(chunk)

    tasks = [asyncio.create_task(page()) for _ in range(pages)]
    await all_open.wait()
    print("open", flush=True)
    received = 0
    await asyncio.to_thread(sys.stdin.read)
    if ended := [task for task in tasks if task.done()]:
        raise SystemExit(f"{len(ended)} of {pages} pages were not open until the end")
    print(received)
    for task in tasks:
        task.cancel()


def _sample(store: Store) -> tuple[int, float]:
    """Nonces that were counted, and seconds of CPU that Redis has used."""
    info = bookkeeping._info(store)
    return bookkeeping._checked(store), info["used_cpu_user"] + info["used_cpu_sys"]


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    script.run(main)
