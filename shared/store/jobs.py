"""Validations: jobs that are cut into chunks, shared by all workers, and judged once."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan

from shared.config import PoCConfig
from shared.data import ProofBatch
from shared.errors import CouldNotCompute, PoCError
from shared.settings import Settings
from shared.store.dead_letters import DeadLetters
from shared.store.keys import Keys
from shared.store.rounds import Message
from shared.store.scripts import Client, Scripts, redis_errors

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some nonces of a validation that one worker computes under a lease."""

    token: str
    job: str
    start: int
    count: int
    attempts: int
    #: It failed too often: it is only to be committed, without distances.
    given_up: bool
    error: str
    batch: ProofBatch
    config: PoCConfig

    @property
    def nonces(self) -> tuple[int, ...]:
        """The nonces to compute."""
        return tuple(self.batch.nonces[self.start : self.start + self.count])


@dataclass(frozen=True, slots=True)
class Computed:
    """A validation whose chunks are all in. `dist` is NaN where nothing could be computed."""

    id: str
    round_id: str
    batch: ProofBatch
    config: PoCConfig
    dist: list[float]
    error: str
    #: What computed it, as JSON; the last chunk's.
    profile: str


class Jobs:
    """The validations of a namespace."""

    def __init__(
        self,
        redis: Client,
        scripts: Scripts,
        keys: Keys,
        settings: Settings,
        dead_letters: DeadLetters,
    ) -> None:
        self._redis, self._scripts, self._keys, self._settings = redis, scripts, keys, settings
        self._dead_letters = dead_letters
        # What the last chunk was of: the next one mostly is, too, and a batch may be megabytes.
        self._opened: tuple[str, ProofBatch, PoCConfig] | None = None

    def claim(self, worker: str, token: str) -> Chunk | None:
        """The next chunk for `worker`; the caller chooses `token` so that it can ask again."""
        while True:
            answer = self._scripts.call(
                "claim_chunk",
                self._claim_keys() | {"chunks": self._keys("chunks"), "clock": self._keys("clock")},
                token=token,
                worker=worker,
                lease_ms=round(self._settings.lease_s * 1000),
                max_attempts=self._settings.max_attempts,
            )
            if answer is None:
                return None
            claim = answer["claim"]
            opened = self._open(claim["job"])
            _, batch, config = opened or ("", ProofBatch.empty(), _NO_CONFIG)
            chunk = Chunk(
                token=token,
                job=claim["job"],
                start=int(claim["start"]),
                count=int(claim["count"]),
                attempts=int(claim["attempts"]),
                given_up=claim["given_up"],
                error=claim.get("error", ""),
                batch=batch,
                config=config,
            )
            if opened:
                return chunk
            # The validation ended while the chunk waited: drop it and look on.
            self.commit(chunk, [])

    def commit(
        self,
        chunk: Chunk,
        dist: Sequence[float],
        error: str | None = None,
        profile: str | None = None,
    ) -> str | None:
        """Keep a chunk's distances (NaN: could not) once; None, or why they were refused.

        Those of a model of another fingerprint than the first chunk's count as not computed.
        """
        answer = self._scripts.call(
            "commit_chunk",
            self._claim_keys()
            | {name: self._keys(name, chunk.job) for name in ("job", "job_dist")}
            | {"verdicts": self._keys("verdicts")},
            token=chunk.token,
            job=chunk.job,
            start=str(chunk.start),
            count=chunk.count,
            dist=json.dumps([d if isfinite(d) else None for d in dist]),
            error=error,
            profile=profile,
            wake=self._keys.wake,
        )
        refused: str | None = answer.get("refused")
        return refused

    def give_back(self, chunk: Chunk, error: str | None = None) -> None:
        """Free a chunk; `error` counts as a failed attempt."""
        self._scripts.call(
            "give_back",
            self._claim_keys(),
            token=chunk.token,
            error=error,
            wake=self._keys.wake,
        )

    def next_computed(self) -> Computed | None:
        """A validation that waits for its verdict; it stays in the queue until `finish`.

        One that this version can't read ends with an error.
        """
        while (raw := self._dead_letters.head("verdicts")) is not None:
            job = raw.decode(errors="replace")
            with redis_errors():
                fields, parts = self._read(job)
                if "batch" not in fields:  # another clerk has finished it, or it never was
                    if self._redis.lrem(self._keys("verdicts"), 0, raw):
                        log.error("verdicts: dropped %.80r: no open validation has this id", raw)
                    continue
            try:
                return _computed(job, fields, parts)
            except _UNREADABLE as error:
                self._give_up(job, error)
        return None

    def finish(
        self,
        job: Computed,
        result: str | None = None,
        error: PoCError | None = None,
        message: Message | None = None,
    ) -> None:
        """End a validation with `result` (a ValidatedBatch as JSON) or `error`, once."""
        self._finish(job.id, job.round_id, result, error, message)

    @property
    def tickets(self) -> str:
        """The key that has the open validations, which are their own tickets."""
        return self._keys("jobs")

    def progress(self) -> dict[str, dict[str, int]]:
        """Nonces done and total of each open validation."""
        with redis_errors():
            jobs = self._redis.zrange(self.tickets, 0, -1)
            with self._redis.pipeline(transaction=False) as pipe:
                for job in jobs:
                    pipe.hmget(self._keys("job", job), ["done", "total"])
                counts = pipe.execute()
        return {
            job: {"done": int(done or 0), "total": int(total or 0)}
            for job, (done, total) in zip(jobs, counts, strict=True)
        }

    def _read(self, job: str) -> tuple[dict[str, str], dict[str, str]]:
        """A validation and its distances, at one moment: another clerk may end it in between."""
        if not job:
            return {}, {}
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(self._keys("job", job))
            pipe.hgetall(self._keys("job_dist", job))
            fields, parts = pipe.execute()
        return fields, parts

    def _open(self, job: str) -> tuple[str, ProofBatch, PoCConfig] | None:
        """The batch and the config of a validation, which never change; None when it has ended."""
        key = self._keys("job", job)
        with redis_errors():
            if self._redis.hget(key, "state") != "OPEN":
                return None
            opened = self._opened
            if opened is None or opened[0] != job:
                batch, config = self._redis.hmget(key, ["batch", "config"])
                if not batch:  # it has ended since
                    return None
                try:
                    self._opened = opened = (
                        job,
                        ProofBatch.model_validate_json(batch),
                        PoCConfig.model_validate_json(config),
                    )
                except _UNREADABLE as error:
                    self._give_up(job, error)
                    return None
        return opened

    def _give_up(self, job: str, why: Exception) -> None:
        """End a validation that another version or a stray hand wrote: its caller is told."""
        log.error("validation %s can't be read: %s", job, why)
        # Of thousands of bad nonces each has its line.
        message = f"this version of the worker can't read the validation: {str(why)[:500]}"
        self._finish(job, "", error=CouldNotCompute(message))

    def _finish(
        self,
        job: str,
        round_id: str,
        result: str | None = None,
        error: PoCError | None = None,
        message: Message | None = None,
    ) -> None:
        names = ("verdicts", "jobs", "endings", "outbox", "status", "callbacks", "clock")
        keys = {name: self._keys(name) for name in names}
        keys |= {name: self._keys(name, job) for name in ("job", "job_dist")}
        if round_id:
            keys["counted"] = self._keys("round", round_id)
        self._scripts.call(
            "finish_job",
            keys,
            job=job,
            result=result,
            error=error and {"error": type(error).__name__, "message": str(error)},
            message=message and message.as_args(),
            keep_s=self._settings.keep_rounds_s,
            wake=self._keys.wake,
        )

    def _claim_keys(self) -> dict[str, str]:
        return {"claims": self._keys("chunk_claims"), "leases": self._keys("chunk_leases")}


#: What reading a validation raises that was not written by this version.
_UNREADABLE = (ValueError, TypeError, LookupError)
# Stands in for the config of a validation that has ended and is not looked at.
_NO_CONFIG = PoCConfig(block_hash="-", block_height=0, public_key="-", r_target=1.0)


def _computed(job: str, fields: dict[str, str], parts: dict[str, str]) -> Computed:
    batch = ProofBatch.model_validate_json(fields["batch"])
    # A chunk that was given up has no distances.
    dist = [nan] * len(batch)
    for start, part in parts.items():
        found = [nan if d is None else d for d in json.loads(part)]
        dist[int(start) : int(start) + len(found)] = found
    return Computed(
        id=job,
        round_id=fields["round"],
        batch=batch,
        config=PoCConfig.model_validate_json(fields["config"]),
        dist=dist,
        error=fields.get("error", ""),
        profile=fields.get("profile", ""),
    )
