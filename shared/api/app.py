"""The app, and the process that serves it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from shared import logs, serving
from shared.api.events import Feed, GoneClients
from shared.api.limits import Limits
from shared.api.page import add_page
from shared.api.routes import INTEGERS, health, metrics, rounds
from shared.errors import StoreUnavailable
from shared.metrics import Exposition
from shared.settings import Settings
from shared.store import Store


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
    app.state.tokens = serving.Tokens(settings.api_tokens)
    app.add_middleware(Limits, rate=settings.api_rate, prefix=settings.api_root_path)
    app.add_middleware(GoneClients)
    app.include_router(rounds)
    app.include_router(metrics)
    app.include_router(health)
    add_page(app, settings.api_root_path)
    serving.tell_trouble(app, StoreUnavailable)
    return app


def serve(settings: Settings) -> None:
    """Answer on `settings.api_host` and `api_port` (0: any free one) until SIGINT or SIGTERM.

    Raises `ConfigError` if it can't listen there, or may not without tokens, or if Redis refuses.
    """
    logs.as_json(settings)  # what is refused here is a line of that, too
    guarded = bool(settings.api_tokens)
    serving.refuse_open(settings, "api", guarded=guarded, who="read the rounds")
    store = Store(settings)
    serving.ask_redis(store)
    app = create_app(settings, store)
    serving.serve(app, settings, "api", "status API", app.state.feed.end)
