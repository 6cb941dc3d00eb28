"""The app, and the process that serves it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.applications import Starlette
from starlette.routing import Mount

from shared import logs, serving
from shared.api import create_app as status_api
from shared.errors import InvalidRequest, PoCError
from shared.gateway import tls
from shared.gateway.access import Access
from shared.gateway.deployed import Refused
from shared.gateway.node import Node
from shared.gateway.routes import others, proofs
from shared.settings import Settings
from shared.store import Store

#: Where the network's paths begin: behind a node's proxy, and without it.
PREFIXES = ("/api/v1/inference/pow", "/api/v1/pow")
#: Below which the status API is, in a process that serves both.
BESIDE = "/node"
#: Wrong fields that an answer names; a large job may have thousands.
SHOW_ERRORS = 10


def create_app(settings: Settings, store: Store) -> FastAPI:
    """The gateway over `store`, which is closed when it shuts down."""
    node = Node(settings, store)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await node.aclose()
        store.close()

    app = FastAPIOffline(
        title="Proof of Compute: gateway",
        description=f"The network's HTTP contract before the node `{settings.namespace}`.",
        version="2",
        lifespan=lifespan,
    )
    app.state.node = node
    app.add_middleware(Access, settings=settings)
    for prefix in PREFIXES:
        app.include_router(proofs, prefix=prefix)
    app.include_router(others)
    serving.tell_trouble(app, PoCError)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(InvalidRequest)
    async def invalid(_: Request, error: InvalidRequest) -> JSONResponse:
        # A worker may allow other receivers than we do; its callers call that field otherwise.
        return JSONResponse({"detail": str(error).replace("callback_url", "url")}, 400)

    @app.exception_handler(RequestValidationError)
    async def wrong(_: Request, error: RequestValidationError) -> JSONResponse:
        # What was sent is not repeated: it may be long, or be text that no answer can hold.
        shown = [
            {
                "type": each["type"],
                "loc": [_printable(part) for part in each["loc"]],
                "msg": _printable(each["msg"]),
            }
            for each in error.errors()[:SHOW_ERRORS]
        ]
        return JSONResponse({"detail": shown}, 422)

    return app


def serve(settings: Settings, *, with_api: bool = False) -> None:
    """Answer on `settings.gateway_host` and `gateway_port` until SIGINT or SIGTERM.

    Raises `ConfigError` if it can't listen there, may not without tokens, or if Redis refuses.
    """
    logs.as_json(settings)  # what is refused here is a line of that, too
    known = bool(settings.gateway_tls_client_ca)
    tokens = bool(settings.gateway_tokens)
    serving.refuse_open(settings, "gateway", guarded=known or tokens, who="command the node")
    if with_api:
        settings = settings.model_copy(
            update={"api_host": settings.gateway_host, "api_root_path": BESIDE}
        )
        tokens = bool(settings.api_tokens)
        serving.refuse_open(settings, "api", guarded=known or tokens, who="read the rounds")
    context = tls.context_of(settings)
    protocol = tls.protocol_over(context) if context else None
    store = Store(settings)
    serving.ask_redis(store)
    app = create_app(settings, store)
    node: Node = app.state.node
    if not with_api:
        serving.serve(app, settings, "gateway", "gateway", node.end, protocol)
        return
    api = status_api(settings)

    def end() -> None:
        node.end()
        api.state.feed.end()

    serving.serve(_both(app, api), settings, "gateway", "gateway", end, protocol)


def _both(gateway: FastAPI, api: FastAPI) -> Starlette:
    """Each with its own limits and tokens."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with (
            gateway.router.lifespan_context(gateway),
            api.router.lifespan_context(api),
        ):
            yield

    return Starlette(routes=[Mount(BESIDE, api), Mount("", gateway)], lifespan=lifespan)


def _printable(text: object) -> object:
    return text.encode(errors="replace").decode() if isinstance(text, str) else text
