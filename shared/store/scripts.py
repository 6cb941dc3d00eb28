"""How the store talks to Redis: one client, one Lua script per verb, one bell to wait at."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from typing import Any, TypeVar

from redis import Redis
from redis.backoff import NoBackoff
from redis.client import PubSub
from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    NoPermissionError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from shared import errors
from shared.settings import Settings

T = TypeVar("T")

_LUA = resources.files("shared.store") / "lua"

#: Scripts that look at the current round; the others know only what they are given.
_ROUND_VERBS = (
    "init",
    "generate",
    "validate",
    "stop",
    "open_job",
    "claim",
    "commit",
    "heartbeat",
)
_VERBS = (
    *_ROUND_VERBS,
    "give_back",
    "claim_chunk",
    "commit_chunk",
    "finish_job",
    "settle",
    "leave",
)


#: A `Redis` that decodes its replies, which redis-py's types can't say: they allow for bytes.
Client = Any


def connect(settings: Settings) -> Client:
    """A client that gives up on a silent server after 5 s and tries a lost connection once more.

    Every script can safely be sent twice, so a reply that was lost on the way is asked for again.
    A server that is silent is not: whoever needs it for longer asks again, and says so.
    """
    return Redis.from_url(
        settings.redis_url,
        decode_responses=True,
        encoding_errors="surrogateescape",  # a stray hand may write any bytes
        socket_timeout=5,
        socket_connect_timeout=5,
        socket_keepalive=True,
        health_check_interval=10,
        retry=Retry(NoBackoff(), retries=1, supported_errors=(RedisConnectionError,)),
    )


@contextmanager
def redis_errors() -> Iterator[None]:
    """Turn what redis-py raises into `StoreUnavailable` or, of that, `StoreRefused`."""
    try:
        yield
    except RedisError as error:
        raise refusal(error) or errors.StoreUnavailable(f"Redis: {error}") from error


def refusal(error: BaseException | None) -> errors.StoreRefused | None:
    """`error` as one that no waiting mends; None if it may pass, as an outage does."""
    said = str(error).rstrip(".")
    if said.startswith("HELLO must be called"):  # redis-py's first word; the rest is for drivers
        said = "it asks for a user and a password"
    if isinstance(error, AuthenticationError | AuthenticationWrongNumberOfArgsError):
        remedy = "mend user and password in POC_REDIS_URL"
    elif isinstance(error, NoPermissionError):
        remedy = "name a user in POC_REDIS_URL that may, docs/security.md lists them"
    # They have no class of their own.
    elif type(error) is ResponseError and said.startswith(("DB index", "SELECT is not allowed")):
        remedy = "name another database in POC_REDIS_URL"
    else:
        return None
    return errors.StoreRefused(f"Redis refuses: {said}; {remedy}")


def admitted(call: Callable[[], T]) -> T:
    """What `call` gives; what Redis refuses is a wrong setting, and raises `ConfigError`.

    For the start of a process. Later a refusal is waited for like an outage: whoever took a
    permission away may give it back.
    """
    try:
        return call()
    except errors.StoreRefused as error:
        raise errors.ConfigError(str(error)) from None


class Scripts:
    """The verbs of the store, ready to be called on one Redis."""

    def __init__(self, redis: Client) -> None:
        prelude = (_LUA / "_prelude.lua").read_text()
        shared_by_rounds = prelude + (_LUA / "_round.lua").read_text()
        self._scripts = {
            verb: redis.register_script(
                (shared_by_rounds if verb in _ROUND_VERBS else prelude)
                + (_LUA / f"{verb}.lua").read_text()
            )
            for verb in _VERBS
        }

    def call(self, verb: str, keys: Mapping[str, str], **args: Any) -> Any:
        """Run `verb` atomically; `keys` and `args` are its K and A, an arg of None is left out.

        Raises the error that the script answers with, or `StoreUnavailable`.
        """
        given = {name: value for name, value in args.items() if value is not None}
        payload = json.dumps({"verb": verb, "keys": list(keys), **given}, allow_nan=False)
        with redis_errors():
            reply = self._scripts[verb](keys=list(keys.values()), args=[payload])
        if not isinstance(reply, str):
            return reply
        answer = json.loads(reply)
        if (first := answer.get("verb", verb)) != verb:
            raise errors.CommandMismatch(
                f"{verb} came under the id {args['command']} of an earlier {first}: "
                "send it under an id of its own"
            )
        if name := answer.get("error"):
            raise errors.named(name, answer["message"])
        return answer


class Bell:
    """Waits for the namespace's wake channel; one for each thread that waits.

    It may ring for nothing and miss a ring while Redis is away, so its user looks at the state
    after every wait, however the wait ended.
    """

    def __init__(self, redis: Client, channel: str, *topics: str) -> None:
        """Rings for `topics`, the words that scripts publish; for all of them without any."""
        self._redis, self._channel, self._topics = redis, channel, topics
        self._pubsub: PubSub | None = None

    def wait(self, timeout: float) -> bool:
        """Return at the next ring, or after `timeout` seconds; whether it rang.

        When newly connected it returns at once, as if it had rung: what came before is unknown.
        Raises `StoreUnavailable`.
        """
        try:
            with redis_errors():
                return self._wait(timeout)
        except errors.StoreUnavailable:
            self.close()
            raise

    def _wait(self, timeout: float) -> bool:
        if self._pubsub is None:
            self._pubsub = self._redis.pubsub()
            self._pubsub.subscribe(self._channel)
            # Only when Redis has confirmed it is no ring missed any more.
            self._pubsub.get_message(timeout=timeout)
            return True
        deadline = time.monotonic() + timeout
        rang = False
        while not rang and (left := deadline - time.monotonic()) > 0:
            rang = self._concerns(self._pubsub.get_message(timeout=left))
        # Rings that came together are one.
        while message := self._pubsub.get_message(timeout=0):
            rang |= self._concerns(message)
        return rang

    def _concerns(self, message: Mapping[str, Any] | None) -> bool:
        return message is not None and (not self._topics or message["data"] in self._topics)

    def close(self) -> None:
        """Give the connection back."""
        if self._pubsub is not None:
            self._pubsub.close()  # type: ignore[no-untyped-call]
            self._pubsub = None
