"""Any history of commands, workers, clerks and senders, against the rules in plain Python.

Hypothesis makes up what happens and in which order; `node_model.Node` says what has to come of
it. After each step all that Redis shows is compared. A run is the same each time; for more, and
other ones each time: `pytest --hypothesis-profile=thorough tests/unit/shared/store/test_model.py`.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from chunks import claim_chunk
from fake_engine import FakeEngine
from node_model import FULL, OVER, Claims, Held, Limits, Node
from shared.config import PoCConfig
from shared.errors import Cancelled, CouldNotCompute, ModelMismatch, PoCError
from shared.requests import GenerateRequest, InitRequest, StopRequest, ValidateRequest
from shared.schemes import Proof
from shared.status import RoundStatus
from shared.store import Chunk, Claim, Computed, ComputedValidation, Entry, Message, Store, rounds
from shared.store.connection import Client
from shared.store.keys import Keys
from worker.node import pipeline
from worker.node.pipeline import Pipeline

SETTINGS = {
    "lease_s": 30,
    "batch_deadline": 40,
    "max_attempts": 2,
    "max_valid": 12,
    "keep_rounds_s": 10_800,
    "command_memory_s": 7200,
}
LIMITS = Limits(
    lease_ms=30_000,
    deadline_ms=40_000,
    max_attempts=2,
    max_valid=12,
    keep_ms=10_800_000,
    memory_ms=7_200_000,
    worker_lives_ms=30_000,
)

#: A node among three that is called back, one alone that nobody listens to, and one whose nonces
#: end after two batches and a bit, and whose callbacks are joined.
CONFIGS = [
    PoCConfig(
        block_hash="b1",
        block_height=7,
        public_key="k",
        r_target=1.4,
        node_id=1,
        node_count=3,
        batch_size=4,
        callback_url="http://c",
    ),
    PoCConfig(block_hash="b2", block_height=7, public_key="k", r_target=1.4, batch_size=3),
    PoCConfig(
        block_hash="b3",
        block_height=7,
        public_key="k",
        scheme="artifact",
        k_dim=2,
        node_id=999_999,
        node_count=1_000_000,
        batch_size=1000,
        callback_url="http://c",
    ),
]

workers = st.integers(0, 2)
#: One of several, counted from the newest.
which = st.integers(0, 3) | st.integers(0, 1000)
round_ids = st.sampled_from([None, None, None, None, "r1", "r2", "r3"])
configs = st.sampled_from(CONFIGS)
#: Where a generation is to end by itself; thirteen are more than a round may hold.
ends = st.fixed_dictionaries(
    {},
    optional={
        "until_valid": st.sampled_from([1, 3, 5, 13]),
        "seconds": st.sampled_from([0.001, 4.0, 30.0]),
    },
)

#: Who works, what comes of it, which nonces are valid, how many have no distance.
turns = st.tuples(
    workers,
    st.sampled_from(["commit", "commit and claim", "hold", "fail"]),
    st.integers(0, 15),
    st.sampled_from([0, 0, 0, 1]),
)


def proof_of(config: PoCConfig, nonce: int) -> Proof:
    """What `nonce` gives in a round of that scheme."""
    if config.scheme == "distance":
        return nonce / 8
    return base64.b64encode(nonce.to_bytes(4, "little")).decode()


@dataclass
class Taken:
    """Work that a worker was given; it may well not be its own any more."""

    work: Claim | Chunk
    worker: int
    #: The round's epoch at that time.
    epoch: object = None
    #: Committed or given back, as far as its worker knows.
    ended: bool = False


REQUESTS = {
    "init": InitRequest,
    "generate": GenerateRequest,
    "validate": ValidateRequest,
    "stop": StopRequest,
}


def _ask(store: Store, verb: str, id: str, args: dict[str, Any]) -> RoundStatus | bool | None:
    """What the store answers to a command."""
    if verb == "cancel":
        told = args["message"]
        return store.validations.cancel(
            id,
            args["validation"],
            Cancelled("a command wanted that"),
            lambda opened: Message("http://c", "{}", told, opened.round_id, 60),
        )
    if verb == "open_validation":
        return store.validations.open(id, ValidateRequest(**args))
    status: RoundStatus = getattr(store.rounds, verb)(id, REQUESTS[verb](**args))
    return status


class NodeMachine(RuleBasedStateMachine):
    """Three workers, of which one has another model, a controller, clerks and senders."""

    def __init__(
        self,
        redis: Client,
        keys: Keys,
        new_store: Callable[..., Store],
        key_problems: Callable[[], list[str]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        super().__init__()
        # The same history gives the same again.
        fresh = (f"{n:016x}" for n in count())
        for module in (pipeline, rounds):
            monkeypatch.setattr(module, "fresh_id", lambda: next(fresh))
        redis.flushall()
        self.redis, self.keys, self.key_problems = redis, keys, key_problems
        self.model = Node(LIMITS)
        # Each a process of its own, with its own idea of which round is the current one.
        self.stores = [new_store(**SETTINGS) for _ in range(3)]
        self.pipelines = [
            Pipeline(FakeEngine(weights=weights), store, f"w{place}")
            for place, (store, weights) in enumerate(
                zip(self.stores, ["one", "one", "two"], strict=True)
            )
        ]
        self.fingerprints = [each.engine.info.fingerprint for each in self.pipelines]
        #: Whether a worker's last work was a chunk: the next is then a batch, if there is one.
        self.validated = [False] * 3
        self.ids = map(str, count())
        self.sent: list[tuple[str, str, dict[str, Any]]] = []
        self.taken: list[Taken] = []
        self.computed: list[ComputedValidation] = []
        self.entries: list[Entry] = []
        #: Ends that a ticket may have: one each time that its command is carried out.
        self.due: Counter[str] = Counter()
        self.stores[0].outbox._create_group()
        self._stop_the_clock()

    def _stop_the_clock(self) -> None:
        """Let all scripts see the model's time: a clock that would go back stands still."""
        run = type(self.redis).evalsha

        def evalsha(*args: Any) -> Any:
            standing = {"last": self.model.now, "offset": -(10**15)}
            self.redis.hset(self.keys("clock"), mapping=standing)
            return run(self.redis, *args)

        self.redis.evalsha = evalsha

    @staticmethod
    def _one_of(things: list[Any], at: int) -> Any:
        return things[-1 - at % len(things)]

    # A controller.

    @initialize(config=configs, begun=st.sampled_from([True, True, True, False]))
    def begin(self, config: PoCConfig, begun: bool) -> None:
        """Mostly with a round that generates."""
        if begun:
            self._send(0, "generate", next(self.ids), {"config": config})

    @rule(
        verb=st.sampled_from(["init", "generate", "generate", "validate"]),
        config=configs,
        round_id=round_ids,
        replace=st.booleans(),
        ends=ends,
        via=workers,
    )
    def open(
        self,
        verb: str,
        config: PoCConfig,
        round_id: str | None,
        replace: bool,
        ends: dict[str, Any],
        via: int,
    ) -> None:
        args = {"config": config, "round_id": round_id, "replace": replace}
        self._send(via, verb, next(self.ids), args | (ends if verb == "generate" else {}))

    @rule(
        verb=st.sampled_from(["generate", "generate", "generate", "validate", "stop"]),
        round_id=round_ids,
        ends=ends,
        via=workers,
    )
    def go_on(self, verb: str, round_id: str | None, ends: dict[str, Any], via: int) -> None:
        args: dict[str, Any] = {"round_id": round_id}
        self._send(via, verb, next(self.ids), args | (ends if verb == "generate" else {}))

    @rule(verb=st.sampled_from(["stop", "validate"]), via=workers)
    def interrupt(self, verb: str, via: int) -> None:
        """And go on at once: what is in flight is still fenced off."""
        self._send(via, verb, next(self.ids), {})
        self._send(via, "generate", next(self.ids), {})

    @rule(of=configs, size=st.integers(0, 6), config=st.sampled_from([None, *CONFIGS]), via=workers)
    def ask_for_a_verdict(
        self, of: PoCConfig, size: int, config: PoCConfig | None, via: int
    ) -> None:
        nonces = of.nonces(0, size)
        batch = of.terms.batch_of(of, nonces, [proof_of(of, nonce) for nonce in nonces])
        self._send(via, "open_validation", next(self.ids), {"batch": batch, "config": config})

    @precondition(lambda self: self.sent)
    @rule(at=which, open_one=st.booleans(), via=workers)
    def cancel(self, at: int, open_one: bool, via: int) -> None:
        """A validation that is open, or any command: one that has ended, a ticket of a round."""
        ids = sorted(self.model.jobs) if open_one else []
        validation = self._one_of(ids or [command for _, command, _ in self.sent], at)
        args = {"validation": validation, "message": f"c{next(self.ids)}"}
        self._send(via, "cancel", next(self.ids), args)

    @precondition(lambda self: self.sent)
    @rule(at=which, via=workers)
    def deliver_again(self, at: int, via: int) -> None:
        """Late, and to anybody."""
        self._send(via, *self._one_of(self.sent, at))

    def _send(self, via: int, verb: str, id: str, args: dict[str, Any]) -> None:
        self.sent.append((verb, id, args))
        self.due[id] += id not in self.model.outcomes  # what is forgotten happens again
        got: RoundStatus | type[PoCError] | bool | None
        try:
            got = _ask(self.stores[via], verb, id, args)
        except PoCError as error:
            got = type(error)
        made = got.round_id if isinstance(got, RoundStatus) else "-"
        expected = self.model.command(verb, id, made, **args)
        if isinstance(got, RoundStatus) and isinstance(expected, tuple):
            self._shows(got, *expected)
        else:
            assert got == expected

    @staticmethod
    def _shows(status: RoundStatus, shown: dict[str, Any], error: str) -> None:
        assert {name: getattr(status, name) for name in shown} == shown
        assert status.error.startswith(error)
        assert bool(status.error) == bool(error)

    # Workers.

    @rule(shift=st.lists(turns, min_size=1, max_size=5))
    def work(self, shift: list[tuple[int, str, int, int]]) -> None:
        """Take work and commit it, fail at it, or keep it: then it is late, or never comes."""
        for worker, then, bits, failed in shift:
            if taken := self._take(worker):
                if then.startswith("commit"):
                    self._commit(taken, bits, failed, and_claim=then == "commit and claim")
                elif then == "fail":
                    self._give_back(taken, failed=True)

    @precondition(lambda self: self.model.current and self.model.current.ends_at > self.model.now)
    @rule(worker=workers)
    def ask_when_time_is_over(self, worker: int) -> None:
        """Before anybody else has seen that it is."""
        assert self.model.current
        self.wait(self.model.current.ends_at - self.model.now)
        self._take(worker)

    @precondition(lambda self: self.model.current and self.model.current.gathered)
    @rule(worker=workers, ms=st.sampled_from([1000, 998, 1]))
    def ask_when_callbacks_were_joined(self, worker: int, ms: int) -> None:
        """For about as long as they wait for others."""
        self.wait(ms)
        self._take(worker)

    def _take(self, worker: int) -> Taken | None:
        """A validation's chunk or a batch of the round, in turns while there are both."""
        mine = self.pipelines[worker]
        token = mine._token
        return self._got(worker, token, mine._claim())

    def _got(self, worker: int, token: str, got: Claim | Chunk | None) -> Taken | None:
        for kind in ("batch", "chunk") if self.validated[worker] else ("chunk", "batch"):
            work = self._model_claim(kind, token, worker)
            if work:
                self.validated[worker] = kind == "chunk"
                assert got is not None
                self._is_work(got, token, work)
                self.taken.append(Taken(got, worker, self._epoch()))
                return self.taken[-1]
        assert got is None
        return None

    @precondition(lambda self: any(not taken.ended for taken in self.taken))
    @rule(at=which)
    def ask_again(self, at: int) -> None:
        """The answer to a claim was lost on the way."""
        taken = self._one_of([taken for taken in self.taken if not taken.ended], at)
        token, store = taken.work.token, self.stores[taken.worker]
        name, fingerprint = f"w{taken.worker}", self.fingerprints[taken.worker]
        got: Claim | Chunk | None
        if isinstance(taken.work, Chunk):
            got = claim_chunk(store, name, token)
            work = self._model_claim("chunk", token, taken.worker)
        else:
            got = store.rounds.claim(name, token, fingerprint)
            work = self._model_claim("batch", token, taken.worker)
        assert (got is None) == (work is None)
        if got and work:
            self._is_work(got, token, work)
            taken.work, taken.epoch = got, self._epoch()

    def _model_claim(self, kind: str, token: str, worker: int) -> Held | None:
        if kind == "chunk":
            return self.model.claim_chunk(token)
        return self.model.claim(token, self.fingerprints[worker])

    def _epoch(self) -> object:
        return self.model.current and self.model.current.epoch

    def _is_work(self, got: Claim | Chunk, token: str, work: Held) -> None:
        assert (got.token, got.start, got.count) == (token, work.start, work.count)
        assert got.attempts == work.attempts
        if isinstance(got, Chunk):
            assert got.validation == work.job
            job = self.model.jobs[work.job]
            assert (got.batch, got.config) == (job.batch, job.config)
            assert got.given_up == (work.attempts >= LIMITS.max_attempts)
        else:
            current = self.model.current
            assert current
            assert (got.round_id, got.config) == (current.id, current.config)

    @precondition(lambda self: self.taken)
    @rule(at=which, bits=st.integers(0, 15), failed=st.sampled_from([0, 0, 0, 1]))
    def commit(self, at: int, bits: int, failed: int) -> None:
        """In time, late, or once more."""
        self._commit(self._one_of(self.taken, at), bits, failed)

    def _commit(self, taken: Taken, bits: int, failed: int, *, and_claim: bool = False) -> None:
        taken.ended = True
        if isinstance(taken.work, Chunk):
            self._commit_chunk(taken, taken.work, failed)
        else:
            self._commit_batch(taken, taken.work, bits, failed, and_claim=and_claim)

    def _commit_chunk(self, taken: Taken, chunk: Chunk, failed: int) -> None:
        proofs = [None if failed else proof_of(chunk.config, n) for n in chunk.nonces]
        proofs = [] if chunk.given_up else proofs
        fingerprint = self.fingerprints[taken.worker]
        refused = self.stores[taken.worker].validations.commit(
            chunk, proofs, profile=json.dumps({"fingerprint": fingerprint})
        )
        assert refused == self.model.commit_chunk(chunk.token, proofs, fingerprint)

    def _commit_batch(
        self, taken: Taken, claim: Claim, bits: int, failed: int, *, and_claim: bool
    ) -> None:
        computed, config = claim.nonces[failed:], claim.config
        marked = (n for place, n in enumerate(computed[:4]) if bits >> place & 1)
        valid = [(n, proof_of(config, n)) for n in marked]
        message = None
        if config.callback_url and valid:
            told: dict[str, Any] = {"body": "{}"}
            if config.scheme == "artifact":
                told = {"body": "[", "items": tuple(str(n) for n, _ in valid), "tail": "]"}
            key = f"m{next(self.ids)}"
            message = Message("http://c", key=key, round=claim.round_id, deadline_s=60, **told)
        outcome = Computed(
            checked=len(computed),
            valid=[(n, config.terms.dumped(proof)) for n, proof in valid],
            failed=failed,
            error=f"no finite numbers for {failed}" if failed else None,
            message=message,
        )
        store, mine, got = self.stores[taken.worker], self.pipelines[taken.worker], None
        token = mine._token
        if and_claim:
            refused, got = store.work.commit_and_claim(claim, outcome, mine._ask())
            mine._claimed(got)
        else:
            refused = store.rounds.commit(claim, outcome)
        expected = self.model.commit(
            claim.token,
            claim.round_id,
            taken.epoch,
            failed,
            valid,
            message,
        )
        assert refused == expected or (expected == FULL and str(refused).startswith(FULL))
        # A worker that knows another round than the current one has to ask by itself.
        if and_claim and expected != OVER:
            self._got(taken.worker, token, got)
        else:
            assert got is None

    @precondition(lambda self: self.taken)
    @rule(at=which, failed=st.sampled_from([True, True, False]))
    def give_back(self, at: int, failed: bool) -> None:
        self._give_back(self._one_of(self.taken, at), failed=failed)

    def _give_back(self, taken: Taken, *, failed: bool) -> None:
        taken.ended = True
        store, error = self.stores[taken.worker], "broken" if failed else None
        if isinstance(taken.work, Chunk):
            store.validations.give_back(taken.work, error)
            self.model.chunk_claims.give_back(taken.work.token, failed=failed)
        else:
            store.rounds.give_back(taken.work, error)
            current = self.model.current
            if current and current.id == taken.work.round_id:
                current.claims.give_back(taken.work.token, failed=failed)

    @rule(
        worker=workers,
        most=st.sampled_from([2, 1, 3, 0]),
        after_ms=st.sampled_from([0, 25_000, 0, 5_000]),
    )
    def beat(self, worker: int, most: int, after_ms: int) -> None:
        self.wait(after_ms)
        mine = [t.work.token for t in self.taken if t.worker == worker and not t.ended]
        tokens = mine[len(mine) - min(most, len(mine)) :]
        fingerprint = self.fingerprints[worker]
        lives = self.model.heartbeat(f"w{worker}", fingerprint, tokens)
        with nullcontext() if lives else pytest.raises(ModelMismatch):
            self.stores[worker].workers.heartbeat(
                f"w{worker}", {"fingerprint": fingerprint}, {"state": "idle"}, tokens
            )

    @precondition(lambda self: self.model.workers)
    @rule(worker=workers)
    def leave(self, worker: int) -> None:
        self.stores[worker].workers.leave(f"w{worker}")
        self.model.leave(f"w{worker}")

    # Clerks and senders.

    @precondition(lambda self: self.model.verdicts)
    @rule(via=workers, honest=st.booleans(), called_back=st.booleans())
    def judge(self, via: int, honest: bool, called_back: bool) -> None:
        job = self.stores[via].validations.next_computed()
        assert job
        assert job.id == self.model.verdicts[0]
        known = self.model.jobs[job.id]
        proofs: list[Proof | None] = [None] * len(known.batch)
        for start, part in known.proofs.items():
            proofs[start : start + len(part)] = part
        assert job.proofs == proofs
        assert (job.batch, job.config, job.round_id) == (known.batch, known.config, known.round)
        assert job.error == ("its chunks were computed by different models" * known.mixed)
        self.computed.append(job)
        self._finish(job, via, honest, called_back)

    @precondition(lambda self: self.computed)
    @rule(at=which, via=workers, honest=st.booleans())
    def judge_again(self, at: int, via: int, honest: bool) -> None:
        """A clerk that read it before another one ended it."""
        self._finish(self._one_of(self.computed, at), via, honest, called_back=True)

    def _finish(self, job: ComputedValidation, via: int, honest: bool, called_back: bool) -> None:
        # As if it had been computed.
        verdict = job.config.terms.judge(job.batch, job.batch.claims or []) if honest else None
        error = None if honest else CouldNotCompute("no distance")
        message = None
        if called_back:
            message = Message("http://c", "{}", f"v{next(self.ids)}", job.round_id, 60)
        self.stores[via].validations.finish(job, verdict, error, message)
        result = None if verdict is None else verdict.model_dump_json()
        self.model.finish(job.id, result, message and message.key)

    @precondition(lambda self: self.model.ends)
    @rule(via=workers, again=st.booleans())
    def tell_an_end(self, via: int, again: bool) -> None:
        """One that is told twice is dropped twice."""
        store = self.stores[via]
        ending = store.endings.next()
        assert ending
        expected = self.model.ends[0]
        assert ending.task in expected.tasks
        assert self.due[ending.task] > 0, "a ticket ends once"
        assert (ending.verdict, ending.error and type(ending.error)) == (
            expected.result,
            expected.error,
        )
        if expected.status is not None:
            status = RoundStatus.of(ending.round_fields or {})
            assert {name: getattr(status, name) for name in expected.status} == expected.status
        store.endings.drop(ending)
        # Two that say the same are one: of a command that was carried out again, as forgotten.
        if again and self.due[ending.task] == 1:
            store.endings.drop(ending)
        expected.tasks.remove(ending.task)
        self.due[ending.task] -= 1
        if not expected.tasks:
            self.model.ends.popleft()

    @precondition(lambda self: self.model.outbox)
    @rule(via=workers)
    def take_callbacks(self, via: int) -> None:
        entries = self.stores[via].outbox.take(f"s{via}", 3)
        known = [entry.key for entry in self.entries]
        fresh = [key for key in self.model.outbox if key not in known]
        assert [entry.key for entry in entries] == fresh[:3]
        assert [(entry.round, self.stores[via].outbox.body(entry.id)) for entry in entries] == [
            self.model.outbox[k] for k in fresh[:3]
        ]
        self.entries += entries

    @precondition(lambda self: self.entries)
    @rule(at=which, via=workers, error=st.sampled_from([None, None, "404"]))
    def settle(self, at: int, via: int, error: str | None) -> None:
        """By whoever had it, perhaps for the second time."""
        entry = self._one_of(self.entries, at)
        self.stores[via].outbox.settle(entry, error)
        self.model.settle(entry.key, error)

    # Time.

    @rule(ms=st.sampled_from([1, 5_000, 5_000, 31_000, 31_000, 3_700_000, 7_300_000]))
    def wait(self, ms: int) -> None:
        """For scripts and for times to live alike."""
        self.model.advance(ms)
        for key in self.redis.scan_iter():
            lives = self.redis.pttl(key)
            if 0 <= lives <= ms:
                self.redis.delete(key)
            elif lives > 0:
                self.redis.pexpire(key, lives - ms)

    # What has to be so after every step.

    @invariant()
    def rounds_are_as_the_rules_say(self) -> None:
        store, current = self.stores[0], self.model.current
        status = store.status(newest=1000)
        self._shows(status, *self.model.status())
        expected = current.valid if current else []
        assert list(zip(status.valid_nonces, status.proofs, strict=True)) == expected
        assert len({nonce for nonce, _ in expected}) == len(expected)
        listed = {each.round_id: each.kept_until for each in store.rounds.kept(1000)}
        assert listed == {
            each.id: (each.expires or 0) / 1000 for each in self.model.rounds.values()
        }
        for name in {"r1", "r2", "r3", *self.model.rounds}:
            kept, known = store.rounds.status(name), self.model.rounds.get(name)
            assert (kept is None) == (known is None)
            if kept and known:
                self._shows(kept, known.shown(), known.error)

    @invariant()
    def every_position_has_one_place(self) -> None:
        current = self.model.current
        if current is None:
            return
        self._are_held("claims", "leases", current.id, current.claims)
        run = self.redis.hgetall(self.keys("run", current.id))
        waiting = sum(work.count for work in current.claims.values())
        assert int(run["cursor"]) == current.checked + current.failed + waiting
        tickets = self.redis.smembers(self.keys("tickets", current.id))
        assert set(tickets) == current.tickets

    @invariant()
    def validations_are_as_the_rules_say(self) -> None:
        store = self.stores[0]
        assert store.validations.progress() == {
            name: {"done": job.done, "total": len(job.batch)}
            for name, job in self.model.jobs.items()
        }
        self._are_held("chunk_claims", "chunk_leases", "", self.model.chunk_claims)
        assert self.redis.llen(self.keys("chunks")) == len(self.model.chunks)
        assert self.redis.lrange(self.keys("verdicts"), 0, -1) == list(self.model.verdicts)

    @invariant()
    def the_world_is_told_what_is_due(self) -> None:
        store = self.stores[0]
        assert self.redis.llen(self.keys("endings")) == sum(len(e.tasks) for e in self.model.ends)
        assert store.outbox.waiting() == len(self.model.outbox)
        counts = store.outbox.uncounted().model_dump(exclude={"callback_error"})
        assert counts == {f"callbacks_{name}": n for name, n in self.model.callbacks.items()}
        assert [worker.name for worker in store.workers.listing()] == sorted(self.model.workers)

    def _are_held(self, claims: str, leases: str, id: str, expected: Claims) -> None:
        held = {token: json.loads(raw) for token, raw in self._hash(claims, id).items()}
        ends = dict(self.redis.zrange(self.keys(leases, id), 0, -1, withscores=True))
        assert {
            token: (int(work["start"]), work["count"], work["attempts"], ends[token])
            for token, work in held.items()
        } == {
            token: (work.start, work.count, work.attempts, work.until)
            for token, work in expected.items()
        }
        assert ends.keys() == held.keys()

    def _hash(self, name: str, id: str) -> dict[str, str]:
        found: dict[str, str] = self.redis.hgetall(self.keys(name, id))
        return found

    def teardown(self) -> None:
        """Every ticket ends, and every key has its owner and its life."""
        del self.redis.evalsha
        for each in self.pipelines:
            each.engine.close()
        assert self.key_problems() == []


@pytest.mark.slow
@pytest.mark.timeout(3600)  # to find a failure's shortest history takes minutes
def test_any_history_obeys_the_rules(
    redis: Client,
    keys: Keys,
    new_store: Callable[..., Store],
    key_problems: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given the same history, the store and the model show the same after every step."""
    run_state_machine_as_test(
        lambda: NodeMachine(redis, keys, new_store, key_problems, monkeypatch),
        settings=settings(
            max_examples=settings.default.max_examples * 2 // 5,  # a test of this kind is slow
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
