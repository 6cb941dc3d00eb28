"""The status of a round: what pollers, tasks and the status API show."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from shared.config import PoCConfig, PoCState
from shared.schemes import DEFAULT, SCHEMES, Proof

#: The fields of a config that the status shows under the same names.
_FROM_CONFIG = (
    "block_hash",
    "block_height",
    "public_key",
    "node_id",
    "node_count",
    "batch_size",
    "seq_len",
    "strong_rng",
)


def printable(text: str) -> str:
    """`text` as a log or a terminal may show it: what a caller chose must not steer either."""
    return text if text.isprintable() else repr(text)[1:-1]


def _from_json(value: Any) -> Any:
    """A hash holds it as JSON, or as nothing yet."""
    return json.loads(value or "{}") if isinstance(value, str) else value


def _list_from_json(value: Any) -> Any:
    return json.loads(value or "[]") if isinstance(value, str) else value


class Frozen(BaseModel):
    """The base of what is read from Redis: it holds strings, and may be of another version."""

    # Lax where the config is strict.
    model_config = ConfigDict(frozen=True, extra="ignore")


class RoundStatus(Frozen):
    """One round as its hash shows it; all zero before the first init.

    `r_target`, `fraud_threshold`, `submit_margin` and `valid_distances` are of the scheme
    `distance`; `terms` and `valid_proofs` have what any other has instead.
    """

    state: PoCState = PoCState.IDLE
    round_id: str = ""
    block_hash: str = ""
    block_height: int = 0
    public_key: str = ""
    #: What a proof is.
    scheme: str = DEFAULT
    terms: dict[str, Any] = Field(default_factory=dict)
    r_target: float = 0
    fraud_threshold: float = 0
    node_id: int = 0
    node_count: int = 0
    batch_size: int = 0
    seq_len: int = 0
    strong_rng: bool = False
    submit_margin: float = 0
    #: Nonces computed and counted, each once.
    total_checked: int = 0
    total_valid: int = 0
    #: Nonces without a finite distance, and those of batches that failed too often.
    total_failed: int = 0
    #: Where its generation is to end, or did: at so many valid nonces, at this Unix time by Redis'
    #: clock; 0 if nobody asked for that.
    until_valid: int = 0
    ends_at: float = 0
    #: Unix time of the init by Redis' clock.
    started_at: float = 0
    updated_at: float = 0
    #: Seconds since the init, not counting those while STOPPED.
    elapsed_seconds: float = 0
    generating_seconds: float = 0
    #: total_checked / elapsed_seconds.
    rate_per_second: float = 0
    #: The same over the last seconds of generating.
    recent_rate_per_second: float = 0
    callbacks_pending: int = 0
    callbacks_delivered: int = 0
    callbacks_refused: int = 0
    #: Why the last one failed; `tried again` in front if it still may be delivered.
    callback_error: str = ""
    #: Callbacks that were refused, by the reason.
    refusals: dict[str, int] = Field(default_factory=dict)
    error: str = ""
    #: What computed the newest distances: model fingerprint, engine, dtype, tile, ...
    profile: Annotated[dict[str, str], BeforeValidator(_from_json)] = Field(default_factory=dict)
    #: The newest valid nonces, oldest first, and their distances.
    valid_nonces: list[int] = Field(default_factory=list)
    valid_distances: list[float] = Field(default_factory=list)
    valid_proofs: list[Proof] = Field(default_factory=list)

    @property
    def proofs(self) -> Sequence[Proof]:
        """What the newest valid nonces gave, whichever the scheme."""
        return self.valid_distances or self.valid_proofs

    @property
    def valid_below(self) -> float:
        """The distance that a nonce must stay below to be valid; 0 if its scheme has none."""
        return self.r_target - self.submit_margin

    @property
    def has_distances(self) -> bool:
        """Whether its proofs are distances, which views show how they are spread."""
        return self.scheme in SCHEMES and SCHEMES[self.scheme].has_distances

    @property
    def title_of_terms(self) -> str:
        """What its scheme asks for, in a few words, for logs."""
        if self.has_distances:
            return f"r_target {self.r_target:g}"
        fields = ", ".join(f"{name} {value}" for name, value in self.terms.items())
        return f"{self.scheme}: {fields}" if fields else self.scheme

    @property
    def config(self) -> PoCConfig:
        """What the round was asked for, as far as a status shows it; the rest is as by default."""
        names = () if self.terms or self.scheme not in SCHEMES else SCHEMES[self.scheme].in_status
        shown = {name: getattr(self, name) for name in (*_FROM_CONFIG, *names)}
        return PoCConfig(scheme=self.scheme, **shown, **self.terms)

    @property
    def is_due(self) -> bool:
        """Whether it has come to where it was to end."""
        enough = 0 < self.until_valid <= self.total_valid
        return enough or 0 < self.ends_at <= self.updated_at

    @property
    def seconds_left(self) -> float | None:
        """About how long the generation still takes; None if it has no end, or nobody can tell."""
        left = []
        if self.state != PoCState.GENERATING:
            return None
        if self.ends_at:
            left.append(self.ends_at - self.updated_at)
        if self.until_valid and self.total_valid:
            missing = self.until_valid - self.total_valid
            left.append(missing * self.generating_seconds / self.total_valid)
        return max(0.0, min(left)) if left else None

    @property
    def title(self) -> str:
        """The round in a few words, for logs."""
        if not self.round_id:
            return f"no round, {self.state}"
        block = f"block {printable(self.block_hash)} at {self.block_height}"
        return f"round {self.round_id} of {block} is {self.state}"

    @classmethod
    def of(
        cls,
        fields: Mapping[str, str],
        nonces: Sequence[int] = (),
        proofs: Sequence[Proof] = (),
    ) -> Self:
        """The status that the hash `fields` holds."""
        known: dict[str, Any] = dict(fields)
        scheme = SCHEMES.get(fields.get("scheme", DEFAULT))
        if scheme and scheme.name != DEFAULT:
            known["terms"] = {
                name: json.loads(fields[name]) for name in scheme.in_status if name in fields
            }
        name = "valid_distances" if scheme and scheme.has_distances else "valid_proofs"
        known["refusals"] = {
            name.removeprefix("refused:"): count
            for name, count in fields.items()
            if name.startswith("refused:")
        }
        return cls(**known | {"valid_nonces": list(nonces), name: list(proofs)})

    @staticmethod
    def fields_of(config: PoCConfig) -> dict[str, str]:
        """The hash of a round that just began."""
        zeros = ("checked", "valid", "failed")
        callbacks = ("pending", "delivered", "refused")
        return (
            {"scheme": config.scheme}
            | {name: _text(getattr(config, name)) for name in _FROM_CONFIG}
            | {name: json.dumps(getattr(config.terms, name)) for name in config.terms.in_status}
            | {f"total_{name}": "0" for name in zeros}
            | {f"callbacks_{name}": "0" for name in callbacks}
            | {"error": "", "callback_error": "", "profile": ""}
        )


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else repr(value)


class KeptRound(RoundStatus):
    """A round that can still be looked at. One that is STOPPED ended at `updated_at`."""

    #: Unix time by Redis' clock until which it is kept; 0 for the current round.
    kept_until: float = 0


class Cancellation(Frozen):
    """What became of a command to cancel a validation."""

    #: Its ticket.
    validation: str
    #: False: it had ended before, with a verdict or an error.
    cancelled: bool


class CallbackCounts(Frozen):
    """What became of callbacks."""

    callbacks_pending: int = 0
    callbacks_delivered: int = 0
    callbacks_refused: int = 0
    callback_error: str = ""


class OutboxStatus(Frozen):
    """The callbacks of all rounds and validations that wait for their delivery."""

    waiting: int = 0
    #: Seconds for which the oldest of them waits.
    oldest_seconds: float = 0
    #: Why the last delivery failed; `tried again` in front if it still may come.
    error: str = ""


class GpuReading(Frozen):
    """How a GPU was at a worker's last heartbeat; None where the card does not tell."""

    name: str = ""
    uuid: str = ""
    #: Share of the time, 0 to 1, that kernels ran on it.
    utilization: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None


class WorkerStatus(Frozen):
    """One worker as its last heartbeat shows it."""

    name: str
    #: What it does: idle, generating, validating.
    state: str = ""
    device: str = ""
    model: str = ""
    fingerprint: str = ""
    #: Nonces per second over the last two heartbeats, or the last two batches if those took longer.
    rate_per_second: float = 0
    #: Nonces computed since it started, counted by the round or not.
    computed: int = 0
    #: Share of that time that the device had batches; it may still have waited for its host.
    busy: float = 0
    started_at: float = 0
    heartbeat_at: float = 0
    pid: int = 0
    host: str = ""
    #: Length of its model's logits, by which the share of valid nonces can be guessed.
    vocab_size: int = 0
    #: Positions of a sequence at most.
    max_seq_len: int = 0
    #: Sequences of one forward.
    tile: int = 0
    #: Batches computed since it started, and the seconds that the device had some.
    batches: int = 0
    busy_seconds: float = 0
    #: Functional checks that passed since it started, and the Unix time of the last.
    checks: int = 0
    checked_at: float = 0
    #: Of Python and of the packages that may move the last bits of a distance.
    versions: Annotated[dict[str, str], BeforeValidator(_from_json)] = Field(default_factory=dict)
    gpus: Annotated[list[GpuReading], BeforeValidator(_list_from_json)] = Field(
        default_factory=list
    )


class Commit(Frozen):
    """Nonces that a worker committed: consecutive batches of a round, or of a validation."""

    #: One of the two is given.
    round_id: str = ""
    validation: str = ""
    #: The first position, in the node's sequence of nonces or in the batch, and how many follow.
    start: int
    count: int
    first_nonce: int
    last_nonce: int
    #: When the last of them was committed, by the worker's clock.
    at: float

    def followed_by(self, other: Self) -> Self | None:
        """Both as one, if `other` goes on where this one ends."""
        ours = (self.round_id, self.validation, self.start + self.count)
        if ours != (other.round_id, other.validation, other.start):
            return None
        return other.model_copy(
            update={
                "start": self.start,
                "count": self.count + other.count,
                "first_nonce": self.first_nonce,
            }
        )


class Incident(Frozen):
    """A worker that had to end, and which of its results are in doubt."""

    worker: str
    host: str = ""
    device: str = ""
    model: str = ""
    #: When it ended, by its own clock.
    at: float
    #: Why, as its log says it.
    reason: str
    #: When its functional check last passed; 0 unless it failed since.
    sound_until: float = 0
    #: Nonces that it committed since then, and the newest of these commits.
    in_doubt: int = 0
    commits: list[Commit] = Field(default_factory=list)


class NodeStatus(RoundStatus):
    """The current round, and who works on it."""

    workers: list[WorkerStatus] = Field(default_factory=list)
    #: The newest workers that had to end, newest first.
    incidents: list[Incident] = Field(default_factory=list)
    #: Nonces done and total of each validation that is open, by its task id.
    validations: dict[str, dict[str, int]] = Field(default_factory=dict)
    #: Callbacks of validations that brought a config of their own, so that no round counts them.
    validation_callbacks: CallbackCounts = Field(default_factory=CallbackCounts)
