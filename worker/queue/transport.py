"""Celery's Redis transport, made to survive what is not a message.

A stock worker ends when it pops a list item that is not a task envelope: one stray LPUSH would
cost every worker of the node a model load. Here such an item is kept, whole, in a capped list
for inspection, a warning says so, and the worker goes on.

Select it with `broker_transport = "worker.queue.transport:Transport"` beside a `redis://` or
`rediss://` broker URL, with a store's `broker_options()` as transport options.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import NoneType
from typing import Any

import redis
from celery.utils.time import maybe_iso8601
from kombu.exceptions import KombuError
from kombu.transport import redis as stock
from kombu.transport import virtual
from kombu.utils.json import loads

from shared.errors import StoreError
from shared.store.dead_letters import keeping

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
#: left out: it may be a tracer's, but Celery takes whatever it finds for a request's own field.
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
#: How lists are called that answers to control commands come through; they are no tasks.
_ANSWERS = ".reply.celery.pidbox"


class _Message(virtual.Message):  # type: ignore[misc]
    """A message that is refused before Celery sees it if it is not a task of protocol 2."""

    def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
        # Before it is read: kombu unpacks what is compressed, however large that becomes.
        if (payload.get("headers") or {}).get("compression"):
            raise ValueError("compressed messages are not taken")
        if channel.pops_a_task:
            # Where it goes if it is given back: whence it came, and not where its sender says.
            queue = channel.popped_from.rsplit(channel.sep, 1)[0]
            payload["properties"]["delivery_info"] = {"exchange": "", "routing_key": queue}
        super().__init__(payload, channel=channel, **kwargs)
        if channel.pops_a_task:
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
    return {name: _whole(value) for name, value in headers.items() if name in _HEADERS}


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


class _QoS(stock.QoS):  # type: ignore[misc]
    """Notes which messages are not acknowledged yet, in Redis as well."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """Note a message that was popped, also when Redis refuses to: it has nowhere else to be."""
        try:
            super().append(message, delivery_tag)
        except redis.ResponseError as error:
            log.warning("a message is run without a note of it in Redis: %s", _sentence(error))
            virtual.QoS.append(self, message, delivery_tag)

    def restore_unacked(self, client: Any = None) -> None:
        """Put back what was not acknowledged.

        A connection that broke while a message was being acknowledged has nothing left to do that
        by, and kombu's attempt would end the worker. The note in Redis stays: the message comes
        again when its time is up, and whoever sent it sends it again before that.
        """
        if self.channel.connection.client is None:
            log.warning("%d messages stay unacknowledged for now", len(self._delivered))
            self._delivered.clear()
            return
        super().restore_unacked(client)


class _KeepsBadItems:
    """The mixin for kombu's Redis channels; it holds the item that was popped last."""

    #: The list that bad items are kept in: the transport option of the same name.
    dead_letters_key: str

    Message = _Message
    QoS = _QoS

    _item: bytes | None = None
    #: The list that it was in, with the priority that kombu puts behind a queue's name.
    popped_from = ""

    @property
    def pops_a_task(self) -> bool:
        """Whether what is being read was popped from a list of tasks, and not broadcast.

        By the list's name: what a message says of itself is its sender's choice.
        """
        return self._item is not None and not self.popped_from.endswith(_ANSWERS)

    def _create_client(self, asynchronous: bool = False) -> Any:
        # kombu pops and parses in one breath. A response callback sees the bytes in between.
        client = super()._create_client(asynchronous)  # type: ignore[misc]
        for command in ("BRPOP", "RPOP"):
            client.set_response_callback(command, self._noting(client, command))
        return client

    def _noting(self, client: Any, command: str) -> Callable[..., Any]:
        parse = client.response_callbacks.get(command, _itself)

        def note(reply: Any, **options: Any) -> Any:
            reply = parse(reply, **options)
            if reply and command == "BRPOP":
                self.popped_from, self._item = reply[0].decode(errors="replace"), reply[1]
            else:
                self._item = reply or None
            return reply

        return note

    def _brpop_read(self, **options: Any) -> Any:
        """A worker's way to its tasks."""
        self._item = None
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]
        except BAD_ITEM as error:
            if self._item is None:
                raise  # nothing was popped: not an item's fault
            self._set_aside(self._item, error)
            return True

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        """One message by direct access, past whatever is none."""
        while True:
            self.popped_from, self._item = queue, None
            try:
                return super().basic_get(queue, no_ack=no_ack, **kwargs)  # type: ignore[misc]
            except BAD_ITEM as error:
                if self._item is None:
                    raise
                self._set_aside(self._item, error)

    def _receive_one(self, client: Any) -> Any:
        """Broadcast commands; what is published is kept nowhere, so a bad one is only logged."""
        self._item = None
        try:
            return super()._receive_one(client)  # type: ignore[misc]
        except BAD_ITEM as error:
            log.warning("dropped a broadcast that is not a message: %s", _sentence(error))
            return True

    def _set_aside(self, item: bytes, error: Exception) -> None:
        try:
            with (
                self.conn_or_acquire() as client,  # type: ignore[attr-defined]
                keeping(client, self.dead_letters_key, item, "the queue", _sentence(error)),
            ):
                pass
        except StoreError as trouble:
            # The log is the only place left. Celery itself finds out whether Redis is gone.
            log.error("could not keep it (%s); it was: %r", trouble, item[:LOG_BYTES])
        self._forget(item)

    def _forget(self, item: bytes) -> None:
        """Acknowledge a bad item that came as far as the unacknowledged messages.

        Otherwise it would come back after the visibility timeout, for ever.
        """
        try:
            tag = loads(item.decode())["properties"]["delivery_tag"]
            delivered = tag in self.qos._delivered  # type: ignore[attr-defined]  # noqa: SLF001
        except BAD_ITEM:
            return  # then it did not come that far
        if delivered:
            self.qos.ack(tag)  # type: ignore[attr-defined]


class Channel(_KeepsBadItems, stock.Channel):  # type: ignore[misc]
    """A channel to one Redis."""

    from_transport_options = (*stock.Channel.from_transport_options, "dead_letters_key")


class Transport(stock.Transport):  # type: ignore[misc]
    """For redis:// and rediss:// URLs."""

    Channel = Channel


def _itself(reply: Any, **_: Any) -> Any:
    return reply


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:SHOW_CHARACTERS]


def _short(value: Any) -> str:
    return repr(value)[:SHOW_CHARACTERS]
