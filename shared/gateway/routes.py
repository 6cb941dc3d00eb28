"""Which path is which."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request
from pydantic import BaseModel, Field

from shared.gateway.deployed import Answer
from shared.gateway.messages import GenerateBody, InitBody
from shared.gateway.node import Node


class Problem(BaseModel):
    """Why there is no answer."""

    detail: Any = Field(description="what is wrong, and of which field")


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        400: "what is asked can't be done, and why",
        401: "none of the tokens was sent",
        403: "the token may only read",
        404: "no such job",
        408: "the body did not come in time",
        409: "another round is generating, or another model or seq_len is deployed",
        413: "the body is too long",
        422: "a field is missing or wrong: which",
        429: "too much is waiting, or too many requests came from this address",
        500: "Redis can't do what is needed, and why",
        503: "no worker, or Redis, answers now",
    }.items()
}


async def _node(request: Request) -> Node:
    node: Node = request.app.state.node
    return node


Reaches = Annotated[Node, Depends(_node)]
JobId = Annotated[str, Path(description="a job's `request_id`")]

proofs = APIRouter(tags=["proof of compute"], responses=_PROBLEMS)
others = APIRouter(tags=["node"], responses=_PROBLEMS)


@proofs.post("/init/generate")
async def begin(asked: InitBody, node: Reaches) -> Answer:
    """Begin a round, which generates until it is stopped.

    Found artifacts are posted to `{url}/generated`.
    """
    return await node.rounds.begin(asked)


@proofs.post("/generate")
async def compute(asked: GenerateBody, node: Reaches, request: Request) -> Answer:
    """Compute the vectors of nonces, or judge those that are claimed: a job.

    Its end is posted to `{url}/generated` or `{url}/validated`, and is the answer with `wait`.
    """

    async def hangs_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return await node.jobs.compute(asked, hangs_up)


@proofs.get("/generate/{request_id}")
async def job(request_id: JobId, node: Reaches) -> Answer:
    """How a job stands, or how it ended."""
    return await node.jobs.job(request_id)


@proofs.get("/status")
async def status(node: Reaches) -> Answer:
    """What the node does."""
    return await node.rounds.status()


@proofs.post("/stop")
@others.post("/api/v1/stop")
async def stop(node: Reaches) -> Answer:
    """End the round. What was computed is delivered all the same, and jobs go on."""
    return await node.rounds.stop()


@proofs.get("/versions")
async def versions(node: Reaches) -> Answer:
    """Of what computes."""
    return await node.deployed.versions()


@others.get("/api/v1/state")
async def state(node: Reaches) -> Answer:
    """What the network's node software says of itself."""
    return await node.deployed.state()


@others.get("/v1/models")
async def models(node: Reaches) -> Answer:
    """The model that workers have, by its name on the network."""
    return await node.deployed.models()


@others.get("/api/v1/gate")
async def gate(node: Reaches) -> Answer:
    """For a proxy: 200 if chat may go on, 503 with what to answer if not (POC_GATE_CHAT)."""
    return await node.rounds.gate()


@others.get("/health")
@others.get("/readyz")
async def ready(node: Reaches) -> Answer:
    """Whether Redis answers and a worker has loaded its model."""
    return await node.deployed.ready()


@others.get("/livez")
async def alive() -> Answer:
    """Whether this process lives. Never asks Redis."""
    return {"status": "alive"}
