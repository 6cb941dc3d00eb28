"""Celery's Redis transport, made to survive what is not a message.

A stock worker pops a message, which is lost with the connection, or the worker, that was about to
get it. Here it is moved, in one step, into a list of the worker's own, and stays there until its
outcome is in Redis (`worker.queue.taken`).

A stock worker ends when it pops a list item that is not a task envelope: one stray LPUSH would
cost every worker of the node a model load. Here such an item is kept, whole, in a capped list
for inspection, a warning says so, and the worker goes on.

Select it with `broker_transport = "worker.queue.transport:Transport"` beside a `redis://` or
`rediss://` broker URL, with a store's `broker_options()` as transport options. A channel consumes
as a worker where they have a `taken_key`; others, such as those that wait for the answers of
remote control, are the stock ones.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from time import monotonic
from types import NoneType
from typing import Any

import redis
from celery.utils.time import maybe_iso8601
from kombu.exceptions import KombuError
from kombu.transport import redis as stock
from kombu.transport import virtual

from shared.errors import StoreError
from shared.store.dead_letters import keeping
from shared.tracing import traceparent_of

log = logging.getLogger(__name__)

#: The characters of an error that are logged, and the bytes of an item that is kept nowhere else.
SHOW_CHARACTERS, LOG_BYTES = 200, 1 << 20

#: What reading a bad item raises, anywhere between its first byte and the pool. Nothing else is
#: caught: a lost connection must reach Celery, which reconnects, and a pool that is shutting
#: down (RuntimeError) leaves a good message unacknowledged, to be restored.
BAD_ITEM = (
    ValueError,  # not UTF-8, not JSON, a body that is not base64, a lone surrogate
    TypeError,  # JSON of another shape: a number, a list, an unhashable delivery tag or task name
    LookupError,  # an envelope without properties, delivery_info, delivery_tag or id
    AttributeError,  # properties or headers that are not objects
    ArithmeticError,  # times that no calendar has
    RecursionError,  # nested deeper than Python follows
    redis.DataError,  # a delivery tag that is null or a boolean
    KombuError,  # a body that can't be decoded
)


#: The headers that reach Celery, and the types that it can stand, since it trusts them blindly. A
#: request that breaks half way to the pool would hold one of the worker's places for ever: after as
#: many as the pool has threads the worker lives and takes nothing any more. Any other header is
#: left out, but for `traceparent`: Celery takes whatever it finds for a request's own field.
_HEADERS: dict[str, tuple[type, ...]] = {
    "task": (str,),
    "id": (str,),
    "root_id": (str, NoneType),
    "parent_id": (str, NoneType),
    "group": (str, NoneType),
    "group_index": (int, NoneType),
    "shadow": (str, NoneType),
    "expires": (str, NoneType),
    "retries": (int, NoneType),
    "timelimit": (list, NoneType),
    "lang": (str, NoneType),
    "argsrepr": (str, NoneType),
    "kwargsrepr": (str, NoneType),
    "origin": (str, NoneType),
    "ignore_result": (bool, NoneType),
    "replaced_task_nesting": (int, NoneType),
}
#: Headers of features that none of our tasks has; Celery's clients send some of them empty. A
#: message with an eta would wait in the worker's memory, with any number of others.
_UNUSED_HEADERS = ("stamped_headers", "stamps", "eta", "callbacks", "errbacks", "chain", "chord")
#: The longest id, in bytes: it becomes part of key names.
MAX_ID = 256
#: The longest of the other headers, in characters: they are logged, and events have them.
MAX_HEADER = 4096
#: Seconds between two looks for what was sent with a priority.
JOIN_EVERY_S = 1.0
#: The options that are ours.
_OPTIONS = ("dead_letters_key", "taken_key")
#: What a message's properties have it under as it was in Redis.
TAKEN = "poc-taken"


class _Message(virtual.Message):  # type: ignore[misc]
    """A message that is refused before Celery sees it if it is not a task of protocol 2."""

    def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
        # Before it is read: kombu unpacks what is compressed, however large that becomes.
        if (payload.get("headers") or {}).get("compression"):
            raise ValueError("compressed messages are not taken")
        is_task = channel.item is not None
        if is_task:
            if not payload["properties"]["delivery_tag"].encode():
                raise ValueError("the delivery tag is empty")
            # Not what its sender says.
            payload["properties"] |= {"delivery_info": {}, TAKEN: channel.item}
        super().__init__(payload, channel=channel, **kwargs)
        if is_task:
            self.headers: dict[str, Any] = _checked_headers(self.headers)
            if self.content_type != "application/json":
                raise ValueError(f"content type {self.content_type!r}, only JSON is taken")
            _check_body(self.decode())


def _checked_headers(headers: dict[str, Any]) -> dict[str, Any]:
    for name, types in _HEADERS.items():
        value = headers.get(name)
        if not isinstance(value, types):
            raise TypeError(f"header {name!r} is {_short(value)}")
        if isinstance(value, str) and len(value) > MAX_HEADER:
            raise ValueError(f"header {name!r} has more than {MAX_HEADER} characters")
    for name in _UNUSED_HEADERS:
        if headers.get(name):
            raise ValueError(f"header {name!r} is not taken")
    if not 0 < len(headers["id"].encode()) <= MAX_ID:
        raise ValueError(f"header 'id' must have 1 to {MAX_ID} bytes")
    maybe_iso8601(headers.get("expires"))
    limits = headers.get("timelimit")
    if limits is not None and (
        len(limits) != 2 or not all(isinstance(each, int | float | NoneType) for each in limits)
    ):
        raise ValueError(f"header 'timelimit' is {_short(limits)}, not two numbers or nulls")
    taken = {name: _whole(value) for name, value in headers.items() if name in _HEADERS}
    # A bad one is none.
    if traceparent := traceparent_of(headers.get("traceparent")):
        taken["traceparent"] = traceparent
    return taken


def _whole(value: Any) -> Any:
    """Without half characters (lone surrogates), which Redis' JSON can't read."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _check_body(body: Any) -> None:
    args, kwargs, embedded = body
    if not (
        isinstance(args, list)
        and isinstance(kwargs, dict)
        and isinstance(embedded, dict | NoneType)
    ):
        raise TypeError("the body is not [[], {arguments}, {}]")
    # A ticket has no result yet when its task ends, so nothing could follow on it.
    if any((embedded or {}).values()):
        raise ValueError("callbacks, errbacks, chains and chords are not taken")


class Channel(stock.Channel):  # type: ignore[misc]
    """A channel to one Redis."""

    from_transport_options = (*stock.Channel.from_transport_options, *_OPTIONS)
    Message = _Message
    # What is not acknowledged is in the list of what was taken: kombu needs no notes of its own,
    # and puts nothing back.
    ack_emulation = False
    do_restore = False

    #: The list that bad items are kept in, and the one that what is taken is moved into: the
    #: transport options of these names.
    dead_letters_key: str
    taken_key = ""
    #: The item that is being read, if it is a task's: what is broadcast is none.
    item: bytes | None = None
    _joined_at = -JOIN_EVERY_S

    def _create_client(self, asynchronous: bool = False) -> Any:
        client = super()._create_client(asynchronous)
        if self.taken_key:
            # kombu reads a reply and parses the message in one breath, and expects BRPOP's.
            client.set_response_callback("BRPOP", self._note)
        return client

    def _note(self, item: bytes | None, **_: Any) -> tuple[bytes, bytes] | None:
        self.item = item
        return None if item is None else (self._consumed.encode(), item)

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Ask for the next message."""
        if not self.taken_key:
            super()._brpop_start(timeout)
            return
        # A worker consumes one queue.
        if not (queues := self._queue_cycle.consume(len(self.active_queues))):
            return
        (self._consumed,) = queues
        if monotonic() - self._joined_at >= JOIN_EVERY_S:
            self._join_priorities()
            self._joined_at = monotonic()
        self._in_poll = connection = self.client.connection
        self._brpop_sent_at = monotonic()
        wait = timeout or self.brpop_timeout
        connection.send_command("BLMOVE", self._consumed, self.taken_key, "RIGHT", "LEFT", wait)

    def _join_priorities(self) -> None:
        """Let what was sent with a priority, to a list of its own, join the queue's end."""
        with self.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
            for step in self.priority_steps[1:]:
                pipe.lmove(self._q_for_pri(self._consumed, step), self._consumed, "RIGHT", "LEFT")
            pipe.execute()

    def _brpop_read(self, **options: Any) -> Any:
        """A worker's way to its tasks."""
        self.item = None
        try:
            return super()._brpop_read(**options)
        except BAD_ITEM as error:
            if self.item is None:
                raise  # nothing was taken: not an item's fault
            self._set_aside(self.item, error)
            return True
        finally:
            self.item = None

    def _receive_one(self, client: Any) -> Any:
        """Broadcast commands; what is published is kept nowhere, so a bad one is only logged."""
        try:
            return super()._receive_one(client)
        except BAD_ITEM as error:
            log.warning("dropped a broadcast that is not a message: %s", _sentence(error))
            return True

    def _set_aside(self, item: bytes, error: Exception) -> None:
        place, why = "the queue", _sentence(error)
        try:
            with (
                self.conn_or_acquire() as client,
                keeping(client, self.dead_letters_key, item, place, why) as pipe,
            ):
                pipe.lrem(self.taken_key, 1, item)
        except StoreError as trouble:
            # The log is the only place left. Celery itself finds out whether Redis is gone.
            log.error("could not keep it (%s); it was: %r", trouble, item[:LOG_BYTES])


class SentinelChannel(Channel, stock.SentinelChannel):  # type: ignore[misc]
    """A channel to the primary that Sentinels name."""

    from_transport_options = (*stock.SentinelChannel.from_transport_options, *_OPTIONS)
    #: How to connect to a Sentinel. No option, since whoever may list workers sees those.
    sentinel_kwargs: Mapping[str, Any]


class Transport(stock.Transport):  # type: ignore[misc]
    """For redis:// and rediss:// URLs."""

    Channel = Channel

    def _reject_inbound_message(self, raw_message: Any) -> None:
        """Leave what came after the consumer was cancelled in the list of what was taken.

        kombu would push it to wherever it says that it belongs.
        """


class SentinelTransport(Transport, stock.SentinelTransport):  # type: ignore[misc]
    """For sentinel:// URLs."""

    Channel = SentinelChannel


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:SHOW_CHARACTERS]


def _short(value: Any) -> str:
    return repr(value)[:SHOW_CHARACTERS]
