"""One client of Redis, and what its errors mean in our words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from redis import Redis
from redis.backoff import NoBackoff
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
        encoding_errors="surrogateescape",  # somebody may write any bytes by mistake
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
