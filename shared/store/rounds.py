"""The round: its commands, its claims, its status. What changes it is one atomic script each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from shared.config import PoCConfig
from shared.errors import InvalidRequest
from shared.requests import GenerateRequest, InitRequest, RoundRequest, StopRequest, ValidateRequest
from shared.schemes import DEFAULT, SCHEMES, Proof
from shared.status import KeptRound, RoundStatus
from shared.store.ask import Ask
from shared.store.connection import redis_errors
from shared.store.context import Context
from shared.store.current import CurrentRound
from shared.store.outbox import Message
from shared.store.scripts import flat, fresh_id


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
    #: The trace that it is of; empty without one.
    traceparent: str = ""

    @property
    def public_key(self) -> str:
        """Whose nonces they are."""
        return self.config.public_key

    @property
    def nonces(self) -> tuple[int, ...]:
        """The nonces at these positions."""
        return self.config.nonces(self.start, self.count)


@dataclass(frozen=True, slots=True)
class Computed:
    """What came of a computed claim."""

    #: Nonces that have a proof.
    checked: int
    #: Those of them that are valid, with their proofs as Redis keeps them.
    valid: Sequence[tuple[int, str]]
    #: Nonces without a proof, and what is said of them.
    failed: int = 0
    error: str | None = None
    #: The callback that goes out if it counts.
    message: Message | None = None
    #: What moves the last bits of the proofs, as JSON.
    profile: str = ""


class Rounds:
    """The rounds of a namespace. `command` is the id that a repeat is recognised by."""

    def __init__(self, context: Context, current: CurrentRound) -> None:
        self._context, self._current = context, current
        self._redis, self._keys, self._scripts = context.redis, context.keys, context.scripts

    def init(self, command: str, request: InitRequest) -> RoundStatus:
        """Open a round. Raises `RoundInProgress` while one is generating, unless it replaces."""
        return self._carry_out("init", command, request)

    def generate(
        self, command: str, request: GenerateRequest = GenerateRequest(), traceparent: str = ""
    ) -> RoundStatus:
        """Generate, after opening a round when there is a config; `command` becomes a ticket.

        `traceparent` is the trace of what then begins. The script that brings it to the count or
        the time of the request stops it.

        Raises `RoundNotInitialized`, `RoundMismatch` when it names another round than the current
        one, `InvalidRequest` for more valid nonces than a round may hold, and with a config what
        `init` raises.
        """
        most = self._context.settings.max_valid
        if request.until_valid and request.until_valid > most:
            raise InvalidRequest(
                f"until_valid={request.until_valid}: a round holds at most {most} valid nonces "
                "(POC_MAX_VALID)"
            )
        return self._carry_out(
            "generate",
            command,
            request,
            until_valid=request.until_valid,
            for_ms=None if request.seconds is None else max(1, round(request.seconds * 1000)),
            traceparent=traceparent or None,
        )

    def validate(self, command: str, request: ValidateRequest = ValidateRequest()) -> RoundStatus:
        """End generation. Raises as `generate` does."""
        return self._carry_out("validate", command, request)

    def stop(self, command: str, request: StopRequest = StopRequest()) -> RoundStatus:
        """Stop the round; one that is named and not there yet will be refused when it comes."""
        return self._command("stop", command, round_id=request.round_id)

    def claim(
        self,
        worker: str,
        token: str,
        fingerprint: str | None = None,
        schemes: Collection[str] | None = None,
    ) -> Claim | None:
        """The next positions for `worker`, or None unless a round is generating: see `Ask`."""
        ask = Ask(worker, token, ("batch",), fingerprint, schemes)
        round_id, answer = self.answer_to_claim(ask)
        return None if "idle" in answer else self.claim_of(ask, round_id, answer)

    def commit(self, claim: Claim, computed: Computed) -> str | None:
        """Count a computed claim once; None when it counted, else why it was refused."""
        refused: str | None = self.answer_to_commit(claim, computed).get("refused")
        return refused

    # Answers as the scripts give them: what there is may be of another kind than a batch.

    def answer_to_claim(self, ask: Ask) -> tuple[str, dict[str, Any]]:
        """The round that was current, and what `ask` got; `idle` for nothing."""
        return self._current.call("claim", ask=ask.as_args(self._context))

    def answer_to_commit(
        self, claim: Claim, computed: Computed, ask: Ask | None = None
    ) -> dict[str, Any]:
        """Why the commit was refused, if it was, and what `ask` got, if it got something."""
        answer: dict[str, Any] = self._scripts.call(
            "commit",
            round=claim.round_id,
            epoch=claim.epoch,
            token=claim.token,
            checked=computed.checked,
            failed=computed.failed,
            valid=[word for n, proof in computed.valid for word in (str(n), proof)],
            max_valid=self._context.settings.max_valid,
            error=computed.error,
            message=computed.message and computed.message.as_args(),
            profile=computed.profile,
            ask=ask and ask.as_args(self._context),
        )
        return answer

    def claim_of(self, ask: Ask, round_id: str, answer: Mapping[str, Any]) -> Claim:
        """The batch that `ask` got."""
        claim = answer["claim"]
        return Claim(
            token=ask.token,
            round_id=round_id,
            epoch=answer["epoch"],
            config=_config_of(answer["config"]),
            start=int(claim["start"]),
            count=int(claim["count"]),
            attempts=int(claim["attempts"]),
            traceparent=answer.get("traceparent", ""),
        )

    def wants(self, claim: Claim) -> bool:
        """Whether a commit of `claim` could still count: its round did not change meanwhile."""
        with redis_errors():
            epoch = self._redis.hget(self._keys("run", claim.round_id), "epoch")
        return bool(epoch == claim.epoch)

    def give_back(self, claim: Claim, error: str | None = None) -> None:
        """Free a claim's positions; `error` counts as a failed attempt."""
        self._scripts.call("give_back", round=claim.round_id, token=claim.token, error=error)

    def current(self) -> tuple[str, PoCConfig | None]:
        """Id and config of the current round; ("", None) before the first."""
        return self._current.read()

    def status(self, round_id: str | None = None, newest: int = 0) -> RoundStatus | None:
        """The current round, or the named one, with its `newest` valid nonces; None if unknown."""
        key = self._keys("round", round_id) if round_id else self._keys("status")
        with redis_errors():
            fields = self._redis.hgetall(key)
        if not fields and round_id:
            return None
        return self.complete(fields, newest)

    def kept(self, newest: int) -> list[KeptRound]:
        """The `newest` rounds that are still kept, newest first, without their nonces."""
        with redis_errors():
            # In this order a round that is replaced meanwhile is seen as current, or as kept.
            current = self._redis.hget(self._keys("status"), "round_id")
            ended = self._redis.zrevrange(self._keys("kept"), 0, newest - 1, withscores=True)
            until = ({current: 0.0} if current else {}) | {name: ms / 1000 for name, ms in ended}
            with self._redis.pipeline(transaction=False) as pipe:
                for round_id in until:
                    pipe.hgetall(self._keys("round", round_id))
                hashes = pipe.execute()
        found = [
            KeptRound.of({**fields, "kept_until": repr(at)})
            for fields, at in zip(hashes, until.values(), strict=True)
            if fields  # it may have expired by now
        ]
        return sorted(found, key=lambda each: each.started_at, reverse=True)[:newest]

    def complete(self, fields: Mapping[str, str], newest: int) -> RoundStatus:
        """The status of a round from its hash and the `newest` of the nonces that it counts."""
        total = int(fields.get("total_valid", 0))
        round_id = fields.get("round_id", "")
        scheme = fields.get("scheme", DEFAULT)
        nonces, proofs = self.found(round_id, max(0, total - newest), newest, scheme)
        return RoundStatus.of(fields, nonces, proofs)

    def traceparent(self, round_id: str) -> str:
        """The trace of a round; empty without one."""
        with redis_errors():
            return self._redis.hget(self._keys("run", round_id), "traceparent") or ""

    def found(
        self, round_id: str, start: int, count: int, scheme: str = DEFAULT
    ) -> tuple[list[int], list[Proof]]:
        """`count` valid nonces with their proofs, in order of discovery from `start` on.

        `scheme` is the round's. Of one that this process does not know proofs are as Redis keeps
        them: who looks on need not have what computes.
        """
        if not round_id or count <= 0:
            return [], []
        loaded = SCHEMES[scheme].loaded if scheme in SCHEMES else str
        with redis_errors():
            nonces = self._redis.lrange(self._keys("found", round_id), start, start + count - 1)
            kept = self._redis.hmget(self._keys("nonces", round_id), nonces) if nonces else []
        if None in kept:  # the round expired in between
            return [], []
        return [int(n) for n in nonces], [loaded(each) for each in kept]

    def open_tickets(self) -> tuple[RoundStatus, list[str]]:
        """The current round and the tasks that wait for its end."""
        status = self.status() or RoundStatus()
        if not status.round_id:
            return status, []
        with redis_errors():
            tasks = self._redis.smembers(self._keys("tickets", status.round_id))
        return status, sorted(tasks)

    def _carry_out(
        self, verb: str, command: str, request: RoundRequest, **args: Any
    ) -> RoundStatus:
        """Bring the current round, or with a config a new one, into the state of `verb`."""
        args["keep_s"] = self._context.settings.keep_rounds_s
        if request.config is None:
            args["round_id"] = request.round_id
        else:
            args |= {
                "new_round": request.round_id or fresh_id(),
                "replace": request.replace,
                "config": request.config.model_dump_json(),
                "fields": flat(RoundStatus.fields_of(request.config)),
                "positions": _exact(request.config.positions),
            }
        return self._command(verb, command, **args)

    def _command(self, verb: str, command: str, **args: Any) -> RoundStatus:
        memory_s = self._context.settings.command_memory_s
        _, answer = self._current.call(
            verb, command=command, epoch=fresh_id(), memory_s=memory_s, **args
        )
        return RoundStatus.of(answer["status"])


def _exact(positions: int) -> str | None:
    """As a Lua number holds it; None for more than it can count, and nobody ever hands out."""
    return str(positions) if positions < 2**53 else None


@lru_cache(maxsize=8)
def _config_of(json: str) -> PoCConfig:
    """Every claim of a round comes with the same one."""
    return PoCConfig.model_validate_json(json)
