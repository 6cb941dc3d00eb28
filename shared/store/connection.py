"""One client of Redis, and what its errors mean in our words."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from redis import BlockingConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.driver_info import DriverInfo
from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from shared import errors
from shared.settings import Settings
from shared.version import installed

T = TypeVar("T")

#: A `Redis` that decodes its replies, which redis-py's types can't say: they allow for bytes.
Client = Any


#: Connections of one client; who needs one more waits for it. A worker's threads need no more.
MAX_CONNECTIONS = 16
#: Those of a worker: Celery has two for each of its own, and four for what senders share.
WORKER_CONNECTIONS = MAX_CONNECTIONS + 12


class _SentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    """Connections to the primary that the Sentinels name at the time."""

    def release(self, connection: Any) -> None:
        """As the others do, and forget one that never reached a primary."""
        owned = self.owns_connection(connection)  # type: ignore[no-untyped-call]
        super().release(connection)  # type: ignore[no-untyped-call]
        if not owned:
            with suppress(ValueError):
                self._connections.remove(connection)


def connect(settings: Settings, connections: int = MAX_CONNECTIONS) -> Client:
    """A client of at most so many connections.

    It gives up on a silent server after 5 s, and tries a lost connection once more: every script
    can safely be sent twice, so a reply that was lost on the way is asked for again. A server that
    is silent is not: whoever needs it for longer asks again, and says so.
    """
    url = settings.redis
    options: dict[str, Any] = {
        "max_connections": connections,
        "timeout": 5,
        "decode_responses": True,
        "encoding_errors": "surrogateescape",  # somebody may write any bytes by mistake
        "socket_timeout": 5,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 10,
        # Or each connection would read the metadata of the package, for 3 ms.
        "driver_info": DriverInfo(lib_version=installed("redis")),
        "retry": Retry(NoBackoff(), retries=1, supported_errors=(RedisConnectionError,)),
    }
    if not url.name:
        return Redis.from_pool(BlockingConnectionPool.from_url(str(url), **options))
    sentinel = Sentinel(url.sentinels, sentinel_kwargs=url.sentinel_options)  # type: ignore[no-untyped-call]
    tls = {"ssl": True} | url.tls if url.tls else {}
    return sentinel.master_for(  # type: ignore[no-untyped-call]
        url.name,
        connection_pool_class=_SentinelPool,
        db=url.database,
        **url.credentials,
        **tls,
        **options,
    )


def close(client: Client) -> None:
    """Give the connections of `client` back, those to Sentinels too."""
    client.close()
    if sentinel := getattr(client.connection_pool, "sentinel_manager", None):
        sentinel.close()


#: What a server says while it can't answer, and before it can again. A script that met it says so
#: somewhere in its own error.
_MAY_PASS = re.compile(
    r"(?:^|-|: )(?:LOADING|READONLY|OOM|BUSY|MASTERDOWN|NOREPLICAS|MISCONF|TRYAGAIN|CLUSTERDOWN)\b"
)


@contextmanager
def redis_errors() -> Iterator[None]:
    """Raise what redis-py raises as what it means for us."""
    try:
        yield
    except RedisError as error:
        raise meaning(error) from error


def meaning(error: RedisError) -> errors.StoreUnavailable | errors.StoreFailed:
    """What an error of redis-py means for us.

    `StoreUnavailable` may pass by itself: the network, and what a server says that loads, fails
    over or is full. `StoreRefused`, of that, is about a user or a database. All else is
    `StoreFailed`.
    """
    if refused := _refusal(error):
        return refused
    said = words_of(error)
    if said.startswith("max number of clients"):
        said += f"; raise its maxclients: a worker has up to {WORKER_CONNECTIONS} connections"
    if _may_pass(error):
        return errors.StoreUnavailable(f"Redis: {said}")
    return errors.StoreFailed(
        f"Redis can't do what is needed: {said}; see that it is Redis 6.2 or newer, or Valkey, "
        "with all its commands under their own names, and that nobody else writes to our keys"
    )


def words_of(error: BaseException) -> str:
    """What an error says, without what redis-py tells of each Sentinel, passwords included."""
    said = str(error)
    if said.startswith("No master found for "):
        return f"{said.partition(' : ')[0].rstrip('.')} by any Sentinel"
    return said.rstrip(".")


def _may_pass(error: RedisError) -> bool:
    if not isinstance(error, ResponseError):
        return isinstance(error, RedisConnectionError | RedisTimeoutError)
    # Some have a class of their own, whose message lacks the code.
    passing = ReadOnlyError | MasterDownError | OutOfMemoryError | TryAgainError
    return isinstance(error, passing) or _MAY_PASS.search(str(error)) is not None


def _refusal(error: BaseException) -> errors.StoreRefused | None:
    """`error` as one that no waiting mends; None if it may pass, as an outage does."""
    said = words_of(error)
    if said.startswith("HELLO must be called"):  # redis-py's first word; the rest is for drivers
        said = "it asks for a user and a password"
    if _not_verified(error):
        remedy = "name the CA of the server in POC_REDIS_URL, as ssl_ca_certs=..."
    elif said.startswith("No master found for ") and "AuthenticationError" in str(error):
        said += ", for they ask for another password"
        remedy = "mend sentinel_user and sentinel_password in POC_REDIS_URL"
    elif isinstance(error, AuthenticationError | AuthenticationWrongNumberOfArgsError):
        remedy = "mend user and password in POC_REDIS_URL"
    elif isinstance(error, NoPermissionError):
        remedy = "name a user in POC_REDIS_URL that may, docs/security.md lists them"
    # They have no class of their own.
    elif type(error) is ResponseError and said.startswith(("DB index", "SELECT is not allowed")):
        remedy = "name another database in POC_REDIS_URL"
    else:
        return None
    return errors.StoreRefused(f"Redis refuses: {said}; {remedy}")


def _not_verified(error: BaseException | None) -> bool:
    """Whether TLS did not verify the server, however deep down that was."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def admitted(call: Callable[[], T]) -> T:
    """What `call` gives; what no waiting mends is a wrong setting, and raises `ConfigError`.

    For the start of a process. Later a refusal is waited for like an outage: whoever took a
    permission away may give it back.
    """
    try:
        return call()
    except (errors.StoreRefused, errors.StoreFailed) as error:
        raise errors.ConfigError(str(error)) from None
