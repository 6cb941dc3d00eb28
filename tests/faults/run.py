"""A run: phases of acts under faults, each act checked when it is over."""

from __future__ import annotations

import contextlib
import itertools
import json
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import httpx
import redis

from faults import invariants
from faults.commands import Command, Courier
from faults.controller import Act, Controller, Play
from faults.invariants import Broken, Recount, demand
from faults.journal import FAULT, Journal
from faults.node import DEADLINE_S, OLD, Node
from faults.proxy import HOST, Proxy
from faults.receiver import Receiver
from faults.sabotage import SABOTAGE
from faults.saboteur import PHASES, STRICT, Saboteur, World
from faults.traces import Trace, traces
from shared.client import PoCClient
from shared.config import PoCConfig
from shared.listener import listen
from shared.settings import load_settings
from shared.store.keys import Keys
from worker.node.pipeline import DEPTH

NAMESPACE = "faults"
#: Seconds of an act with faults, and of a phase at most.
ACT_S, PHASE_S = (6.0, 14.0), 150.0
#: Seconds in which everything has to come to rest when all is healed.
SETTLE_S = 90.0
#: Seconds between two lines of progress, and between two looks at the memory.
SAY_S, MEMORY_S = 10.0, 2.0
#: A process may be so much larger at its end than after its first quarter, if it is that old.
MEMORY_GROWTH, MEMORY_SLACK, MEMORY_AGE_S = 1.10, 15 << 20, 240.0
#: Bytes that may stay in Redis when all that expires has expired.
REDIS_RESIDUE = 2 << 20
#: Commands of the phase that are sent again after each act.
REPLAYS = 6


@dataclass
class Options:
    """What a run is told."""

    seed: int = 1
    seconds: float = 600.0
    workers: int = 3
    kill_every_s: float = 2.0
    fault_every_s: float = 2.0
    #: Only these phases, in turns.
    phases: tuple[str, ...] = PHASES
    #: A defect that is put in on purpose.
    sabotage: str | None = None
    #: 100 MB messages, too.
    huge: bool = True


@dataclass
class Report:
    """What a run did and found."""

    seed: int
    seconds: float = 0.0
    acts: int = 0
    rounds: int = 0
    nonces: int = 0
    valid: int = 0
    failed: int = 0
    callbacks: int = 0
    repeats: int = 0
    #: The invariant, what is wrong, during which act, and what was done before it.
    broken: dict[str, Any] | None = None
    faults: dict[str, int] = field(default_factory=dict)
    checks: dict[str, int] = field(default_factory=dict)
    api: dict[str, int] = field(default_factory=dict)
    losses: list[dict[str, Any]] = field(default_factory=list)
    #: MiB of each process in its first quarter (after it had warmed up) and its last.
    memory: dict[str, dict[str, Any]] = field(default_factory=dict)
    slowest_sigterm_s: float = 0.0
    #: How often each exception had a traceback in a log.
    tracebacks: dict[str, int] = field(default_factory=dict)


class Run:
    """One run in `directory`, which keeps the logs; `say` is told of the progress."""

    def __init__(self, options: Options, directory: Path, say: Callable[[str], None]) -> None:
        self.options, self._say = options, say
        self.count: Counter[str] = Counter()
        self.checks: Counter[str] = Counter()
        self._random = Random(f"{options.seed}:acts")
        proxy = Proxy(0)
        with listen(HOST, 0) as free:
            api_port = free.getsockname()[1]
        self.settings = load_settings(
            {},
            redis_url=f"redis://{HOST}:{proxy.port}/0",
            namespace=NAMESPACE,
            lease_s="1.5",
            heartbeat_s="0.3",
            batch_deadline=str(DEADLINE_S),
            keep_rounds_s="1800",
            command_memory_s="1800",
            callback_timeout_s="2",
            api_port=str(api_port),
        )
        self.receiver = Receiver()
        node_random = Random(f"{options.seed}:node")
        self.journal = Journal(directory / "journal.log")
        self.node = Node(
            self.settings, directory, options.workers, node_random, self.count, self.journal
        )
        self.world = World(directory, NAMESPACE, proxy, self.node, self.receiver, self.count)
        schedule = Random(f"{options.seed}:faults")
        self.saboteur = Saboteur(self.world, schedule, options.kill_every_s, options.fault_every_s)
        messages = Random(f"{options.seed}:messages")
        courier = Courier(self.settings, messages, self.count, self.journal)
        client = PoCClient(self.settings, timeout=SETTLE_S)
        self.controller = Controller(client, courier, self.count)
        self.keys = Keys(NAMESPACE)
        self.watcher = Watcher(api_port)
        self._memory: dict[tuple[str, int], list[tuple[float, int]]] = defaultdict(list)
        self._report = Report(options.seed)
        #: Rounds that are over: what they looked like, and when that was.
        self._over: dict[str, tuple[dict[str, str], float]] = {}
        self._recounts: dict[str, Recount] = {}
        self._validated: list[tuple[str, str]] = []
        self._next_say = self._next_memory = 0.0
        #: Starts of processes before this act, and before the one before it.
        self._starts = self._starts_before = 0
        self._began = time.monotonic()
        self._sabotage = SABOTAGE[options.sabotage] if options.sabotage else None
        #: What is being played, for whoever looks into what is broken.
        self._during = "the start"

    def run(self) -> Report:
        """Play until the time is over, or an invariant is broken."""
        report = self._report
        numbers = itertools.count(1)
        try:
            self.world.begin(self.options.phases[0])
            self.node.start()
            self._wait_for_workers()
            self._began = time.monotonic()
            end = self._began + self.options.seconds
            share = self.options.seconds / len(self.options.phases)
            for place, phase in enumerate(itertools.cycle(self.options.phases), 1):
                self._phase(phase, min(end, time.monotonic() + min(share, PHASE_S)), numbers)
                # Each of them at least once, however slow this machine is.
                if place >= len(self.options.phases) and time.monotonic() > end - ACT_S[0]:
                    break
            self._check_memory()
            self._check_logs()
        except Exception as error:  # noqa: BLE001 - see Broken.of
            broken = Broken.of(error)
            report.broken = {
                "invariant": broken.invariant,
                "detail": broken.detail,
                "during": self._during,
                "journal": self.journal.about(f"{broken.detail} {self._during}"),
            }
        finally:
            self._close()
        self._fill(report)
        return report

    # The play.

    def _phase(self, phase: str, until: float, numbers: itertools.count[int]) -> None:
        if self.world.phase != phase:
            self.world.begin(phase)
            self._wait_for_workers()
        self.controller.strict = phase in STRICT
        self.controller.courier.forget()
        self.receiver.forget()
        self._over, self._recounts, self._validated = {}, {}, []
        self.watcher.forget()
        with contextlib.closing(self.world.direct()) as direct:
            self._residue_before = _used(direct)
        self._huge_due = self.options.huge
        while True:
            left = until - time.monotonic()
            seconds = min(self._random.uniform(*ACT_S), max(left, ACT_S[0] / 2))
            act = Act.draw(self._random, next(numbers), self.receiver, seconds)
            last = left < seconds + ACT_S[0]
            act.stops |= last
            self._act(act)
            self._report.acts += 1
            if last:
                break
        self._end_phase()

    def _act(self, act: Act) -> None:
        # They shall grow old from now on, so that their memory can be compared.
        elapsed = time.monotonic() - self._began
        self.world.spare_old = elapsed > self.options.seconds / 3
        self._starts_before = self._starts
        self._starts = sum(member.starts for member in self.node.members.values())
        self._during = f"act {act.number} ({act.config.block_hash}), Redis: {self.world.phase}"
        self.journal.note(f"{self._during}: begins, batches of {act.config.batch_size}")
        play = self.controller.play(act)
        self.saboteur.begin_act()
        until = time.monotonic() + act.seconds
        while time.monotonic() < until:
            self._turn()
            self.saboteur.turn()
            self._do_sabotage()
        self.saboteur.heal()
        self._huge()
        play.finish()
        while play.goes_on:
            self._turn()
        self._turn()
        self._after(play)

    def _turn(self) -> None:
        """What goes on at all times."""
        if self.controller.broken:
            raise self.controller.broken[0]
        if self.watcher.broken:
            raise self.watcher.broken[0]
        self.node.supervise()
        now = time.monotonic()
        if now >= self._next_memory:
            self._next_memory = now + MEMORY_S
            for name, size in self.node.memory().items():
                member = self.node.members[name]
                self._memory[name, member.starts].append((now - member.started_at, size))
        if now >= self._next_say:
            self._next_say = now + SAY_S
            done = self._report
            self._say(
                f"{now - self._began:5.0f} s  {self.world.phase:8}  act {done.acts + 1:3}  "
                f"{done.nonces:8,} nonces counted  {self.count['worker killed']:4} workers killed  "
                f"{sum(self.count.values()):6,} events"
            )
        time.sleep(0.02)

    def _do_sabotage(self) -> None:
        if not self._sabotage:
            return
        with contextlib.suppress(redis.RedisError), contextlib.closing(self.world.direct()) as it:
            fields = it.hgetall(self.keys("status"))
            running = fields.get("state") == "GENERATING" and int(fields["total_valid"]) > 100
            if running and self._sabotage(it, self.keys, fields["round_id"]):
                self._say(f"sabotage: {self.options.sabotage}")
                self.journal.note(
                    f"{FAULT}sabotage {self.options.sabotage} of round {fields['round_id']}"
                )
                self._sabotage = None

    def _huge(self) -> None:
        if self._huge_due and self._random.random() < 0.3:
            self._huge_due = False
            with contextlib.closing(self.world.direct()) as direct:
                self.controller.courier.huge_poison(direct)

    # The checks.

    def _after(self, play: Play) -> None:
        """An act is over: everything healed, every ticket of it has ended."""
        strict = self.controller.strict
        path = urlsplit(play.act.config.callback_url or "").path
        self._validated += [(task, path) for task in play.validated]
        if play.act.stops:
            self._settle(self._check_at_rest, "everything comes to rest")
        with contextlib.closing(self.world.direct()) as direct:
            self._check_rounds(direct)
            if not play.act.stops:
                return
            status = direct.hgetall(self.keys("status"))
            self._demand(
                status.get("state") == "STOPPED" or not strict,
                "nothing changes in a round that is over",
                f"after its stop round {status.get('round_id')} is {status.get('state')}",
            )
            ends = {
                e["ticket"]: e["total_checked"]
                for e in play.ends
                if e["round_id"] == status.get("round_id")
            }
            if strict and ends:
                self._demand(
                    max(ends.values()) == int(status["total_checked"]),
                    "a ticket ends with its round's status",
                    f"round {status['round_id']} has {status['total_checked']} checked, "
                    f"its tickets {ends}",
                )
            replayed = ", ".join(f"{each.task} {each.id}" for each in self._replay(direct))
            self._check_rounds(direct)
            again = direct.hgetall(self.keys("status"))
            was, now = ([s.get(name) for name in ("round_id", "state")] for s in (status, again))
            self._demand(
                was == now,
                "a command replayed later changes nothing",
                f"it was {was}, is {now} after {replayed}",
            )

    def _check_at_rest(self) -> None:
        with contextlib.closing(self.world.direct()) as direct:
            invariants.check_keys(direct, NAMESPACE, self.settings.queue)
        self.checks["keys have an owner or a time to live"] += 1

    def _check_rounds(self, direct: redis.Redis) -> None:
        """Every round that Redis has: exact, and if it was over before, the same."""
        self._over = {
            round_id: (picture, at)
            for round_id, (picture, at) in self._over.items()
            if not any(loss.may_hold(at) for loss in self.world.losses)
        }
        prefix = self.keys("round", "x").removesuffix("x")
        current = direct.hgetall(self.keys("status"))
        for key in direct.scan_iter(match=prefix + "*", count=1000):
            round_id = key.removeprefix(prefix)
            if round_id in self._over:
                now = invariants.picture(direct, self.keys, round_id)
                if now is not None:
                    invariants.check_same(self._over[round_id][0], now, round_id, "later")
                    self.checks["a round that is over is unchanged"] += 1
                continue
            picture = invariants.picture(direct, self.keys, round_id)
            replaced = round_id != current.get("round_id")
            left = self._most_left() if replaced else 0
            recount = invariants.check_round(direct, self.keys, round_id, left)
            self.checks["a round is exact"] += 1
            if recount is None or picture is None:
                continue
            if self.controller.strict:
                seen = self.watcher.seen.get(round_id, 0)
                total = int(direct.hget(self.keys("round", round_id), "total_checked"))
                self._demand(
                    total >= seen,
                    "what was seen is kept",
                    f"round {round_id} showed {seen}, has {total}",
                )
            if replaced or current.get("state") == "STOPPED":
                self._over[round_id] = (picture, time.monotonic())
                self._recounts[round_id] = recount
                self._report.rounds += 1
                self._report.nonces += recount.checked
                self._report.valid += len(recount.valid)
                self._report.failed += recount.failed + recount.given_up
        for strict_loss in self.world.losses:
            if strict_loss.phase in STRICT:
                lost = strict_loss.seconds or strict_loss.nonces
                self._demand(not lost, "AOF always loses nothing", str(strict_loss))

    def _most_left(self) -> int:
        """Batches that all workers of the last act together may have had under way."""
        starts = sum(member.starts for member in self.node.members.values())
        return DEPTH * (starts - self._starts_before + len(self.node.members))

    def _replay(self, direct: redis.Redis) -> list[Command]:
        """Send old commands again that Redis remembers, and wait until they are through."""
        sent = self.controller.courier.sent
        chosen = self._random.sample(sent, min(REPLAYS, len(sent)))
        replayed = [each for each in chosen if direct.exists(self.keys("command", each.id))]
        for command in replayed:
            self.controller.courier.push(command)
            self.count["message: replayed after its round"] += 1

        def through() -> None:
            waiting = direct.llen(self.settings.queue)
            oldest = (direct.lindex(self.settings.queue, -1) or "")[:300]
            demand(waiting == 0, "every message is taken", f"{waiting} wait, the oldest: {oldest}")

        self._settle(through, "every message is taken")
        time.sleep(0.5)  # they are taken, and now carried out
        return replayed

    def _end_phase(self) -> None:
        self.saboteur.heal(everything=True)

        def drained() -> None:
            with contextlib.closing(self.world.direct()) as direct:
                left = direct.xlen(self.keys("outbox"))
                oldest = direct.xrange(self.keys("outbox"), count=1)
            told = "every callback is delivered at least once"
            demand(left == 0, told, f"{left} in the outbox, the oldest: {str(oldest)[:300]}")

        self._settle(drained, "every callback is delivered at least once")
        self._settle(self._check_at_rest, "everything comes to rest")
        with contextlib.closing(self.world.direct()) as direct:
            self._check_rounds(direct)
            self._check_callbacks(direct)
            self._check_ends(direct)
            self._check_residue(direct)
        messages, repeats = self.receiver.counts()
        self._report.callbacks += messages
        self._report.repeats += repeats

    def _check_callbacks(self, direct: redis.Redis) -> None:
        for round_id, recount in self._recounts.items():
            raw = direct.hget(self.keys("run", round_id), "config")
            url = raw and PoCConfig.model_validate_json(raw).callback_url
            if not url:
                continue
            path = urlsplit(url).path + "/generated"
            ours = f"{round_id}:"
            got = self.receiver.got(path)
            invariants.check_callbacks(
                direct,
                self.keys,
                recount,
                {key: each for key, each in got.items() if key.startswith(ours)},
                {
                    key
                    for at, key in self.receiver.redirected
                    if at == path and key.startswith(ours)
                },
                nothing_lost=self.controller.strict,
            )
            self.checks["a round's callbacks were delivered"] += 1
        for task, path in self._validated:
            if path and not path.startswith("/moved"):
                # In other phases it may have begun in a second that was lost, and never again.
                if not self.controller.strict and not direct.exists(self.keys("job", task)):
                    continue
                got = self.receiver.got(path + "/validated")
                self._demand(
                    f"validation:{task}" in got,
                    "every callback is delivered at least once",
                    f"the verdict of {task} was not told",
                )
                self.checks["a validation's callback was delivered"] += 1

    def _check_ends(self, direct: redis.Redis) -> None:
        for command in self.controller.courier.sent:
            if command.end is None:
                continue
            now = direct.get(f"celery-task-meta-{command.id}")
            if not self.controller.strict:
                continue
            # When a command is repeated, Celery notes another time for the same answer.
            told, kept = (
                {name: json.loads(meta or "{}").get(name) for name in ("status", "result")}
                for meta in (command.end, now)
            )
            self._demand(
                told == kept,
                "an end stays as it is",
                f"{command.task} {command.id}: {told}, now {kept}",
            )

    def _check_residue(self, direct: redis.Redis) -> None:
        """When all that expires has expired, and the current round is gone, Redis is empty."""
        current = direct.hget(self.keys("status"), "round_id") or "none"
        for key in direct.scan_iter(count=1000):
            if direct.pttl(key) >= 0 or key.endswith(f":{current}"):
                direct.unlink(key)
        time.sleep(0.3)
        grown = _used(direct) - self._residue_before
        self._demand(grown < REDIS_RESIDUE, "memory stays flat", f"Redis keeps {grown:,} bytes")

    def _check_memory(self) -> None:
        for name, (early, late, age) in self._flatness().items():
            if age >= MEMORY_AGE_S:
                self._demand(
                    late <= early * MEMORY_GROWTH + MEMORY_SLACK,
                    "memory stays flat",
                    f"{name} had {early / 2**20:.0f} MiB and has {late / 2**20:.0f} MiB",
                )

    def _check_logs(self) -> None:
        """What was injected is expected trouble: no code of ours shows a traceback for it."""
        found: list[Trace] = []
        for name in self.node.members:
            with self.node.log(name).open(errors="replace") as log:
                found += traces(log)
        self._report.tracebacks = dict(Counter(trace.error for trace in found))
        unexpected = Counter(trace.error for trace in found if not trace.is_expected)
        self._demand(not unexpected, "no fault shows as a traceback", f"{unexpected}")

    def _flatness(self) -> dict[str, tuple[float, float, float]]:
        """Of each in OLD that lived longest: bytes early, bytes late, its age in seconds."""
        return {
            name: (statistics.median(early), statistics.median(late), samples[-1][0])
            for name, samples in self._oldest().items()
            if (early := _sizes(samples, 0.1, 0.35)) and (late := _sizes(samples, 0.75, 1.0))
        }

    def _oldest(self) -> dict[str, list[tuple[float, int]]]:
        """Age and size over time, of each in OLD that lived longest."""
        found: dict[str, list[tuple[float, int]]] = {}
        for (name, _), samples in self._memory.items():
            longer = name not in found or found[name][-1][0] < samples[-1][0]
            if name in OLD and longer:
                found[name] = samples
        return found

    def _demand(self, holds: object, invariant: str, detail: str) -> None:
        demand(holds, invariant, detail)
        self.checks[invariant] += 1

    def _settle(self, check: Callable[[], None], description: str) -> None:
        """Wait until `check` does not raise; what it raised last is what is broken."""
        gives_up_at = time.monotonic() + SETTLE_S
        while True:
            try:
                check()
            except Broken:
                if time.monotonic() > gives_up_at:
                    raise
            else:
                return
            for _ in range(10):
                self._turn()

    def _wait_for_workers(self) -> None:
        def someone() -> None:
            with contextlib.closing(self.world.direct()) as direct:
                found = direct.zcard(self.keys("workers"))
            what = f"none in {SETTLE_S:g} s after a new start of Redis ({self.world.phase})"
            demand(found, "workers come back by themselves", what)

        self._settle(someone, "workers come back by themselves")

    # The end.

    def _close(self) -> None:
        with contextlib.suppress(Exception):
            self.saboteur.heal(everything=True)
        self.watcher.close()
        self.controller.courier.close()
        self.controller.client.close()
        self.node.end()
        self.world.end()
        self.world.proxy.close()
        self.receiver.close()

    def _fill(self, report: Report) -> None:
        report.seconds = time.monotonic() - self._began
        report.faults = dict(sorted(self.count.items()))
        report.checks = dict(sorted(self.checks.items()))
        report.api = {str(code): n for code, n in sorted(self.watcher.codes.items())}
        report.slowest_sigterm_s = round(self.node.slowest_end_s, 1)
        report.memory = {
            name: {
                "early": early / 2**20,
                "late": late / 2**20,
                "age_s": age,
                "by_tenths": [
                    round(max(_sizes(self._oldest()[name], n / 10, (n + 1) / 10) or [0]) / 2**20)
                    for n in range(10)
                ],
            }
            for name, (early, late, age) in self._flatness().items()
        }
        kinds = sorted({(loss.phase, loss.fault) for loss in self.world.losses})
        for phase, fault in kinds:
            of = [n for n in self.world.losses if (n.phase, n.fault) == (phase, fault)]
            seconds = [n.seconds for n in of]
            report.losses.append(
                {
                    "phase": phase,
                    "fault": fault,
                    "times": len(of),
                    "lost_something": sum(s > 0 for s in seconds),
                    "most_seconds": "all" if max(seconds) == float("inf") else max(seconds),
                    "most_nonces": max(n.nonces for n in of),
                }
            )


class Watcher:
    """Polls the status API: it answers, or says 503, and what it showed is never less later."""

    def __init__(self, port: int) -> None:
        self._url = f"http://{HOST}:{port}/api/v1/pow/status"
        self.codes: Counter[int] = Counter()
        self.broken: list[Broken] = []
        #: The most nonces that a round showed as counted.
        self.seen: dict[str, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._thread.start()

    def forget(self) -> None:
        self.seen = {}

    def close(self) -> None:
        self._ended.set()
        self._thread.join(timeout=15)

    def _watch(self) -> None:
        with httpx.Client(timeout=12, trust_env=False) as client:
            while not self._ended.wait(0.25):
                try:
                    answer = client.get(self._url)
                except httpx.ConnectError:
                    continue  # it is not up yet
                except httpx.HTTPError as error:
                    self.broken.append(Broken("the status API answers", repr(error)))
                    return
                self.codes[answer.status_code] += 1
                if answer.status_code not in (200, 503):
                    what = f"{answer.status_code} {answer.text[:300]}"
                    self.broken.append(Broken("the status API answers", what))
                    return
                if answer.status_code == 200:
                    status = answer.json()
                    round_id, checked = status["round_id"], status["total_checked"]
                    self.seen[round_id] = max(checked, self.seen.get(round_id, 0))


def _sizes(samples: list[tuple[float, int]], since: float, until: float) -> list[int]:
    """Sizes in a part of a life, from 0 to 1."""
    age = samples[-1][0]
    return [size for at, size in samples if since * age <= at <= until * age]


def _used(direct: redis.Redis) -> int:
    # Without what clients take for their buffers, which may be 100 MB of poison for a while, and
    # without scripts, of which there is always the same. Valkey's own difference of the two wraps.
    memory = direct.info("memory")
    return int(memory["used_memory"]) - int(memory["used_memory_overhead"])
