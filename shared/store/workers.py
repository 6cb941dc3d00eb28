"""The workers that live, with the model that they have, and those that had to end."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain

from pydantic import ValidationError

from shared.status import Incident, WorkerStatus
from shared.store.connection import redis_errors
from shared.store.context import Context
from shared.store.current import CurrentRound
from shared.store.scripts import flat, fresh_id

#: Incidents that are kept, for how many seconds, and how many of them a status shows.
KEEP_INCIDENTS, KEEP_S, SHOWN = 100, 7 * 86_400, 10
#: Seconds that the reference of a model outlives its last worker.
REFERENCE_S = 7 * 86_400


@dataclass(frozen=True, slots=True)
class Reference:
    """What a model's first worker gave in its functional check."""

    distances: tuple[float, ...]
    worker: str


class Workers:
    """The workers of a namespace."""

    def __init__(self, context: Context, current: CurrentRound) -> None:
        self._settings, self._current = context.settings, current
        self._context, self._redis, self._keys = context, context.redis, context.keys

    def heartbeat(
        self,
        worker: str,
        model: Mapping[str, str],
        fields: Mapping[str, str],
        tokens: Sequence[str],
        distances: Sequence[float] = (),
        instance: str | None = None,
        *,
        takes_over: bool = False,
        counted: tuple[str, Mapping[int, int]] | None = None,
        schemes: Collection[str] = (),
    ) -> Reference | None:
        """Show that `worker` lives, renew its leases and the round's clocks.

        `tokens` are its claims, in the order that they are computed in. `distances` are those of
        its functional check; gives the reference of its model, which they become when there is
        none. Raises `ModelMismatch` with the fingerprint that the namespace wants.

        `instance` tells its process from others of that name. Raises `NameTaken`, with the time of
        the holder's last heartbeat, unless this process `takes_over`.

        `schemes` are those that it computes: a chunk of one that no live worker does is given up.

        `counted` is a round, and how many of its nonces have distances in which bin (see
        `shared.histogram`). After a lost answer it may count twice: it is only to be looked at.
        """
        _, answer = self._current.call(
            "heartbeat",
            worker=worker,
            instance=instance,
            takes_over=takes_over or None,
            fingerprint=model["fingerprint"],
            pinned=self._settings.model_fingerprint,
            model=flat(model),
            fields=flat(fields),
            tokens=list(tokens),
            schemes=sorted(schemes),
            distances=json.dumps(list(distances)) if distances else None,
            counted=counted and {"round": counted[0], "bins": list(chain(*counted[1].items()))},
            reference_s=REFERENCE_S,
            live_ms=round(self._settings.worker_lives_s * 1000),
            keep_incidents=KEEP_INCIDENTS,
            keep_incidents_s=KEEP_S,
            lease_ms=self._context.lease_ms,
            deadline_ms=round(self._settings.batch_deadline * 1000),
            epoch=fresh_id(),
        )
        return _reference(answer)

    def reference(self, fingerprint: str) -> Reference | None:
        """What the first worker with a model gave in its functional check, if that is kept."""
        with redis_errors():
            return _reference(self._redis.hgetall(self._keys("reference", fingerprint)))

    def listing(self) -> list[WorkerStatus]:
        """Every live worker, by name."""
        with redis_errors():
            names = self._redis.zrange(self._keys("workers"), 0, -1)
            with self._redis.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.hgetall(self._keys("worker", name))
                found = sorted(zip(names, pipe.execute(), strict=True))
        return [WorkerStatus(**fields, name=name) for name, fields in found if fields]

    def leave(self, worker: str, instance: str | None = None) -> None:
        """Show `worker` no more; the last one frees the namespace for another model.

        With an `instance`, only while the name is that process'.
        """
        self._context.scripts.call("leave", worker=worker, instance=instance)

    def report(self, incident: Incident) -> None:
        """Keep why a worker ended, for whoever looks at the status."""
        key = self._keys("incidents")
        with redis_errors(), self._redis.pipeline(transaction=True) as pipe:
            pipe.lpush(key, incident.model_dump_json())
            pipe.ltrim(key, 0, KEEP_INCIDENTS - 1)
            pipe.expire(key, KEEP_S)
            pipe.hincrby(self._keys("totals"), "incidents", 1)
            pipe.execute()

    def incidents(self, newest: int = SHOWN) -> list[Incident]:
        """The `newest` workers that had to end, newest first, but those that nobody can read."""
        with redis_errors():
            kept = self._redis.lrange(self._keys("incidents"), 0, newest - 1)
        found = []
        for each in kept:
            with suppress(ValidationError):  # of another version, or a stray hand
                found.append(Incident.model_validate_json(each))
        return found

    def clock_skew(self) -> float:
        """Seconds that Redis' clock is ahead of this machine's."""
        with redis_errors():
            before = time.time()
            seconds, micros = self._redis.time()
            return float(seconds + micros / 1e6 - (before + time.time()) / 2)


def _reference(fields: Mapping[str, str]) -> Reference | None:
    if "distances" not in fields:
        return None
    return Reference(tuple(json.loads(fields["distances"])), fields["worker"])
