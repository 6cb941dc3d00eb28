"""The workers that live. `Rounds.heartbeat` writes what is read here."""

from __future__ import annotations

import time

from shared.keys import Keys
from shared.settings import Settings
from shared.status import WorkerStatus
from shared.store.scripts import Client, Scripts, redis_errors


class Workers:
    """The workers of a namespace."""

    def __init__(self, redis: Client, scripts: Scripts, keys: Keys, settings: Settings) -> None:
        self._redis, self._scripts, self._keys, self._settings = redis, scripts, keys, settings

    def listing(self) -> list[WorkerStatus]:
        """Every live worker, by name."""
        with redis_errors():
            names = self._redis.zrange(self._keys("workers"), 0, -1)
            with self._redis.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.hgetall(self._keys("worker", name))
                found = sorted(zip(names, pipe.execute(), strict=True))
        return [WorkerStatus(**fields, name=name) for name, fields in found if fields]

    def leave(self, worker: str) -> None:
        """Show `worker` no more; the last one frees the namespace for another model."""
        keys = {name: self._keys(name) for name in ("workers", "model")}
        self._scripts.call("leave", keys | {"worker": self._keys("worker", worker)}, worker=worker)

    def clock_skew(self) -> float:
        """Seconds that Redis' clock is ahead of this machine's."""
        with redis_errors():
            before = time.time()
            seconds, micros = self._redis.time()
            return float(seconds + micros / 1e6 - (before + time.time()) / 2)
