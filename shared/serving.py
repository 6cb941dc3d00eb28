"""What the processes that answer HTTP have in common: where they listen, who may ask, their end."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import SecretStr
from starlette.types import ASGIApp, Scope

from shared import logs
from shared.errors import ConfigError, PoCError, StoreFailed, StoreUnavailable
from shared.listener import listen
from shared.settings import PREFIX, Settings, tokens_of
from shared.store import Store, admitted

#: Connections at a time; more are told to come back. Each poller has one, and so has each page.
MAX_CONNECTIONS = 500
#: Seconds that answers may still take when the process ends.
GRACE_S = 5
#: Seconds that a Redis has at the start to say that it refuses us.
ASK_S = 1.0
#: Seconds in which a client must have read something then, or it is cut.
READS_S = 0.5
#: Seconds after which a client that was told 429 or 503 may ask again.
RETRY_AFTER_S = 1


class Tokens:
    """The bearer tokens of a setting; without any, everybody who reaches the process may ask."""

    def __init__(self, setting: SecretStr | None) -> None:
        self._tokens = [token.encode() for token in tokens_of(setting)]

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def have(self, sent: str) -> bool:
        """Whether `sent` is one of them. Which of them comes close is not told by the time."""
        matches = [hmac.compare_digest(sent.encode(), token) for token in self._tokens]
        return any(matches)


class Rate:
    """How often an address may ask, by a clock that nobody sets."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._second, self._asked = 0, Counter[str]()

    def allows(self, scope: Scope) -> bool:
        """Whether the client of a request may ask once more; that counts."""
        if (second := int(monotonic())) != self._second:
            self._second, self._asked = second, Counter()
        address = address_of(scope)
        self._asked[address] += 1
        return self._asked[address] <= self._per_second


def address_of(scope: Scope) -> str:
    """Who asks; empty if the server does not know."""
    return str((scope["client"] or ("",))[0])


def tell_trouble(app: FastAPI, passing: type[PoCError]) -> None:
    """Answer 503 to errors of the kind `passing`, but 500 to what no waiting mends."""

    @app.exception_handler(StoreFailed)
    async def failed(_: Request, error: StoreFailed) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 500)

    @app.exception_handler(passing)
    async def not_now(_: Request, error: PoCError) -> JSONResponse:
        return JSONResponse(
            {"detail": str(error)}, 503, headers={"Retry-After": str(RETRY_AFTER_S)}
        )


def refuse_open(settings: Settings, part: str, *, guarded: bool, who: str) -> None:
    """Raise `ConfigError` if `part` (api, gateway) would listen beyond loopback for everybody.

    `guarded` says that it asks for something, and `who` what anybody could do if it did not.
    """
    host, variable = getattr(settings, f"{part}_host"), f"{PREFIX}{part.upper()}"
    if not (guarded or getattr(settings, f"{part}_public") or _is_loopback(host)):
        certificates = hasattr(settings, f"{part}_tls_client_ca")
        ways = f"{variable}_TOKENS" + (f" or {variable}_TLS_CLIENT_CA" if certificates else "")
        raise ConfigError(
            f"{variable}_HOST={host}: everybody who reaches it could {who}; "
            f"set {ways}, or {variable}_PUBLIC=true if that is meant"
        )


def ask_redis(store: Store) -> None:
    """Raise `ConfigError` if Redis refuses us, which takes it no time.

    One that is away or hangs may come: it is not waited for.
    """
    refused: list[ConfigError] = []

    def ask() -> None:
        with suppress(StoreUnavailable):
            try:
                admitted(store.workers.listing)
            except ConfigError as error:
                refused.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ASK_S)
    if refused:
        raise refused[0]


def serve(
    app: ASGIApp,
    settings: Settings,
    part: str,
    title: str,
    at_end: Callable[[], None] = lambda: None,
    over_tls: type[asyncio.Protocol] | None = None,
) -> None:
    """Serve `app` where the settings of `part` (api, gateway) say, until SIGINT or SIGTERM.

    A port of 0 is any free one. `at_end` is called before what is under way is waited for, and
    `over_tls` is what speaks https.
    Raises `ConfigError` if it can't listen there.
    """
    host, port = getattr(settings, f"{part}_host"), getattr(settings, f"{part}_port")
    try:
        listener = listen(host, port)
    except OSError as error:
        variable = f"{PREFIX}{part.upper()}"
        raise ConfigError(
            f"{variable}_PORT={port}: can't listen on {host} ({error.strerror}); "
            f"choose another port or {variable}_HOST"
        ) from None
    config = uvicorn.Config(
        app,
        # uvicorn's own lines, unless ours are JSON.
        log_config=None if logs.as_json(settings) else uvicorn.config.LOGGING_CONFIG,
        log_level=settings.log_level.lower(),
        access_log=settings.log_level == "DEBUG",  # pollers come every second
        limit_concurrency=MAX_CONNECTIONS,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
        http=over_tls or "auto",
    )
    host, port = listener.getsockname()[:2]
    place = f"[{host}]" if ":" in host else host
    log = logging.getLogger("uvicorn.error")
    log.info("the %s listens on http%s://%s:%d", title, "s" if over_tls else "", place, port)
    # uvicorn ends in order and then lets the signal have its usual effect: ours is none.
    signal.signal(signal.SIGTERM, lambda *_: None)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup's wish
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    with listener, suppress(KeyboardInterrupt):  # it has ended by then, in order
        _Server(config, at_end).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Calls `at_end` before it waits for what is under way."""

    def __init__(self, config: uvicorn.Config, at_end: Callable[[], None]) -> None:
        super().__init__(config)
        self._at_end = at_end

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._at_end()
        cutting = asyncio.create_task(self._cut_who_does_not_read())
        try:
            await super().shutdown(sockets)
        finally:
            cutting.cancel()

    async def _cut_who_does_not_read(self) -> None:
        """End connections of which nothing is taken: what is to be sent there keeps them open."""
        before: dict[Any, int] = {}
        while True:
            transports = [each.transport for each in self.server_state.connections]
            left = {each: each.get_write_buffer_size() for each in transports if each}
            for transport, size in left.items():
                if size and size == before.get(transport):
                    transport.abort()
            before = left
            await asyncio.sleep(READS_S)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
