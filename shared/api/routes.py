"""The routes that answer with JSON, and who may have an answer."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field

from shared.config import MAX_VALID, PoCState
from shared.metrics import Exposition
from shared.overview import Overview
from shared.schemes import Proof
from shared.serving import RETRY_AFTER_S, Tokens
from shared.status import KeptRound, NodeStatus, RoundStatus
from shared.store import Store
from shared.wire import RoundId

INTEGERS = (
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
    nonces: list[int] = Field(description=f"in order of discovery. {INTEGERS}")
    distances: list[float] = Field(
        default_factory=list, description="the distance of each nonce, in the same order"
    )
    proofs: list[Proof] = Field(
        default_factory=list,
        description="instead of distances, in a round of another scheme: the proof of each nonce",
    )


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
    """Refuse who has none of the tokens."""
    tokens: Tokens = request.app.state.tokens
    if tokens and not tokens.have(given.credentials if given else ""):
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


@rounds.get("/overview", response_description="All that the page shows")
def overview(store: Reads) -> Overview:
    """The status without its nonces, and what else can be seen of the node at a glance.

    That is the round's course and the distribution of its distances, how validations ended, what
    waits, and counts that outlive a round.
    """
    return store.overview()


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
    found, proofs = store.rounds.found(counted.round_id, start, limit, counted.scheme)
    return NoncePage(
        round_id=counted.round_id,
        state=counted.state,
        total_valid=counted.total_valid,
        start=start,
        next=start + len(found),
        nonces=found,
        **{"distances" if counted.has_distances else "proofs": proofs},
    )


def _kept(status: RoundStatus | None, round_id: str | None) -> RoundStatus:
    if status is None:
        raise HTTPException(404, f"round {round_id} is unknown, or ended too long ago")
    return status
