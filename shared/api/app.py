"""The app, and the process that serves it."""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline

from shared import logs
from shared.api.events import Feed
from shared.api.limits import RETRY_AFTER_S, Limits
from shared.api.page import add_page
from shared.api.routes import INTEGERS, health, metrics, rounds
from shared.errors import ConfigError, StoreFailed, StoreUnavailable
from shared.listener import listen
from shared.metrics import Exposition
from shared.settings import Settings
from shared.store import Store, admitted

#: Connections at a time; more are told to come back. Each poller has one, and so has each page.
MAX_CONNECTIONS = 500
#: Seconds that answers may still take when the process ends; a client that does not read is cut.
GRACE_S = 5


def create_app(settings: Settings, store: Store | None = None) -> FastAPI:
    """The API over `store` (default: its own), which is closed when the app shuts down."""
    reads = Store(settings) if store is None else store

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        app.state.feed.end()
        reads.close()

    app = FastAPIOffline(
        title="Proof of Compute: status",
        description=f"What the node of namespace `{settings.namespace}` does. {INTEGERS}",
        version="1",
        lifespan=lifespan,
    )
    app.state.store = reads
    app.state.exposition = Exposition(settings.namespace, reads.overview)
    app.state.feed = Feed(reads.overview)
    tokens = settings.api_tokens.get_secret_value() if settings.api_tokens else ""
    app.state.tokens = [token.encode() for token in tokens.split(",") if token]
    app.add_middleware(Limits, rate=settings.api_rate, prefix=settings.api_root_path)
    app.include_router(rounds)
    app.include_router(metrics)
    app.include_router(health)
    add_page(app, settings.api_root_path)

    @app.exception_handler(StoreFailed)
    async def failed(_: Request, error: StoreFailed) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 500)

    @app.exception_handler(StoreUnavailable)
    async def unavailable(_: Request, error: StoreUnavailable) -> JSONResponse:
        return JSONResponse(
            {"detail": str(error)}, 503, headers={"Retry-After": str(RETRY_AFTER_S)}
        )

    return app


def serve(settings: Settings) -> None:
    """Answer on `settings.api_host` and `api_port` (0: any free one) until SIGINT or SIGTERM.

    Raises `ConfigError` if it can't listen there, or may not without tokens, or if Redis refuses.
    """
    # uvicorn's own lines, unless ours are JSON.
    log_config = None if logs.as_json(settings) else uvicorn.config.LOGGING_CONFIG
    if not (settings.api_tokens or settings.api_public or _is_loopback(settings.api_host)):
        raise ConfigError(
            f"POC_API_HOST={settings.api_host}: everybody who reaches it could read the rounds; "
            "set POC_API_TOKENS, or POC_API_PUBLIC=true if that is meant"
        )
    store = Store(settings)
    with suppress(StoreUnavailable):  # it may come
        admitted(store.workers.listing)
    try:
        listener = listen(settings.api_host, settings.api_port)
    except OSError as error:
        raise ConfigError(
            f"POC_API_PORT={settings.api_port}: can't listen on {settings.api_host} "
            f"({error.strerror}); choose another port or POC_API_HOST"
        ) from None
    app = create_app(settings, store)
    config = uvicorn.Config(
        app,
        log_config=log_config,
        log_level=settings.log_level.lower(),
        access_log=settings.log_level == "DEBUG",  # pollers come every second
        limit_concurrency=MAX_CONNECTIONS,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    host, port = listener.getsockname()[:2]
    place = f"[{host}]" if ":" in host else host
    logging.getLogger("uvicorn.error").info("the status API listens on http://%s:%d", place, port)
    # uvicorn ends in order and then lets the signal have its usual effect: ours is none.
    signal.signal(signal.SIGTERM, lambda *_: None)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup's wish
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    with listener, suppress(KeyboardInterrupt):  # it has ended by then, in order
        _Server(config, app.state.feed).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Ends the streams that `feed` feeds before it waits for what is under way."""

    def __init__(self, config: uvicorn.Config, feed: Feed) -> None:
        super().__init__(config)
        self._feed = feed

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._feed.end()
        await super().shutdown(sockets)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
