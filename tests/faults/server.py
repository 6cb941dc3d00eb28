"""A Valkey whose persistence, clock and disk the harness holds in its hands."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import resource
import threading
import time
from collections import deque
from pathlib import Path

import redis

from worker.tools.embedded import HOST, EmbeddedRedis

#: What a machine that crashes loses with appendfsync everysec: what was written for so long.
UNSYNCED_S = 1.0
#: Seconds until the server sees that its clock was set: the library looks once a second.
CLOCK_S = 2.0


def clock_library() -> Path | None:
    """libfaketime, which lets a process see another time; None where it is not installed."""
    found = importlib.util.find_spec("libfaketime")
    if found is None or found.origin is None:
        return None
    there = Path(found.origin).parent / "vendor/libfaketime/src/libfaketime.so.1"
    return there if there.exists() else None


class Server(EmbeddedRedis):
    """`persistence` is always, everysec or none; `replica_of` a port on this machine."""

    def __init__(self, persistence: str, data_dir: Path, replica_of: int | None = None) -> None:
        super().__init__(data_dir=data_dir, aof=persistence != "none")
        self.persistence, self._replica_of = persistence, replica_of
        self._valkey, self._binary = self._binary, Path("/usr/bin/env")
        self._clock = self.data_dir / "clock"
        self.data_dir.mkdir(parents=True)
        #: Seconds that the server's clock is ahead of this machine's.
        self.clock_offset = 0.0
        self.set_clock(0.0)
        self._written: deque[tuple[float, Path, int]] = deque(maxlen=200)
        self._ended = threading.Event()
        if persistence == "everysec":
            threading.Thread(target=self._watch_log, name="log", daemon=True).start()

    def direct(self) -> redis.Redis:
        """A client that goes past every proxy."""
        return redis.Redis(
            host=HOST, port=self.port, decode_responses=True, socket_timeout=10, retry=None
        )

    def crash_machine(self) -> None:
        """Kill the server and take from its log what the disk may not have had yet."""
        until = time.monotonic() - UNSYNCED_S
        self.kill()
        kept = [entry for entry in list(self._written) if entry[0] <= until]
        if kept and (log := self._log()) == kept[-1][1]:
            os.truncate(log, min(kept[-1][2], log.stat().st_size))

    def fill_disk(self) -> None:
        """Let no file of the server grow any more."""
        log = self._log()
        self._limit_files(log.stat().st_size if log else 0)

    def free_disk(self) -> None:
        """Let its files grow again."""
        if self.running:
            self._limit_files(resource.RLIM_INFINITY)

    def set_clock(self, offset: float) -> None:
        """Let the server's clock be `offset` seconds ahead; it sees that after a second."""
        self.clock_offset, self.clock_set_at = offset, time.monotonic()
        self._clock.write_text(f"{offset:+.3f}\n")

    def promote(self) -> None:
        """Make a replica the primary."""
        self._replica_of = None
        with contextlib.closing(self.direct()) as direct:
            direct.replicaof("NO", "ONE")

    def in_step(self) -> bool:
        """Whether a replica has its primary's data."""
        with contextlib.closing(self.direct()) as direct, contextlib.suppress(redis.RedisError):
            return direct.info("replication").get("master_link_status") == "up"
        return False

    def stop(self, timeout: float = 10.0) -> None:
        """End the server."""
        self._ended.set()
        super().stop(timeout)

    def _arguments(self, port: int) -> list[str]:
        # A write that a full disk refuses shall be an error, not a signal that kills.
        words = ["--ignore-signal=XFSZ"]
        if library := clock_library():
            words += [
                f"LD_PRELOAD={library}",
                f"FAKETIME_TIMESTAMP_FILE={self._clock}",
                "FAKETIME_CACHE_DURATION=1",
                "FAKETIME_DONT_FAKE_MONOTONIC=1",
            ]
        words += [str(self._valkey), *super()._arguments(port)]
        if self.persistence != "none":
            words += ["--appendfsync", self.persistence]
        if self._replica_of is not None:
            words += ["--replicaof", HOST, str(self._replica_of), "--repl-diskless-sync-delay", "0"]
        return words

    def _log(self) -> Path | None:
        """The append-only file that is written now."""
        logs = (self.data_dir / "appendonlydir").glob("*.incr.aof")
        return max(logs, key=lambda path: int(path.name.split(".")[-3]), default=None)

    def _limit_files(self, size: int) -> None:
        _, hard = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size, hard))

    def _watch_log(self) -> None:
        while not self._ended.wait(0.05):
            with contextlib.suppress(OSError):
                if log := self._log():
                    self._written.append((time.monotonic(), log, log.stat().st_size))
