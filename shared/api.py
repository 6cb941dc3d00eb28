"""The status API: what Redis holds about a node, over HTTP. It only reads.

    GET /api/v1/pow/status                the current round, the workers, the open validations
    GET /api/v1/pow/rounds                the rounds that are still kept
    GET /api/v1/pow/rounds/{round_id}     a round that is still kept
    GET /api/v1/pow/nonces                valid nonces in pages, in order of discovery
    GET /metrics                          all of it in numbers, for Prometheus
    GET /livez                            the process lives
    GET /readyz                           Redis answers and a worker is ready

Each answers HEAD, too, with which load balancers probe. The pages at /docs and /redoc take nothing
from elsewhere, so that they work where there is no internet.

Commands go through Celery; there is nothing here that changes a round. While Redis is away every
route but /livez and /metrics answers 503, and recovers by itself.

With POC_API_TOKENS what is told about rounds is for those who send one of the tokens; health and
the description of the routes stay open.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi_offline import FastAPIOffline
from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from pydantic import BaseModel, Field
from starlette.types import ASGIApp, Receive, Scope, Send

from shared import logs
from shared.config import MAX_VALID, PoCState, RoundId
from shared.errors import ConfigError, StoreFailed, StoreUnavailable
from shared.listener import listen
from shared.metrics import Exposition
from shared.settings import Settings
from shared.status import KeptRound, NodeStatus, RoundStatus
from shared.store import Store, admitted

#: Seconds after which a client that was told 503 may ask again.
RETRY_AFTER_S = 1
#: Bytes of a refused body that are read all the same, and seconds that it has to come.
DRAINED, DRAIN_S = 65_536, 1.0
#: Connections at a time; more are told to come back. Each poller has one.
MAX_CONNECTIONS = 500
_INTEGERS = (
    "Nonces are integers of up to 2^63 - 1: read them as 64-bit integers, since JavaScript's "
    "numbers, for one, are exact only up to 2^53."
)


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str = Field(description="what is wrong, in a sentence")


class NoncePage(BaseModel):
    """Some of a round's valid nonces."""

    round_id: str = Field(description="the round; empty before the first")
    state: PoCState = Field(description="the round's state when the page was read")
    total_valid: int = Field(description="valid nonces that the round had when the page was read")
    start: int = Field(description="position of the page's first nonce, counted from 0")
    next: int = Field(description="`start` of the next page, or of a later look for what is new")
    nonces: list[int] = Field(description=f"in order of discovery. {_INTEGERS}")
    distances: list[float] = Field(description="the distance of each nonce, in the same order")


class KeptRounds(BaseModel):
    """The rounds that can still be looked at."""

    rounds: list[KeptRound] = Field(description="newest first, without their nonces")


class Ready(BaseModel):
    """The node can compute."""

    workers: int = Field(description="workers that live and have loaded their model")


async def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


Reads = Annotated[Store, Depends(_store)]
_bearer = HTTPBearer(auto_error=False, description="one of POC_API_TOKENS, if there are any")


async def _authorize(
    request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    """Refuse who has none of the tokens. Which of them comes close is not told by the time."""
    tokens: list[bytes] = request.app.state.tokens
    sent = given.credentials.encode() if given else b""
    matches = [hmac.compare_digest(sent, token) for token in tokens]
    if tokens and not any(matches):
        raise HTTPException(
            401,
            "this needs the header `Authorization: Bearer <token>` with one of POC_API_TOKENS",
            headers={"WWW-Authenticate": "Bearer"},
        )


Newest = Annotated[
    int, Query(ge=0, le=1000, description="how many of the newest valid nonces to show")
]

#: The answers that are no answer, for OpenAPI.
_Refusals = dict[int | str, dict[str, Any]]
_UNAVAILABLE: _Refusals = {
    500: {"model": Problem, "description": "Redis can't do what is needed, and why"},
    503: {"model": Problem, "description": "Redis does not answer; try again"},
}
_REFUSED: _Refusals = {
    401: {"model": Problem, "description": "None of the tokens was sent"},
    413: {"model": Problem, "description": "The request has a body"},
    429: {"model": Problem, "description": "Too many requests from this address"},
}
_UNKNOWN: _Refusals = {404: {"model": Problem, "description": "The round is unknown, or expired"}}

health = APIRouter(tags=["health"])
rounds = APIRouter(
    prefix="/api/v1/pow",
    tags=["rounds"],
    responses=_UNAVAILABLE | _REFUSED,
    dependencies=[Depends(_authorize)],
)


metrics = APIRouter(tags=["metrics"], responses=_REFUSED, dependencies=[Depends(_authorize)])


@metrics.get(
    "/metrics",
    response_class=Response,
    response_description="The metrics, as OpenMetrics where that is accepted",
    responses={200: {"content": {"text/plain": {}, "application/openmetrics-text": {}}}},
)
def scrape(request: Request) -> Response:
    """What Prometheus scrapes; docs/metrics.md lists it.

    While Redis is away this answers, too, with `poc_redis_up 0`.
    """
    exposition: Exposition = request.app.state.exposition
    text, content_type = exposition.scrape(request.headers.get("Accept", ""))
    return Response(text, headers={"Content-Type": content_type})


# Not in a thread like the others: those may all be waiting for Redis.
@health.get("/livez", response_description="It lives")
async def livez() -> dict[str, str]:
    """Whether this process lives. Never asks Redis."""
    return {"status": "alive"}


@health.get(
    "/readyz",
    response_description="The node can compute",
    responses={503: {"model": Problem, "description": "It can't, and why"}},
)
def readyz(store: Reads) -> Ready:
    """Whether Redis answers and at least one live worker has loaded its model."""
    workers = len(store.workers.listing())  # they register when they have loaded
    if not workers:
        raise HTTPException(503, "no worker is ready", headers={"Retry-After": str(RETRY_AFTER_S)})
    return Ready(workers=workers)


@rounds.get("/status", response_description="The node's status")
def status(store: Reads, newest: Newest = 100) -> NodeStatus:
    """The current round with its newest valid nonces, the workers and the open validations.

    Before the first init everything is zero and the state is IDLE. Times are seconds, points in
    time are Unix times by Redis' clock, rates are nonces per second. `valid_nonces` are oldest
    first, `valid_distances` go with them; `/api/v1/pow/nonces` gives those that are not shown.
    """
    return store.status(newest)


@rounds.get("/rounds", response_description="The rounds")
def kept_rounds(
    store: Reads,
    newest: Annotated[int, Query(ge=1, le=1000, description="how many rounds to give")] = 100,
) -> KeptRounds:
    """The rounds that are still kept, newest first: the current one and those that it replaced.

    `kept_until` is 0 for the current one. A round that is STOPPED ended at its `updated_at`.
    """
    return KeptRounds(rounds=store.rounds.kept(newest))


@rounds.get("/rounds/{round_id}", response_description="The round's status", responses=_UNKNOWN)
def round_status(store: Reads, round_id: RoundId, newest: Newest = 100) -> RoundStatus:
    """A round that is still kept: the current one, or one that ended not long ago.

    The fields are the round's of the status; once it has ended, only its `callbacks_*` change.
    """
    return _kept(store.rounds.status(round_id, newest), round_id)


@rounds.get("/nonces", response_description="A page of valid nonces", responses=_UNKNOWN)
def nonces(
    store: Reads,
    round_id: Annotated[
        RoundId | None, Query(description="a round that is kept; the current one when left out")
    ] = None,
    start: Annotated[
        int, Query(ge=0, le=MAX_VALID, description="position to start from, counted from 0")
    ] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000, description="the most nonces to give")] = 1000,
) -> NoncePage:
    """Valid nonces in order of discovery.

    To follow a round, ask again with `start` set to the `next` of the last page; all is told when
    `next` has reached `total_valid` and the state is not GENERATING. Name the round when you do:
    without `round_id` a page may be of a newer round than the last one was.
    """
    # State and counters first: a round that has ended by then has all its nonces in the list.
    counted = _kept(store.rounds.status(round_id), round_id)
    found, distances = store.rounds.found(counted.round_id, start, limit)
    return NoncePage(
        round_id=counted.round_id,
        state=counted.state,
        total_valid=counted.total_valid,
        start=start,
        next=start + len(found),
        nonces=found,
        distances=distances,
    )


def create_app(settings: Settings, store: Store | None = None) -> FastAPI:
    """The API over `store` (default: its own), which is closed when the app shuts down."""
    reads = Store(settings) if store is None else store

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        reads.close()

    app = FastAPIOffline(
        root_path=settings.api_root_path,
        title="Proof of Compute: status",
        description=f"What the node of namespace `{settings.namespace}` does. {_INTEGERS}",
        version="1",
        lifespan=lifespan,
    )
    app.state.store = reads
    app.state.exposition = Exposition(settings.namespace, reads.overview)
    tokens = settings.api_tokens.get_secret_value() if settings.api_tokens else ""
    app.state.tokens = [token.encode() for token in tokens.split(",") if token]
    app.add_middleware(_Limits, rate=settings.api_rate)
    app.include_router(rounds)
    app.include_router(metrics)
    app.include_router(health)

    @app.exception_handler(StoreFailed)
    async def failed(_: Request, error: StoreFailed) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 500)

    @app.exception_handler(StoreUnavailable)
    async def unavailable(_: Request, error: StoreUnavailable) -> JSONResponse:
        return JSONResponse(
            {"detail": str(error)}, 503, headers={"Retry-After": str(RETRY_AFTER_S)}
        )

    return app


class _Limits:
    """Refuses bodies, which no route reads, and who asks too often, before anything is done.

    What goes on is a GET, also for HEAD, whose body the server leaves out; and its path has the
    prefix of POC_API_ROOT_PATH, as ASGI has it, whether or not the proxy took that away.
    """

    def __init__(self, app: ASGIApp, rate: int) -> None:
        self._app = app
        self._rate = RateLimitItemPerSecond(rate)
        self._limiter = FixedWindowRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer: JSONResponse | None = None
        if scope["type"] == "http":
            address = (scope["client"] or ("",))[0]
            headers = dict(scope["headers"])
            prefix: str = scope.get("root_path", "")
            path = scope["path"]
            if path.startswith(f"{prefix}/"):
                path = path[len(prefix) :]
            if b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0":
                text, close = "no route here takes a body", {"Connection": "close"}
                answer = JSONResponse({"detail": text}, 413, headers=close)
                await _drain(receive)
            # A supervisor must not take a busy process for a dead one.
            elif path != "/livez" and not self._limiter.hit(self._rate, address):
                text, later = "too many requests", {"Retry-After": str(RETRY_AFTER_S)}
                answer = JSONResponse({"detail": text}, 429, headers=later)
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            scope = {**scope, "method": method, "path": prefix + path}
        await (answer or self._app)(scope, receive, send)


async def _drain(receive: Receive) -> None:
    """Take in a small body: a connection that is closed on unread bytes loses the answer, too."""
    left = DRAINED
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            while left > 0:
                message = await receive()
                if not message.get("more_body"):
                    return
                left -= len(message["body"])


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
    config = uvicorn.Config(
        create_app(settings, store),
        log_config=log_config,
        log_level=settings.log_level.lower(),
        access_log=settings.log_level == "DEBUG",  # pollers come every second
        limit_concurrency=MAX_CONNECTIONS,
        server_header=False,
    )
    host, port = listener.getsockname()[:2]
    place = f"[{host}]" if ":" in host else host
    logging.getLogger("uvicorn.error").info("the status API listens on http://%s:%d", place, port)
    # uvicorn ends in order and then lets the signal have its usual effect: ours is none.
    signal.signal(signal.SIGTERM, lambda *_: None)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup's wish
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    with listener, suppress(KeyboardInterrupt):  # it has ended by then, in order
        uvicorn.Server(config).run(sockets=[listener])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _kept(status: RoundStatus | None, round_id: str | None) -> RoundStatus:
    if status is None:
        raise HTTPException(404, f"round {round_id} is unknown, or ended too long ago")
    return status
