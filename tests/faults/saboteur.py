"""The faults, and the schedule that is made from the seed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import redis

from faults.journal import FAULT
from faults.node import OLD, Node
from faults.proxy import Proxy
from faults.receiver import TROUBLES, Receiver
from faults.server import CLOCK_S, Server, clock_library
from shared.store.keys import Keys

#: What a server is run with. `failover` is everysec with a replica that lags behind.
PHASES = ("always", "everysec", "failover", "none")
#: Phases in which nothing that was answered may ever be lost.
STRICT = ("always",)
#: Seconds that may be lost beyond those that the clock in Redis shows.
LOSS_REACH_S = 3.0
#: Seconds that a replica lags behind its primary.
LAG_S = 0.2

Undo = Callable[[], None]


@dataclass
class Loss:
    """What Redis had before it broke, and had not when it was there again."""

    phase: str
    fault: str
    seconds: float
    nonces: int
    #: When, by time.monotonic().
    at: float

    def may_hold(self, seen_at: float) -> bool:
        """Whether what was seen then may be lost with it."""
        return self.seconds > 0 and self.at - self.seconds - LOSS_REACH_S < seen_at < self.at


@dataclass
class World:
    """All that can break."""

    directory: Path
    namespace: str
    proxy: Proxy
    node: Node
    receiver: Receiver
    count: Counter[str]
    phase: str = ""
    server: Server = None
    replica: Server | None = None
    link: Proxy | None = None
    losses: list[Loss] = field(default_factory=list)
    #: Those whose memory is compared are killed no more. Other workers, half of which deliver
    #: callbacks as well, are.
    spare_old: bool = False
    _servers: int = 0

    def begin(self, phase: str) -> None:
        """Put an empty server of another persistence in the place of the one before."""
        self.end()
        self.phase = phase
        self.server = self._new_server()
        self.server.start()
        self._turn()
        if phase == "failover":
            self.link = Proxy(self.server.port)
            self.link.delay_s = LAG_S
            self._add_replica()

    def end(self) -> None:
        """End the servers."""
        for server in (self.server, self.replica):
            if server:
                server.stop()
        if self.link:
            self.link.close()
        self.server = self.replica = self.link = None

    def direct(self) -> redis.Redis:
        """A client that no fault of the network concerns."""
        return self.server.direct()

    def lose(self, fault: str, how: Callable[[], None]) -> Callable[[], None]:
        """Break the server by `how`; what is given back measures what was lost.

        Until then nobody gets through: what they wrote would hide the loss.
        """
        keys = Keys(self.namespace)

        def seen() -> tuple[int, str, int]:
            with contextlib.closing(self.direct()) as direct:
                clock = int(direct.hget(keys("clock"), "last") or 0)
                round_id, checked = direct.hmget(keys("status"), ["round_id", "total_checked"])
                return clock, round_id or "", int(checked or 0)

        clock, round_id, checked = seen()
        self.proxy.shut = True
        how()
        self.proxy.cut()

        def measure() -> None:
            clock_now, round_now, checked_now = seen()
            self.proxy.shut = False
            kept = checked_now if round_now == round_id else 0
            lost, seconds = max(0, checked - kept), 0.0
            if clock_now < clock:
                seconds = (clock - clock_now) / 1000 if clock_now else float("inf")
            self.losses.append(
                Loss(self.phase, fault, seconds, lost if seconds else 0, time.monotonic())
            )

        return measure

    def fail_over(self) -> None:
        """Kill the primary and let the replica take its place."""
        self.server.kill()
        self.link.cut()
        self.replica.promote()
        self.server.stop()
        self.server, self.replica = self.replica, None
        self._turn()
        self.link.target = self.server.port
        self._add_replica()

    def _turn(self) -> None:
        self.proxy.target = self.server.port
        self.proxy.cut()

    def _add_replica(self) -> None:
        self.replica = self._new_server(self.link.port)
        self.replica.start()

    def _new_server(self, replica_of: int | None = None) -> Server:
        self._servers += 1
        persistence = "everysec" if self.phase == "failover" else self.phase
        return Server(persistence, self.directory / f"server{self._servers}", replica_of)


@dataclass(frozen=True)
class Fault:
    """One way to break the world. `begin` gives what mends it, or None when it is over at once."""

    name: str
    #: What breaks: one lasting fault at a time for each target.
    target: str
    begin: Callable[[World, Random], Undo | None]
    #: How often it is drawn, among the others.
    weight: float = 1.0
    #: Seconds that it lasts.
    lasts: tuple[float, float] = (0.0, 0.0)
    phases: tuple[str, ...] = PHASES
    possible: Callable[[World], bool] = lambda _: True
    #: It goes on after the act: an old worker that wakes in a new round.
    outlives: bool = False


def _kill_all(world: World, _: Random) -> None:
    for member in world.node.computing:
        if member.name not in OLD or not world.spare_old:
            world.node.kill(member)
            world.count["worker killed"] += 1


def _kill_callbacks(world: World, _: Random) -> None:
    world.node.kill(world.node.members["callbacks"])


def _freeze(world: World, random: Random) -> Undo:
    member = random.choice(world.node.computing)
    if member.frozen or member.told_at:
        return lambda: None
    world.node.freeze(member)
    process = member.process
    return lambda: world.node.thaw(member) if member.process is process else None


def _terminate(world: World, random: Random) -> None:
    chosen = [m for m in world.node.mortals if not m.frozen and not m.excuse]
    if chosen:
        world.node.tell_to_end(random.choice(chosen))


def _kill_server(world: World, _: Random) -> Undo:
    measure = world.lose("killed", world.server.kill)

    def restart() -> None:
        world.server.start()
        measure()

    return restart


def _crash_machine(world: World, _: Random) -> Undo:
    measure = world.lose("its machine crashed", world.server.crash_machine)

    def restart() -> None:
        world.server.start()
        measure()

    return restart


def _fail_over(world: World, _: Random) -> None:
    world.lose("fail-over", world.fail_over)()


def _freeze_server(world: World, _: Random) -> Undo:
    pid = world.server.pid
    os.kill(pid, signal.SIGSTOP)
    return lambda: os.kill(pid, signal.SIGCONT)


def _pause_clients(world: World, random: Random) -> None:
    with contextlib.closing(world.direct()) as direct:
        direct.client_pause(random.randint(500, 3000))


def _kill_clients(world: World, _: Random) -> None:
    with contextlib.closing(world.direct()) as direct:
        for kind in ("normal", "pubsub"):
            direct.client_kill_filter(_type=kind, skipme=True)


def _fill_memory(world: World, _: Random) -> Undo:
    _set(world, "maxmemory", "1mb")

    def free() -> None:
        _set(world, "maxmemory", "0")

    return free


def _set(world: World, name: str, value: str) -> None:
    with contextlib.closing(world.direct()) as direct:
        direct.config_set(name, value)


def _fill_disk(world: World, _: Random) -> Undo:
    # With `always` the server ends itself: it can't keep its word.
    world.server.fill_disk()

    def free() -> None:
        world.server.free_disk()
        world.server.start()

    return free


def _set_clock(ahead: float) -> Callable[[World, Random], Undo]:
    def begin(world: World, random: Random) -> Undo:
        world.server.set_clock(ahead * random.uniform(0.2, 1.0))
        return lambda: world.server.set_clock(0.0)

    return begin


def _knob(name: str, *values: Any) -> Callable[[World, Random], Undo]:
    def begin(world: World, random: Random) -> Undo:
        setattr(world.proxy, name, random.choice(values))
        return world.proxy.heal

    return begin


def _refuse(world: World, _: Random) -> Undo:
    world.proxy.refusing = True
    world.proxy.cut()
    return world.proxy.heal


def _reset(world: World, _: Random) -> None:
    world.proxy.cut()


def _trouble(name: str) -> Callable[[World, Random], Undo]:
    def begin(world: World, _: Random) -> Undo:
        world.receiver.suffer(name)
        return lambda: world.receiver.suffer(None)

    return begin


def _may_kill_old(world: World) -> bool:
    return not world.spare_old


def _clock(_: World) -> bool:
    return clock_library() is not None


def _steady(world: World) -> bool:
    """By a clock that was set just now, or a server as young, no loss can be measured."""
    return time.monotonic() > world.server.clock_set_at + 2 * CLOCK_S


def _has_replica(world: World) -> bool:
    return _steady(world) and world.replica is not None and world.replica.in_step()


_KEEPING = ("always", "everysec")

FAULTS = (
    Fault("all workers killed", "workers", _kill_all, 1.0),
    Fault("worker told to end while it computes", "workers", _terminate, 2.0),
    Fault("worker frozen past its lease", "frozen", _freeze, 2.0, (2.5, 5.0)),
    Fault("worker frozen past its round", "sleeper", _freeze, 1.0, (12.0, 20.0), outlives=True),
    Fault("callbacks process killed", "callbacks", _kill_callbacks, 1.5, possible=_may_kill_old),
    Fault("Redis killed", "server", _kill_server, 3.0, (0.1, 2.0), (*_KEEPING, "none"), _steady),
    Fault(
        "Redis' machine crashes", "server", _crash_machine, 6.0, (0.1, 2.0), ("everysec",), _steady
    ),
    Fault("fail-over", "server", _fail_over, 6.0, phases=("failover",), possible=_has_replica),
    Fault("Redis frozen", "server", _freeze_server, 1.0, (0.5, 4.0)),
    Fault("CLIENT PAUSE", "server", _pause_clients, 1.0),
    Fault("CLIENT KILL", "server", _kill_clients, 1.0),
    Fault("Redis out of memory", "server", _fill_memory, 1.0, (0.5, 4.0)),
    Fault("disk full", "server", _fill_disk, 1.5, (1.0, 4.0), _KEEPING),
    Fault("clock set back", "server", _set_clock(-20), 1.0, (3.0, 5.0), possible=_clock),
    Fault("clock set forward", "server", _set_clock(20), 1.0, (3.0, 5.0), possible=_clock),
    Fault("network slow", "network", _knob("delay_s", 0.02, 0.1, 0.3), 1.5, (1.0, 4.0)),
    Fault("network silent", "network", _knob("stalled", True), 1.0, (0.5, 4.0)),
    Fault("network refuses", "network", _refuse, 1.0, (0.5, 4.0)),
    Fault("connections reset", "network", _reset, 1.0),
    Fault("reset within an answer", "network", _knob("cut_after", 300, 3000, 30000), 1.5),
    *(Fault(f"receiver {name}", "receiver", _trouble(name), 0.7, (0.5, 4.0)) for name in TROUBLES),
)


@dataclass
class Saboteur:
    """Breaks the world by a schedule: what comes next depends on the seed alone.

    A fault whose target is broken already, or that the phase can't have, is passed over.
    """

    world: World
    random: Random
    kill_every_s: float
    fault_every_s: float

    def __post_init__(self) -> None:
        self._undo: list[tuple[float, Fault, Undo]] = []
        self._next_kill = self._next_fault = 0.0

    def begin_act(self) -> None:
        """Faults may come from now on."""
        now = time.monotonic()
        self._next_kill = now + self._gap(self.kill_every_s)
        self._next_fault = now + self._gap(self.fault_every_s)

    def turn(self) -> None:
        """Mend what has lasted long enough, break what is due."""
        now = time.monotonic()
        self._mend(lambda until, _: until <= now)
        if now >= self._next_kill:
            self._next_kill += self._gap(self.kill_every_s)
            if mortals := self.world.node.mortals:
                self.world.node.kill(self.random.choice(mortals))
                self.world.count["worker killed"] += 1
        if now >= self._next_fault:
            self._next_fault += self._gap(self.fault_every_s)
            self._break()

    def heal(self, *, everything: bool = False) -> None:
        """Mend all, but for what outlives an act, unless it is `everything`."""
        self._mend(lambda _, fault: everything or not fault.outlives)

    def _break(self) -> None:
        fault = self.random.choices(FAULTS, [fault.weight for fault in FAULTS])[0]
        lasts = self.random.uniform(*fault.lasts)
        # Drawn in any case, so that the schedule does not depend on what happens.
        random = Random(self.random.random())
        busy = {broken.target for _, broken, _ in self._undo}
        world = self.world
        if fault.target in busy or world.phase not in fault.phases or not fault.possible(world):
            return
        world.node.journal.note(f"{FAULT}{fault.name}")
        undo = fault.begin(world, random)
        world.count[fault.name] += 1
        if undo:
            self._undo.append((time.monotonic() + lasts, fault, undo))

    def _mend(self, which: Callable[[float, Fault], bool]) -> None:
        mended = [entry for entry in self._undo if which(entry[0], entry[1])]
        self._undo = [entry for entry in self._undo if entry not in mended]
        for _, fault, undo in mended:
            undo()
            self.world.node.journal.note(f"{FAULT}{fault.name}: mended")

    def _gap(self, mean: float) -> float:
        return self.random.uniform(0.5, 1.5) * mean
