"""Everything in Redis behind typed methods.

    Store ── rounds        commands, claims, commits and the status of the round
          ├─ validations   batches to be judged: chunks, their distances, verdicts
          ├─ work          what a worker takes, of either
          ├─ workers       who lives, with which model, and who had to end
          ├─ outbox        callbacks that wait for delivery
          ├─ endings       ends of tickets that Celery has to be told
          ├─ commands      what a worker took and has not done
          ├─ jobs          validations that come by HTTP: their admission, and how they stand
          ├─ results       the states of tasks, where Celery's callers look
          └─ dead_letters  what nobody can read

What changes something is one Lua script (`lua/`), so no crash and no interleaving shows a half
of it. Every method raises `StoreUnavailable` when Redis does not answer, and may be called again
then: a script that did run is recognised by the id of its command or the token of its claim. It
raises `StoreFailed` when Redis answers that it can't.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing

from shared.config import share_below
from shared.overview import Course, Overview
from shared.settings import Settings
from shared.status import NodeStatus, OutboxStatus, RoundStatus, WorkerStatus
from shared.store.ask import Ask, Kind
from shared.store.commands import Commands
from shared.store.connection import (
    WORKER_CONNECTIONS,
    Client,
    admitted,
    close,
    connect,
    meaning,
    redis_errors,
    words_of,
)
from shared.store.context import Context
from shared.store.current import CurrentRound
from shared.store.dead_letters import DeadLetters
from shared.store.endings import Ending, Endings
from shared.store.jobs import Jobs
from shared.store.keys import Keys
from shared.store.outbox import Entry, Message, Outbox
from shared.store.overview import Views
from shared.store.results import Results
from shared.store.rounds import Claim, Computed, Rounds
from shared.store.scripts import Scripts, fresh_id
from shared.store.subscription import Subscription
from shared.store.validations import Chunk, ComputedValidation, Validations
from shared.store.work import Assignment, Work
from shared.store.workers import Reference, Workers

__all__ = [
    "Ask",
    "Assignment",
    "Chunk",
    "Claim",
    "Computed",
    "ComputedValidation",
    "Ending",
    "Entry",
    "Kind",
    "Message",
    "Reference",
    "Rounds",
    "Store",
    "Subscription",
    "Validations",
    "admitted",
    "connect",
    "fresh_id",
    "meaning",
    "redis_errors",
    "words_of",
]


class Store:
    """The state of one namespace. Thread-safe, except for subscriptions: one for each thread."""

    def __init__(self, settings: Settings, redis: Client | None = None) -> None:
        self._settings = settings
        self.namespace = settings.namespace
        self._redis = redis = connect(settings) if redis is None else redis
        self._keys = keys = Keys(settings.namespace)
        context = Context(redis, keys, Scripts(redis, keys), settings)
        current = CurrentRound(context)
        self.dead_letters = DeadLetters(context)
        self.rounds = Rounds(context, current)
        self.validations = Validations(context, current, self.dead_letters)
        self.work = Work(self.rounds, self.validations)
        self.workers = Workers(context, current)
        self.outbox = Outbox(context, self.dead_letters)
        self.endings = Endings(context, self.dead_letters)
        self.results = Results(context)
        self.commands = Commands(context)
        self.jobs = Jobs(context)
        self._views = Views(context)

    def status(self, newest: int = 0) -> NodeStatus:
        """The current round with its `newest` valid nonces, the workers, the open validations."""
        round_status = self.rounds.status(newest=newest) or RoundStatus()
        return NodeStatus(
            **round_status.model_dump(),
            workers=self.workers.listing(),
            incidents=self.workers.incidents(),
            validations=self.validations.progress(),
            validation_callbacks=self.outbox.uncounted(),
        )

    def overview(self, newest: int = 0) -> Overview:
        """All that can be seen of the node at a glance."""
        node = self.status(newest)
        vocab_size = _vocab_size(node.workers)
        seen = self._views.read(node.round_id, vocab_size)
        known = node.round_id and vocab_size and node.has_distances
        return Overview(
            namespace=self.namespace,
            node=node,
            has_distances=node.has_distances,
            valid_below=node.valid_below,
            expected_share=share_below(node.valid_below, vocab_size) if known else None,
            seconds_left=node.seconds_left,
            worker_lives_s=self._settings.worker_lives_s,
            **seen,
        )

    def wake(self) -> None:
        """Have all that wait for news look at once, as a process that ends wants of its threads."""
        with redis_errors():
            for topic in ("work", "verdicts", "outbox"):
                self._redis.publish(self._keys.wake, topic)

    def callbacks(self) -> OutboxStatus:
        """The callbacks that wait for their delivery."""
        return self._views.outbox()

    def course(self, round_id: str) -> Course:
        """The course of a round that is kept, as an overview has the current one's."""
        return self._views.course(round_id, _vocab_size(self.workers.listing()))

    def broker_options(self) -> Mapping[str, str]:
        """What Celery's transport must be told: where it keeps what."""
        return {"dead_letters_key": self._keys("dead_letters")}

    def check_access(self, queue: str = "") -> None:
        """Have Redis say whether this user may do what a sender must, or a worker of `queue`.

        Raises `StoreRefused` if not. Changes nothing.
        """
        keys, channels = [self._keys("workers")], [self._keys.wake]
        if queue:
            database = self._redis.connection_pool.connection_kwargs.get("db") or 0
            keys += [queue, self._keys("result", "-")]
            channels += [f"/{database}.celery.pidbox"]
        with redis_errors(), closing(self._redis.pubsub()) as pubsub:
            # A script may do anything with the keys that are declared.
            self._redis.eval("return 0", len(keys), *keys)
            if queue:  # how Celery takes commands, from a list that is never there
                self._redis.llen(queue)
                never = self._keys("taken", "nobody")
                self._redis.blmove(never, never, 0.01)
            pubsub.subscribe(*channels)
            for _ in channels:
                pubsub.get_message(timeout=5)

    def check_room(self) -> None:
        """Have Redis say whether it has connections enough for a worker.

        Raises `StoreUnavailable` if not: others may go.
        """
        client = connect(self._settings, WORKER_CONNECTIONS)
        pool = client.connection_pool
        try:
            with redis_errors():
                taken = [pool.get_connection() for _ in range(WORKER_CONNECTIONS)]
            for each in taken:
                pool.release(each)
        finally:
            close(client)

    def subscribe(self, *topics: str) -> Subscription:
        """What the calling thread waits at: for work, verdicts, endings, outbox, or for all."""
        return Subscription(self._redis, self._keys.wake, *topics)

    def close(self) -> None:
        """Give the connections back."""
        close(self._redis)


def _vocab_size(workers: Sequence[WorkerStatus]) -> int:
    """That of the namespace's one model; 0 where no worker says."""
    return max((each.vocab_size for each in workers), default=0)
