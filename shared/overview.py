"""All that can be seen of a node at a glance: what the page, metrics and receipts are made of."""

from __future__ import annotations

from pydantic import Field

from shared.status import Frozen, NodeStatus


class Sample(Frozen):
    """How far a round was at some time."""

    #: Unix time by Redis' clock.
    at: float
    checked: int
    valid: int


class Bin(Frozen):
    """The nonces of a round whose distances lie from `low` up to `high`."""

    low: float
    high: float
    nonces: int


class Outcome(Frozen):
    """How a validation ended."""

    #: The task that asked for it.
    id: str
    #: Unix time by Redis' clock.
    at: float
    public_key: str = ""
    block_hash: str = ""
    block_height: int = 0
    node_id: int = 0
    nonces: int = 0
    n_invalid: int = 0
    #: How probable it is that an honest node has at least this many invalid nonces: the p-value.
    probability_honest: float | None = None
    fraud_detected: bool = False
    #: How far claims lay from what was recomputed, on average and at most.
    apart_mean: float | None = None
    apart_max: float | None = None
    #: Why there is no verdict.
    error: str = ""


class Totals(Frozen):
    """What happened in this namespace so far. None of it ever shrinks, while Redis keeps it."""

    rounds: int = 0
    checked: int = 0
    valid: int = 0
    failed: int = 0
    #: Claims of dead workers that others took over.
    taken_over: int = 0
    incidents: int = 0
    #: Callbacks that were delivered, and those that were not, by the reason.
    delivered: int = 0
    refused: dict[str, int] = Field(default_factory=dict)
    #: Validations that ended, by how: honest, fraud, error, cancelled; computed, without claims.
    validations: dict[str, int] = Field(default_factory=dict)


class Course(Frozen):
    """What a round did, as Redis has it at one moment."""

    #: Unix time by Redis' clock.
    at: float
    #: The course of the round: hundreds of samples at most, oldest first.
    history: list[Sample] = Field(default_factory=list)
    #: Distances of the round, in bins that touch; the outermost two have no far end.
    histogram: list[Bin] = Field(default_factory=list)


class Overview(Course):
    """A node at one moment, with the course of its current round."""

    namespace: str
    node: NodeStatus
    #: Whether proofs are distances, so that there is a histogram of them.
    has_distances: bool = True
    #: The distance that a nonce must stay below to be valid, and about which share of the nonces,
    #: 0 to 1, lies there; None while no worker says how large the model's vocabulary is.
    valid_below: float = 0
    expected_share: float | None = None
    #: About how long the generation still takes; None if it has no end, or nobody can tell.
    seconds_left: float | None = None
    #: Validations that ended, newest first.
    outcomes: list[Outcome] = Field(default_factory=list)
    totals: Totals = Field(default_factory=Totals)
    #: Batches of the current round that workers have, or that wait to be taken over from them.
    claims: int = 0
    #: Seconds after its last heartbeat that a worker is shown no more.
    worker_lives_s: float = 0
    #: Commands that wait for a worker.
    queue_length: int = 0
    #: Callbacks that wait for their delivery, and for how many seconds the oldest of them does.
    outbox_length: int = 0
    outbox_oldest_seconds: float = 0
    #: Why the last delivery failed, of any round; `tried again` in front if it still may come.
    outbox_error: str = ""
