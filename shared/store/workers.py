"""The workers that live, which `Rounds.heartbeat` writes, and those that had to end."""

from __future__ import annotations

import time

from shared.settings import Settings
from shared.status import Incident, WorkerStatus
from shared.store.keys import Keys
from shared.store.scripts import Client, Scripts, redis_errors

#: Incidents that are kept, for how many seconds, and how many of them a status shows.
KEEP_INCIDENTS, KEEP_S, SHOWN = 100, 7 * 86_400, 10


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

    def report(self, incident: Incident) -> None:
        """Keep why a worker ended, for whoever looks at the status."""
        key = self._keys("incidents")
        with redis_errors(), self._redis.pipeline(transaction=True) as pipe:
            pipe.lpush(key, incident.model_dump_json())
            pipe.ltrim(key, 0, KEEP_INCIDENTS - 1)
            pipe.expire(key, KEEP_S)
            pipe.execute()

    def incidents(self, newest: int = SHOWN) -> list[Incident]:
        """The `newest` workers that had to end, newest first."""
        with redis_errors():
            kept = self._redis.lrange(self._keys("incidents"), 0, newest - 1)
        return [Incident.model_validate_json(each) for each in kept]

    def clock_skew(self) -> float:
        """Seconds that Redis' clock is ahead of this machine's."""
        with redis_errors():
            before = time.time()
            seconds, micros = self._redis.time()
            return float(seconds + micros / 1e6 - (before + time.time()) / 2)
