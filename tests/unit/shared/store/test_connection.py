"""What Redis says, in our words: what may pass, and what has to be mended."""

from __future__ import annotations

import ssl

import pytest
from redis import exceptions
from redis.sentinel import MasterNotFoundError

from shared.errors import ConfigError, StoreError, StoreFailed, StoreRefused, StoreUnavailable
from shared.store.connection import admitted, redis_errors


def raised(error: exceptions.RedisError) -> StoreError:
    """What the store raises for `error`."""
    with pytest.raises(StoreError) as caught, redis_errors():
        raise error
    return caught.value


def not_verified() -> exceptions.RedisError:
    """As redis-py tells that TLS found another server."""
    try:
        try:
            raise ssl.SSLCertVerificationError("certificate verify failed")
        except ssl.SSLError as error:
            raise exceptions.ConnectionError("certificate verify failed") from error
    except exceptions.RedisError as error:
        return error


def test_the_password_of_sentinels_is_told_from_that_of_redis() -> None:
    """And what redis-py tells of each of them is not."""
    all_of_it = "No master found for 'n' : Redis<password=hunter2> - AuthenticationError('no')"
    refused = raised(MasterNotFoundError(all_of_it))
    assert isinstance(refused, StoreRefused)
    assert "sentinel_password" in str(refused)
    assert "hunter2" not in str(refused)


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (exceptions.AuthenticationError("invalid username-password pair"), "user and password"),
        (exceptions.NoPermissionError("User api has no permissions"), "name a user"),
        (exceptions.ResponseError("DB index is out of range"), "another database"),
        (not_verified(), "ssl_ca_certs"),
        (exceptions.ResponseError("SELECT is not allowed in cluster mode"), "another database"),
    ],
)
def test_what_no_waiting_mends_is_refused(error: exceptions.RedisError, remedy: str) -> None:
    """And at a start it is a wrong setting."""
    refused = raised(error)
    assert isinstance(refused, StoreRefused)
    assert str(refused).startswith(f"Redis refuses: {error}; ")
    assert remedy in str(refused)

    def call() -> None:
        raise refused

    with pytest.raises(ConfigError, match="Redis refuses"):
        admitted(call)


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ConnectionError("Connection refused"),
        exceptions.TimeoutError("Timeout reading from socket"),
        exceptions.BusyLoadingError("Redis is loading the dataset in memory"),
        exceptions.ReadOnlyError("You can't write against a read only replica."),
        exceptions.MasterDownError("Link with MASTER is down"),
        exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        exceptions.ResponseError("BUSY Redis is busy running a script"),
        exceptions.ResponseError("NOREPLICAS Not enough good replicas to write."),
        exceptions.ResponseError("MISCONF Redis is configured to save RDB snapshots"),
        # As Redis 6.2 tells what a script met, and as later ones do.
        exceptions.ResponseError("Error running script (call to f_1): @user_script:3: -OOM"),
        exceptions.ResponseError("READONLY You can't write. script: 1, on @user_script:3."),
    ],
)
def test_what_may_pass_is_an_outage(error: exceptions.RedisError) -> None:
    """A fail-over, too: its worker waits, from the start on."""
    assert type(raised(error)) is StoreUnavailable


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ResponseError("unknown command 'EVALSHA', with args beginning with: "),
        exceptions.ResponseError("WRONGTYPE Operation against a key of the wrong kind of value"),
        exceptions.ResponseError("user_script:3: Expected value but found invalid token"),
        exceptions.InvalidResponse("Protocol Error: b'HTTP/1.1 400 Bad Request'"),
        exceptions.DataError("Invalid input of type: 'NoneType'"),
    ],
)
def test_all_else_has_failed(error: exceptions.RedisError) -> None:
    """It is no outage, however long one waits: at a start it ends the process."""
    failed = raised(error)
    assert type(failed) is StoreFailed
    assert str(failed).startswith(f"Redis can't do what is needed: {str(error).rstrip('.')}; see")

    def call() -> None:
        raise failed

    with pytest.raises(ConfigError, match="can't do what is needed"):
        admitted(call)
