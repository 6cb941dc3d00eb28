"""What counting costs: a worker whose engine costs nothing, on a real Redis server of its own.

    python benchmarks/bookkeeping.py rate --batch-size 32 --seconds 10
    python benchmarks/bookkeeping.py workers --count 1000    # and how long a stop takes
    python benchmarks/bookkeeping.py large --valid 1000000   # a poll and pages of a large round
    python benchmarks/bookkeeping.py long --nonces 100000000 # speed and memory as it grows

`rate` and `long` run a whole node (loop, heartbeat, listener, clerk, sender) in this process, and
the embedded Valkey in another. Prints a table, and JSON last.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import json
import math
import random
import resource
import selectors
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from shared.config import MAX_BATCH_SIZE, PoCConfig
from shared.errors import ConfigError, EngineError, PoCError
from shared.requests import GenerateRequest
from shared.settings import Settings, load_settings
from shared.store import Computed, Store, fresh_id
from worker.engines import EngineInfo, Job
from worker.manager import PoCManager
from worker.node.heartbeat import Heartbeat
from worker.node.loop import LOOK_S
from worker.node.node import Node
from worker.node.pipeline import Pipeline
from worker.tools import script
from worker.tools.embedded import EmbeddedRedis

#: Distances that the engine takes its answers from, one after the other.
TABLE = 100_000
#: Seconds that are not measured: connections are made, scripts are loaded.
WARM_UP_S = 1.0
#: Seconds that a round of many workers may take to begin, and to come to rest.
PATIENCE_S = 60.0
#: Nonces on a page, and in the status of a poll.
PAGE, NEWEST = 1000, 100
#: Times that each poll is timed.
REPEATS = 200


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("rate", help="nonces per second, and what a batch costs")
    command.add_argument("--batch-size", type=script.size, default=32)
    command.add_argument("--seconds", type=script.seconds, default=10.0)
    command.add_argument("--valid-share", type=script.share, default=0.1)
    command.set_defaults(run=rate)
    command = commands.add_parser("workers", help="many workers on one Redis, and a stop")
    command.add_argument("--count", type=script.size, default=1000)
    command.add_argument(
        "--processes", type=script.size, default=2, help="that the workers are spread on"
    )
    command.add_argument("--seconds", type=script.seconds, default=10.0)
    command.add_argument(
        "--batch-seconds", type=script.seconds, default=2.0, help="what a batch takes"
    )
    command.add_argument("--batch-size", type=script.size, default=32)
    command.add_argument("--valid-share", type=script.share, default=0.1)
    command.add_argument("--join", metavar="URL", help="be one of the processes")
    command.set_defaults(run=workers)
    command = commands.add_parser(
        "large", help="a poll and pages of a round with many valid nonces"
    )
    command.add_argument("--valid", type=script.size, default=1_000_000)
    command.set_defaults(run=large)
    command = commands.add_parser("long", help="speed and memory as the round grows")
    command.add_argument("--nonces", type=script.size, default=100_000_000)
    command.add_argument("--batch-size", type=script.size, default=MAX_BATCH_SIZE)
    command.add_argument("--valid-share", type=script.share, default=1e-4)
    command.set_defaults(run=long)
    options = parser.parse_args()
    figures = options.run(options)
    if figures is None:
        return
    for name, value in figures.items():
        print(f"{name:32} {value}")
    print(json.dumps(figures))


# The subcommands.


def rate(options: argparse.Namespace) -> dict[str, Any]:
    """Nonces per second of one worker, and what a batch costs on either side."""
    with _round(options) as (store, wait):
        wait(WARM_UP_S)
        before = _Sample.of(store)
        wait(options.seconds)
        spent = _Sample.of(store).since(before)
        stop_s = _seconds(lambda: store.rounds.stop(fresh_id()))
    batches = spent.checked / options.batch_size
    return {
        "batch size": options.batch_size,
        "valid share": options.valid_share,
        "nonces per second": round(spent.checked / spent.seconds),
        "batches per second": round(batches / spent.seconds),
        "worker CPU, us per batch": round(spent.worker_cpu / batches * 1e6),
        "server CPU, us per batch": round(spent.server_cpu / batches * 1e6),
        "scripts per batch": round(spent.scripts / batches, 3),
        "us per script": round(spent.script_us / spent.scripts, 1),
        "stop, ms": round(stop_s * 1000, 1),
    }


def workers(options: argparse.Namespace) -> dict[str, Any] | None:
    """How many workers share one Redis, and how long a stop takes meanwhile."""
    if options.join:
        _Crowd(options).run()
        return None
    share = options.count // options.processes
    if not share:
        raise ConfigError(f"--count {options.count}: each of --processes needs one at least")
    with EmbeddedRedis() as server, closing(_store(server.url)) as store:
        command = [sys.executable, *sys.argv, "--join", server.url, "--count", str(share)]
        crowds = [
            subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(options.processes)
        ]
        try:
            _until(lambda: len(store.workers.listing()) == share * options.processes)
            store.rounds.generate(fresh_id(), GenerateRequest(config=_config(options.batch_size)))
            time.sleep(2 * options.batch_seconds)
            before, at = _checked(store), time.monotonic()
            polls: list[float] = []
            full_polls: list[float] = []
            # Two are the least that quantiles can be taken of.
            while len(polls) < 2 or time.monotonic() < at + options.seconds:
                polls.append(_seconds(lambda: store.rounds.status(newest=NEWEST)))
                full_polls.append(_seconds(lambda: store.status(NEWEST)))
                time.sleep(0.1)
            checked = _checked(store) - before
            seconds = time.monotonic() - at
            began = time.monotonic()
            stopped = store.rounds.stop(fresh_id())
            stop_s = time.monotonic() - began
            time.sleep(2 * options.batch_seconds)
            late = _checked(store) - stopped.total_checked
            info = _info(store)
        finally:
            for crowd in crowds:
                crowd.communicate()  # the end of its input ends it
    return {
        "workers": share * options.processes,
        "connections": info["connected_clients"],
        "a batch takes, s": options.batch_seconds,
        "batches per second": round(checked / options.batch_size / seconds),
        "of": round(share * options.processes / options.batch_seconds),
        "poll of the round, ms": _quantiles(polls),
        "poll with every worker, ms": _quantiles(full_polls),
        "stop, ms": round(stop_s * 1000, 1),
        "counted after the stop": late,
        "server memory, MB": round(info["used_memory"] / 1e6, 1),
    }


def large(options: argparse.Namespace) -> dict[str, Any]:
    """How long polls take of a round with many valid nonces."""
    size = MAX_BATCH_SIZE
    with EmbeddedRedis() as server, closing(_store(server.url)) as store:
        status = store.rounds.generate(fresh_id(), GenerateRequest(config=_config(size)))
        while (left := options.valid - store.status().total_valid) > 0:
            claim = store.rounds.claim("w", fresh_id())
            assert claim
            valid = [(n, repr(random.random())) for n in claim.nonces[:left]]
            assert store.rounds.commit(claim, Computed(claim.count, valid)) is None
        memory = _info(store)["used_memory"]
        middle = options.valid // 2
        name = status.round_id
        polls = {
            f"status with {NEWEST} newest": lambda: store.status(NEWEST),
            f"first page of {PAGE}": lambda: store.rounds.found(name, 0, PAGE),
            f"page of {PAGE} in the middle": lambda: store.rounds.found(name, middle, PAGE),
            f"last page of {PAGE}": lambda: store.rounds.found(name, options.valid - PAGE, PAGE),
        }
        times = {
            f"{what}, ms": _quantiles([_seconds(poll) for _ in range(REPEATS)])
            for what, poll in polls.items()
        }
        stop_s = _seconds(lambda: store.rounds.stop(fresh_id()))
    return {
        "valid nonces": options.valid,
        "server memory, MB": round(memory / 1e6),
        **times,
        "stop, ms": round(stop_s * 1000, 1),
    }


def long(options: argparse.Namespace) -> dict[str, Any]:
    """Speed and memory at each tenth of a long round."""
    steps = []
    with _round(options) as (store, wait):
        wait(WARM_UP_S)
        before = _Sample.of(store)
        for tenth in range(1, 11):
            while store.status().total_checked < options.nonces * tenth / 10:
                wait(0.1)
            now = _Sample.of(store)
            spent, before = now.since(before), now
            gc.collect()
            steps.append(
                {
                    "nonces": now.checked,
                    "nonces per second": round(spent.checked / spent.seconds),
                    "worker, MB": round(_rss() / 1e6, 1),
                    "server, MB": round(now.server_memory / 1e6, 1),
                }
            )
            _say(", ".join(f"{value:,} {name}" for name, value in steps[-1].items()))
        store.rounds.stop(fresh_id())
    return {"batch size": options.batch_size, "valid share": options.valid_share} | {
        f"{name}, by tenths": [step[name] for step in steps] for name in steps[0]
    }


# What they are made of.


class FreeEngine:
    """An engine that costs nothing: it has all distances already. Its model is the valid share."""

    def __init__(self, valid_share: float) -> None:
        chance = random.Random(0)
        # The k-th is valid when k * share passes an integer, so that any stretch has that share.
        valid = [
            math.floor((k + 1) * valid_share) > math.floor(k * valid_share) for k in range(TABLE)
        ]
        table = [chance.uniform(0.5, 1.0) if v else chance.uniform(1.1, 1.5) for v in valid]
        self._table = table + table[:MAX_BATCH_SIZE]
        self.busy_seconds = 0.0
        self.info = EngineInfo(
            model="none",
            device="none",
            fingerprint="free",
            vocab_size=32_000,
            hidden_size=1,
            max_seq_len=1024,
            profile={"engine": "free", "dtype": "float32"},
            exact=True,
            tile=32,
        )

    def submit(self, job: Job) -> FreePending:
        """Queue nothing: it is there."""
        at = job.nonces[0] % TABLE
        return FreePending(self._table[at : at + len(job.nonces)])

    def ensure_alive(self) -> None:
        """It is."""

    def close(self) -> None:
        """Nothing is held."""


class FreePending:
    """Distances that are there."""

    def __init__(self, distances: list[float]) -> None:
        self._distances = distances

    def result(self) -> list[float]:
        """The distances."""
        return self._distances

    def cancel(self) -> bool:
        """It is never too early."""
        return False


def load(settings: Settings) -> FreeEngine:
    """What POC_ENGINE names."""
    return FreeEngine(float(settings.model or 0.1))


@dataclass(frozen=True, slots=True)
class _Sample:
    """Totals at one moment, or the difference of two."""

    seconds: float
    checked: int
    worker_cpu: float
    server_cpu: float
    server_memory: int
    scripts: int
    script_us: float

    @classmethod
    def of(cls, store: Store) -> _Sample:
        info = _info(store)
        scripts = info["cmdstat_evalsha"]
        return cls(
            time.monotonic(),
            _checked(store),
            time.process_time(),
            info["used_cpu_user"] + info["used_cpu_sys"],
            info["used_memory"],
            scripts["calls"],
            scripts["usec"],
        )

    def since(self, other: _Sample) -> _Sample:
        names = _Sample.__slots__
        return _Sample(*(getattr(self, name) - getattr(other, name) for name in names))


@contextmanager
def _round(options: argparse.Namespace) -> Iterator[tuple[Store, Callable[[float], None]]]:
    """A store to look at a node with that generates, and what waits for some seconds of that."""
    with EmbeddedRedis() as server, closing(_store(server.url)) as store:
        settings = _settings(server.url, engine=f"{__name__}:load", model=repr(options.valid_share))
        failed = threading.Event()
        node = Node(settings, on_failure=lambda _: failed.set())

        def wait(seconds: float) -> None:
            if failed.wait(seconds):
                raise EngineError("the worker failed while it was measured: see above")

        try:
            node.start("bookkeeping", _Silence())
            PoCManager(node.engine, node.store).start_generate(_config(options.batch_size))
            yield store, wait
        finally:
            node.stop()


class _Crowd:
    """Workers that share a thread: each steps when its batch is done, beats, and hears of news."""

    def __init__(self, options: argparse.Namespace) -> None:
        settings = _settings(options.join)
        self._batch_seconds = options.batch_seconds
        self._pipelines = [
            Pipeline(FreeEngine(options.valid_share), Store(settings), f"w-{fresh_id()}")
            for _ in range(options.count)
        ]
        self._heartbeats = [
            Heartbeat(each, settings, threading.Event()) for each in self._pipelines
        ]
        self._heartbeat_s = settings.heartbeat_s
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Work until the input ends."""
        due: list[tuple[float, int, Callable[[], float]]] = []
        for place, pipeline in enumerate(self._pipelines):
            subscription = pipeline.store.subscribe("work")
            subscription.wait(1.0)
            connection: Any = subscription._pubsub and subscription._pubsub.connection
            self._selector.register(
                connection._sock, selectors.EVENT_READ, (pipeline, subscription)
            )
            # Spread out, as workers are that began at any time.
            offset = time.monotonic() + place / len(self._pipelines)
            due.append((offset, len(due), partial(self._step, pipeline)))
            due.append((offset, len(due), partial(self._beat, self._heartbeats[place])))
        self._selector.register(sys.stdin, selectors.EVENT_READ)
        heapq.heapify(due)
        while True:
            for key, _ in self._selector.select(max(0.0, due[0][0] - time.monotonic())):
                if key.data is None:
                    return
                pipeline, subscription = key.data
                subscription.wait(0.001)
                pipeline.cancel_unwanted()
            while due[0][0] <= time.monotonic():
                at, place, call = due[0]
                heapq.heapreplace(due, (max(at, time.monotonic() - 1) + call(), place, call))

    def _step(self, pipeline: Pipeline) -> float:
        """Seconds until its next one."""
        busy = pipeline.step()
        return float(self._batch_seconds if busy else LOOK_S)

    def _beat(self, heartbeat: Heartbeat) -> float:
        heartbeat.beat()
        return self._heartbeat_s


def _say(text: str) -> None:
    print(f"» {text}", file=sys.stderr)


def _settings(url: str, **more: Any) -> Settings:
    return load_settings({}, redis_url=url, namespace="bench", max_valid=10**8, **more)


def _store(url: str) -> Store:
    return Store(_settings(url))


def _config(batch_size: int) -> PoCConfig:
    return PoCConfig(
        block_hash="bookkeeping",
        block_height=0,
        public_key="node",
        r_target=1.05,
        batch_size=batch_size,
    )


def _checked(store: Store) -> int:
    """Nonces that the round has counted."""
    status = store.rounds.status()
    return status.total_checked if status else 0


def _info(store: Store) -> dict[str, Any]:
    """What the server says of itself."""
    info: dict[str, Any] = store._redis.info("everything")
    return info


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _quantiles(seconds: list[float]) -> str:
    cuts = statistics.quantiles(seconds, n=100)
    return f"{statistics.median(seconds) * 1000:.2f} (99% below {cuts[98] * 1000:.2f})"


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise EngineError(f"it did not come to that in {PATIENCE_S:g} s")
        time.sleep(0.1)


def _rss() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class _Silence:
    """No ticket is waited for."""

    def progress(self, task: str, state: dict[str, Any], open_in: str) -> None:
        """Say nothing."""

    def succeeded(self, task: str, result: dict[str, Any]) -> None:
        """Say nothing."""

    def failed(self, task: str, error: PoCError) -> None:
        """Say nothing."""


if __name__ == "__main__":
    script.run(main)
