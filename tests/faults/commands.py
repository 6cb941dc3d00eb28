"""What a controller sends: commands with their repeats, and what never should have been sent."""

from __future__ import annotations

import heapq
import itertools
import json
import logging
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

import redis

from faults.journal import Journal
from raw import raw_message
from shared import errors
from shared.settings import Settings
from worker.outage import RETRY_S

log = logging.getLogger(__name__)

#: Seconds that a command may be without an answer, and a ticket without an end.
PATIENCE_S = 90.0
#: Seconds until a command that nobody answered is sent again, as the client does.
RESEND_S = 2.0
ENDS = ("SUCCESS", "FAILURE")

#: Small items that are no tasks, each under what it is called in the report.
POISON: dict[str, bytes] = {
    "not JSON": b"{not json",
    "not UTF-8": b"\xff\xfe\x00",
    "a stray list item": b"hello",
    "a number": b"42",
    "an empty object": b"{}",
    "an envelope without properties": b'{"body": "W10=", "headers": {"task": "poc.stop"}}',
    "deep nesting": b"[" * 100_000 + b"]" * 100_000,
    "a deep object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
}


class Refused(Exception):
    """A command ended with an error; `name` is its class."""

    def __init__(self, command: Command, name: str, message: str) -> None:
        super().__init__(f"{command.task} {command.id}: {name}: {message}")
        self.name = name


@dataclass
class Command:
    """One command under its id, however often it is delivered."""

    id: str
    task: str
    kwargs: dict[str, Any]
    sent_at: float = 0.0
    accepted: bool = False
    end: str | None = None


@dataclass
class Courier:
    """Delivers raw messages through `settings.redis_url`: twice, late or again, as it likes.

    Thread-safe, as far as threads don't share a command.
    """

    settings: Settings
    random: Random
    count: Counter[str]
    #: Gets every delivery and every answer.
    journal: Journal
    #: What was sent since the server was new, oldest first.
    sent: list[Command] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._redis = redis.Redis.from_url(
            self.settings.redis_url, socket_timeout=3, socket_connect_timeout=3, retry=None
        )
        self._late: list[tuple[float, int, Command]] = []
        self._order = itertools.count()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        threading.Thread(target=self._deliver_late, name="late", daemon=True).start()

    def close(self) -> None:
        self._ended.set()
        self._redis.close()

    def forget(self) -> None:
        """The server is another: what was sent before is of no meaning there."""
        with self._lock:
            self._late.clear()
        self.sent = []

    def send(self, task: str, kwargs: dict[str, Any]) -> Command:
        """Send a command once, twice, or once now and once late."""
        command = Command(str(uuid.uuid4()), task, kwargs)
        self.sent.append(command)
        self._insist(command)
        draw = self.random.random()
        if draw < 0.15:
            self.count["message: delivered twice"] += 1
            self.push(command)
        elif draw < 0.35:
            self.count["message: delivered again, late"] += 1
            with self._lock:
                due = time.monotonic() + self.random.uniform(0.5, 8)
                heapq.heappush(self._late, (due, next(self._order), command))
        return command

    def push(self, command: Command, *, anew: bool = False) -> bool:
        """Deliver a command once more; False if Redis did not take it.

        `anew` says that its answer was lost: then another round may be there by now, which it
        must not end.
        """
        kwargs = command.kwargs
        if anew and command.accepted:
            kwargs = {name: value for name, value in kwargs.items() if name != "replace"}
        queue = self.settings.queue
        try:
            self._redis.lpush(queue, raw_message(command.task, command.id, kwargs, queue))
        except redis.RedisError:
            return False
        command.sent_at = time.monotonic()
        self._note(command, f"sent {kwargs}")
        return True

    def poison(self) -> None:
        """Push what is no task."""
        name = self.random.choice(sorted(POISON))
        try:
            self._redis.lpush(self.settings.queue, POISON[name])
        except redis.RedisError:
            return
        self.count[f"poison: {name}"] += 1

    def huge_poison(self, direct: redis.Redis) -> None:
        """Push 100 MB that are no task."""
        direct.lpush(self.settings.queue, b"x" * 100_000_000)
        self.count["poison: 100 MB"] += 1

    def answer(self, command: Command, *, ended: bool, patience: float = PATIENCE_S) -> Any:
        """Wait until a command is accepted, or has `ended`; its result.

        Raises `Refused` if it failed, `TimeoutError` if nothing comes.
        """
        gives_up_at = time.monotonic() + patience
        while time.monotonic() < gives_up_at:
            meta = self._meta(command)
            if meta is not None:
                if not command.accepted or meta["status"] in ENDS:
                    self._note(command, f"{meta['status']} {meta['result']}")
                command.accepted = True
                if meta["status"] == "FAILURE":
                    message = meta["result"]["exc_message"]
                    raise Refused(command, meta["result"]["exc_type"], str(message))
                if meta["status"] == "SUCCESS" or not ended:
                    return meta["result"]
            time.sleep(0.05)
        raise TimeoutError(f"{command.task} {command.id} {command.kwargs}")

    def _meta(self, command: Command) -> dict[str, Any] | None:
        try:
            raw = self._redis.get(f"celery-task-meta-{command.id}")
        except redis.RedisError:
            time.sleep(RETRY_S)
            return None
        if raw is None:
            if time.monotonic() > command.sent_at + RESEND_S:
                self.push(command, anew=True)
            return None
        meta: dict[str, Any] = json.loads(raw)
        if meta["status"] in ENDS:
            command.end = raw.decode()
        return meta

    def _note(self, command: Command, what: str) -> None:
        self.journal.note(f"{command.task} {command.id} {what[:500]}")

    def _insist(self, command: Command) -> None:
        gives_up_at = time.monotonic() + PATIENCE_S
        while not self.push(command):
            if time.monotonic() > gives_up_at:
                raise errors.StoreUnavailable("Redis is away")
            time.sleep(RETRY_S)

    def deliver_late(self) -> None:
        """Deliver now what was to come late: after a loss it may be news, and mean anything."""
        with self._lock:
            late, self._late = self._late, []
        for _, _, command in late:
            self.push(command)

    def _deliver_late(self) -> None:
        while not self._ended.wait(0.1):
            with self._lock:
                due = self._late and self._late[0][0] <= time.monotonic()
                command = heapq.heappop(self._late)[2] if due else None
            if command:
                self.push(command)
