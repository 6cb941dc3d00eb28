"""The round: its commands, its claims, its status. Each method is one atomic script."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.config import PoCConfig
from shared.data import ProofBatch
from shared.errors import PoCError, RoundMismatch, RoundNotInitialized
from shared.settings import Settings
from shared.status import RoundStatus
from shared.store.keys import KEYS, Keys
from shared.store.scripts import Client, Scripts, redis_errors
from shared.transitions import MESSAGES

#: Seconds that the reference of a model outlives its last worker.
REFERENCE_S = 7 * 86_400
#: The keys that every round has its own of.
_PER_ROUND = ("round", "nonces", "found", "run", "claims", "leases", "tickets")


@dataclass(frozen=True, slots=True)
class Claim:
    """Positions of a round's nonce sequence that one worker computes under a lease."""

    token: str
    round_id: str
    epoch: str
    config: PoCConfig
    start: int
    count: int
    attempts: int

    @property
    def nonces(self) -> tuple[int, ...]:
        """The nonces at these positions."""
        return self.config.nonces(self.start, self.count)


@dataclass(frozen=True, slots=True)
class Reference:
    """What a model's first worker gave in its functional check."""

    distances: tuple[float, ...]
    worker: str


@dataclass(frozen=True, slots=True)
class Message:
    """A callback, frozen: it is delivered as it is, or not at all."""

    url: str
    body: str
    #: What tells a receiver that it has this message already.
    key: str
    #: The round whose counters show it; empty when there is none.
    round: str
    deadline_s: float

    def as_args(self) -> dict[str, Any]:
        """What a script takes."""
        return {name: getattr(self, name) for name in self.__slots__}


class Rounds:
    """The current round of a namespace."""

    def __init__(self, redis: Client, scripts: Scripts, keys: Keys, settings: Settings) -> None:
        self._redis, self._scripts, self._keys, self._settings = redis, scripts, keys, settings
        # Which round the scripts should declare keys of: a hint that they correct.
        self._current = ""

    def init(
        self, command: str, config: PoCConfig, round_id: str | None = None, replace: bool = False
    ) -> RoundStatus:
        """Open a round. Raises `RoundInProgress` while one is generating, unless `replace`."""
        return self._command("init", command, **self._opening(config, round_id, replace))

    def generate(
        self,
        command: str,
        config: PoCConfig | None = None,
        round_id: str | None = None,
        replace: bool = False,
    ) -> RoundStatus:
        """Generate, after opening a round when there is a `config`; `command` becomes a ticket.

        Raises `RoundNotInitialized`, `RoundMismatch` when `round_id` is not the current one, and
        with a `config` what `init` raises.
        """
        return self._enter("generate", command, config, round_id, replace)

    def validate(
        self,
        command: str,
        config: PoCConfig | None = None,
        round_id: str | None = None,
        replace: bool = False,
    ) -> RoundStatus:
        """End generation. Raises as `generate` does."""
        return self._enter("validate", command, config, round_id, replace)

    def stop(self, command: str, round_id: str | None = None) -> RoundStatus:
        """Stop the round; one that is named and not there yet will be refused when it comes."""
        named = self._keys("round", round_id) if round_id else None
        return self._command("stop", command, named=named, tombstone=round_id, round_id=round_id)

    def open_job(self, command: str, batch: ProofBatch, config: PoCConfig | None) -> None:
        """Record the validation of `batch`; `command` is its ticket.

        `config` says what it is judged by, and its batch_size is what a worker takes at a time;
        None takes the current round's, which then must be of the same block. Raises
        `RoundNotInitialized` or `RoundMismatch`.
        """
        keys = {
            name: self._keys(name, command if KEYS[name].per else "")
            for name in ("command", "job", "jobs", "chunks", "verdicts")
        }
        while True:
            round_id, judged_by = ("", config) if config else self.current()
            current = self._current if config else round_id
            refusal = _refusal(batch, judged_by, named=config is not None)
            size = judged_by.batch_size if judged_by else 1
            answer = self._call_once(
                "open_job",
                current,
                keys,
                command=command,
                batch=batch.model_dump_json(),
                config=judged_by and judged_by.model_dump_json(),
                job_round=round_id,
                total=len(batch),
                chunks=[(at, min(size, len(batch) - at)) for at in range(0, len(batch), size)],
                refusal=refusal and {"error": type(refusal).__name__, "message": str(refusal)},
                memory_s=self._settings.command_memory_s,
            )
            if "moved" not in answer:
                return
            self._current = answer["moved"]

    def claim(self, worker: str, token: str, fingerprint: str | None = None) -> Claim | None:
        """The next positions for `worker`, or None unless a round is generating.

        The caller chooses `token`, so that it can ask again when the answer was lost. A round
        that began with a model of another `fingerprint` gives nothing, and says so in its error.
        """
        round_id, answer = self._call(
            "claim",
            {},
            token=token,
            worker=worker,
            fingerprint=fingerprint,
            lease_ms=round(self._settings.lease_s * 1000),
            max_attempts=self._settings.max_attempts,
        )
        if "idle" in answer:
            return None
        claim = answer["claim"]
        return Claim(
            token=token,
            round_id=round_id,
            epoch=answer["epoch"],
            config=PoCConfig.model_validate_json(answer["config"]),
            start=int(claim["start"]),
            count=int(claim["count"]),
            attempts=int(claim["attempts"]),
        )

    def commit(
        self,
        claim: Claim,
        checked: int,
        valid: Sequence[tuple[int, float]],
        failed: int = 0,
        error: str | None = None,
        message: Message | None = None,
        profile: str = "",
    ) -> str | None:
        """Count a computed claim once; None when it counted, else why it was refused."""
        answer = self._call_once(
            "commit",
            claim.round_id,
            {"outbox": self._keys("outbox")},
            epoch=claim.epoch,
            next_epoch=_fresh(),
            token=claim.token,
            checked=checked,
            failed=failed,
            valid=[(str(nonce), repr(distance)) for nonce, distance in valid],
            max_valid=self._settings.max_valid,
            error=error,
            message=message and message.as_args(),
            profile=profile,
        )
        refused: str | None = answer.get("refused")
        return refused

    def wants(self, claim: Claim) -> bool:
        """Whether a commit of `claim` could still count: its round did not change meanwhile."""
        with redis_errors():
            epoch = self._redis.hget(self._keys("run", claim.round_id), "epoch")
        return bool(epoch == claim.epoch)

    def give_back(self, claim: Claim, error: str | None = None) -> None:
        """Free a claim's positions; `error` counts as a failed attempt."""
        self._scripts.call(
            "give_back",
            {
                "claims": self._keys("claims", claim.round_id),
                "leases": self._keys("leases", claim.round_id),
            },
            token=claim.token,
            error=error,
            wake=self._keys.wake,
        )

    def heartbeat(
        self,
        worker: str,
        model: Mapping[str, str],
        fields: Mapping[str, str],
        tokens: Sequence[str],
        distances: Sequence[float] = (),
    ) -> Reference | None:
        """Show that `worker` lives, renew its leases and the round's clocks.

        `distances` are those of its functional check; gives the reference of its model, which
        they become when there is none. Raises `ModelMismatch` with the fingerprint that the
        namespace wants.
        """
        keys = {
            "model": self._keys("model"),
            "reference": self._keys("reference", model["fingerprint"]),
            "worker": self._keys("worker", worker),
            "workers": self._keys("workers"),
            "chunk_claims": self._keys("chunk_claims"),
            "chunk_leases": self._keys("chunk_leases"),
        }
        _, answer = self._call(
            "heartbeat",
            keys,
            worker=worker,
            fingerprint=model["fingerprint"],
            pinned=self._settings.model_fingerprint,
            model=_flat(model),
            fields=_flat(fields),
            tokens=list(tokens),
            distances=json.dumps(list(distances)) if distances else None,
            reference_s=REFERENCE_S,
            live_ms=round(self._settings.worker_lives_s * 1000),
            lease_ms=round(self._settings.lease_s * 1000),
            deadline_ms=round(self._settings.batch_deadline * 1000),
        )
        if "distances" not in answer:
            return None
        return Reference(tuple(json.loads(answer["distances"])), answer["worker"])

    def current(self) -> tuple[str, PoCConfig | None]:
        """Id and config of the current round; ("", None) before the first."""
        with redis_errors():
            while round_id := self._redis.hget(self._keys("status"), "round_id"):
                config = self._redis.hget(self._keys("run", round_id), "config")
                # It is missing when the round was replaced and expired in between.
                if config:
                    self._current = round_id
                    return round_id, PoCConfig.model_validate_json(config)
        return "", None

    def status(self, round_id: str | None = None, newest: int = 0) -> RoundStatus | None:
        """The current round, or the named one, with its `newest` valid nonces; None if unknown."""
        key = self._keys("round", round_id) if round_id else self._keys("status")
        with redis_errors():
            fields = self._redis.hgetall(key)
        if not fields and round_id:
            return None
        return self.complete(fields, newest)

    def complete(self, fields: Mapping[str, str], newest: int) -> RoundStatus:
        """The status of a round from its hash and the `newest` of the nonces that it counts."""
        total = int(fields.get("total_valid", 0))
        round_id = fields.get("round_id", "")
        nonces, dist = self.found(round_id, max(0, total - newest), newest)
        return RoundStatus.of(fields, nonces, dist)

    def found(self, round_id: str, start: int, count: int) -> tuple[list[int], list[float]]:
        """`count` valid nonces with their distances, in order of discovery from `start` on."""
        if not round_id or count <= 0:
            return [], []
        with redis_errors():
            nonces = self._redis.lrange(self._keys("found", round_id), start, start + count - 1)
            dist = self._redis.hmget(self._keys("nonces", round_id), nonces) if nonces else []
        if None in dist:  # the round expired in between
            return [], []
        return [int(n) for n in nonces], [float(d) for d in dist]

    def tickets(self, round_id: str) -> str:
        """The key that has the tasks which wait for the end of a round, as long as they do."""
        return self._keys("tickets", round_id)

    def open_tickets(self) -> tuple[RoundStatus, list[str]]:
        """The current round and the tasks that wait for its end."""
        status = self.status() or RoundStatus()
        if not status.round_id:
            return status, []
        with redis_errors():
            tasks = self._redis.smembers(self.tickets(status.round_id))
        return status, sorted(tasks)

    # Calls.

    def _enter(
        self,
        verb: str,
        command: str,
        config: PoCConfig | None,
        round_id: str | None,
        replace: bool,
    ) -> RoundStatus:
        """Bring the current round, or with a `config` a new one, into the state of `verb`."""
        if config is None:
            return self._command(verb, command, round_id=round_id)
        return self._command(verb, command, **self._opening(config, round_id, replace))

    def _opening(self, config: PoCConfig, round_id: str | None, replace: bool) -> dict[str, Any]:
        new = round_id or _fresh()
        return {
            "new_round": new,
            "tombstone": new,
            "replace": replace,
            "config": config.model_dump_json(),
            "fields": _flat(RoundStatus.fields_of(config)),
        }

    def _command(
        self,
        verb: str,
        command: str,
        *,
        named: str | None = None,
        tombstone: str | None = None,
        **args: Any,
    ) -> RoundStatus:
        keys = {"command": self._keys("command", command)}
        if named:
            keys["named"] = named
        if tombstone:
            keys["tombstone"] = self._keys("tombstone", tombstone)
        if new := args.get("new_round"):
            keys |= {f"new_{name}": self._keys(name, new) for name in _PER_ROUND}
        _, answer = self._call(
            verb,
            keys,
            command=command,
            epoch=_fresh(),
            memory_s=self._settings.command_memory_s,
            keep_s=self._settings.keep_rounds_s,
            **args,
        )
        return RoundStatus.of(answer["status"])

    def _call(self, verb: str, keys: Mapping[str, str], **args: Any) -> tuple[str, Any]:
        """Run `verb` on the current round: which one that was, and the answer."""
        current = self._current
        while "moved" in (answer := self._call_once(verb, current, keys, **args)):
            current = self._current = answer["moved"]
        return current, answer

    def _call_once(self, verb: str, current: str, keys: Mapping[str, str], **args: Any) -> Any:
        own = {name: self._keys(name) for name in ("status", "clock", "endings")}
        if current:
            own |= {name: self._keys(name, current) for name in _PER_ROUND}
        return self._scripts.call(
            verb, own | dict(keys), round=current, wake=self._keys.wake, **args
        )


def _refusal(batch: ProofBatch, config: PoCConfig | None, *, named: bool) -> PoCError | None:
    """Why `batch` can't be judged by `config`, the round's or the one `named` beside it."""
    if config is None:
        return RoundNotInitialized(MESSAGES[RoundNotInitialized])
    block, ours = (f"{each.block_hash} at {each.block_height}" for each in (batch, config))
    if block != ours:
        of = "the config beside it" if named else "the current round"
        return RoundMismatch(
            f"the batch is of block {block}, {of} is of block {ours}; "
            "send the config that it was made with"
        )
    # With a single node every nonce is its own.
    if config.node_count == 1:
        return None
    if batch.node_id >= config.node_count:
        return RoundMismatch(f"node_id {batch.node_id} is not in [0, {config.node_count})")
    strangers = [n for n in batch.nonces if n % config.node_count != batch.node_id]
    if strangers:
        return RoundMismatch(
            f"{len(strangers)} of {len(batch)} nonces are not of node {batch.node_id} of "
            f"{config.node_count}, the first is {strangers[0]}"
        )
    return None


def _fresh() -> str:
    # Random, never counted: a fail-over may undo the last writes.
    return secrets.token_hex(8)


def _flat(fields: Mapping[str, str]) -> list[str]:
    return [item for pair in fields.items() for item in pair]
