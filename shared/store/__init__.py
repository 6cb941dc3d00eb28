"""Everything in Redis behind typed methods.

    Store ── rounds     commands, claims, commits and the status of the round
          ├─ jobs       validations: chunks, their distances, verdicts
          ├─ outbox     callbacks that wait for delivery
          ├─ endings    ends of tickets that Celery has to be told
          └─ workers    who lives, with which model

What changes something is one Lua script (`lua/`), so no crash and no interleaving shows a half
of it. Every method raises `StoreUnavailable` when Redis does not answer, and may be called again
then: a script that did run is recognised by the id of its command or the token of its claim.
"""

from __future__ import annotations

from contextlib import closing

from shared.settings import Settings
from shared.status import NodeStatus, RoundStatus
from shared.store.dead_letters import DeadLetters
from shared.store.endings import Ending, Endings
from shared.store.jobs import Chunk, Computed, Jobs
from shared.store.keys import Keys
from shared.store.outbox import Entry, Outbox
from shared.store.rounds import Claim, Message, Reference, Rounds
from shared.store.scripts import (
    Bell,
    Client,
    Scripts,
    admitted,
    connect,
    redis_errors,
    refusal,
)
from shared.store.workers import Workers

__all__ = [
    "Bell",
    "Chunk",
    "Claim",
    "Computed",
    "Ending",
    "Entry",
    "Jobs",
    "Message",
    "Reference",
    "Rounds",
    "Store",
    "admitted",
    "connect",
    "redis_errors",
    "refusal",
]


class Store:
    """The state of one namespace. Thread-safe, except for the bells: one for each thread."""

    def __init__(self, settings: Settings, redis: Client | None = None) -> None:
        self._redis = redis = connect(settings) if redis is None else redis
        self._keys = keys = Keys(settings.namespace)
        scripts = Scripts(redis)
        self.rounds = Rounds(redis, scripts, keys, settings)
        dead_letters = DeadLetters(redis, keys)
        self.jobs = Jobs(redis, scripts, keys, settings, dead_letters)
        self.outbox = Outbox(redis, scripts, keys, settings, dead_letters)
        self.endings = Endings(redis, keys, dead_letters)
        self.workers = Workers(redis, scripts, keys, settings)

    def status(self, newest: int = 0) -> NodeStatus:
        """The current round with its `newest` valid nonces, the workers, the open validations."""
        round_status = self.rounds.status(newest=newest) or RoundStatus()
        return NodeStatus(
            **round_status.model_dump(),
            workers=self.workers.listing(),
            incidents=self.workers.incidents(),
            validations=self.jobs.progress(),
            validation_callbacks=self.outbox.uncounted(),
        )

    def check_access(self, queue: str = "") -> None:
        """Have Redis say whether this user may do what a sender must, or a worker of `queue`.

        Raises `StoreRefused` if not. Changes nothing.
        """
        keys, channels = [self._keys("workers")], [self._keys.wake]
        if queue:
            database = self._redis.connection_pool.connection_kwargs.get("db") or 0
            keys += [queue, "celery-task-meta-"]
            channels += [f"/{database}.celery.pidbox"]
        with redis_errors(), closing(self._redis.pubsub()) as pubsub:
            # A script may do anything with the keys that are declared.
            self._redis.eval("return 0", len(keys), *keys)
            if queue:  # how Celery takes commands, from a list that is never there
                self._redis.brpop([self._keys("unacked")], timeout=0.01)
            pubsub.subscribe(*channels)
            for _ in channels:
                pubsub.get_message(timeout=5)

    def bell(self, *topics: str) -> Bell:
        """What the calling thread waits at: for work, verdicts, endings, outbox, or for all."""
        return Bell(self._redis, self._keys.wake, *topics)

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()
