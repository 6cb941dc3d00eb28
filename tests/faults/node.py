"""The processes of a node: workers, the one that delivers callbacks, the status API.

Whoever ends is started again, as a supervisor would; whoever ends without a reason is a defect.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil

from fake_engine import fake_distance
from faults.invariants import NAN_EVERY, Broken
from faults.journal import FAULT, Journal
from preloaded import Fork
from shared.settings import Settings
from support import ROOT, clean_environment
from worker.children import end
from worker.node.functional_check import BLOCK_HASH, NONCES, PUBLIC_KEY
from worker.queue.app import FAILED, QUARANTINED

#: Seconds that a batch takes.
BATCH_S = 0.03
#: POC_BATCH_DEADLINE: more than a step may wait for a Redis that is silent, twice in a row.
DEADLINE_S = 12.0
#: Seconds after SIGTERM in which a process has to end, whatever else is broken.
END_S = 60.0
#: Processes that may live as long as the run: their memory has to stay flat.
OLD = ("api", "callbacks", "veteran")
HANGS = "engine hangs past its deadline"
NO_MEMORY = "engine runs out of memory"
WRONG = "engine gives wrong numbers from its start"
#: What an engine may suffer from: knobs of the fake one, and how many workers in a hundred have it.
ENGINES = {
    "engine raises": ("fail=29", 15),
    HANGS: ("hang=60&hang_s=600", 8),
    NO_MEMORY: ("memory=80", 8),
    WRONG: ("fault={wrong}", 8),
}
#: Those that end their worker, and its exit status then; 1 is a watchdog whose goodbye hangs, too.
FATAL = {HANGS: (FAILED, 1), NO_MEMORY: (FAILED,), WRONG: (QUARANTINED,)}
#: What the engine of a model that is well gives in the functional check. Given to a worker with
#: wrong numbers alone: where Redis is empty it would be the first, whom all others believe.
DISTANCES = [fake_distance(BLOCK_HASH, PUBLIC_KEY, nonce) for nonce in NONCES]


@dataclass
class Member:
    """One process, and the processes that it was before."""

    name: str
    process: Fork | None = None
    starts: int = 0
    #: Why it may end, or has ended.
    excuse: str = ""
    started_at: float = 0.0
    restart_at: float = 0.0
    #: When it was told to end; 0 when it was not.
    told_at: float = 0.0
    frozen: bool = False

    def __str__(self) -> str:
        """As a worker is called in its log and the status."""
        return f"{self.name}-{self.starts}"

    @property
    def lives(self) -> bool:
        return self.process is not None and self.process.poll() is None


@dataclass
class Node:
    """`workers` of them beside one veteran, which suffers the same, but is not killed alone."""

    settings: Settings
    directory: Path
    workers: int
    random: Random
    count: dict[str, int]
    journal: Journal
    members: dict[str, Member] = field(default_factory=dict)
    #: The longest time from SIGTERM to the end of a worker, seconds.
    slowest_end_s: float = 0.0

    def start(self) -> None:
        """Start all."""
        self._wrong.write_text("wrong")
        names = ["api", "callbacks", "veteran", *(f"w{n}" for n in range(self.workers))]
        self.members = {name: Member(name) for name in names}
        for member in self.members.values():
            self._start(member)

    @property
    def mortals(self) -> list[Member]:
        """The workers that live and may be killed alone; some have to end themselves."""
        return [
            m
            for m in self.members.values()
            if m.name.startswith("w") and m.lives and m.excuse not in (HANGS, WRONG)
        ]

    @property
    def computing(self) -> list[Member]:
        """All workers that live."""
        return [m for m in self.members.values() if m.name not in ("api", "callbacks") and m.lives]

    @property
    def _wrong(self) -> Path:
        """What breaks the device of a fake engine that is told of it."""
        return self.directory / "wrong"

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def kill(self, member: Member) -> None:
        """Kill -9."""
        self.journal.note(f"{FAULT}{member} killed")
        member.excuse = "killed"
        member.frozen = False
        if member.lives:
            member.process.kill()
        self._await_restart(member)

    def tell_to_end(self, member: Member) -> None:
        """SIGTERM."""
        if not member.told_at:
            self.journal.note(f"{FAULT}{member} told to end")
            member.excuse, member.told_at = "told to end", time.monotonic()
            member.process.terminate()

    def freeze(self, member: Member) -> None:
        """SIGSTOP."""
        self.journal.note(f"{FAULT}{member} frozen")
        member.frozen = True
        os.kill(member.process.pid, signal.SIGSTOP)

    def thaw(self, member: Member) -> None:
        """SIGCONT."""
        if member.lives and member.frozen:
            self.journal.note(f"{FAULT}{member} thawed")
            os.kill(member.process.pid, signal.SIGCONT)
        member.frozen = False

    def supervise(self) -> None:
        """Start again what has ended. Raises `Broken` for what ended without a reason."""
        now = time.monotonic()
        for member in self.members.values():
            if member.lives:
                if member.told_at and not member.frozen and now > member.told_at + END_S:
                    raise Broken("a process that is told to end ends", self._see(member, "did not"))
                continue
            if member.process is not None:
                self._bury(member, now)
            if now >= member.restart_at:
                self._start(member)

    def memory(self) -> dict[str, int]:
        """Bytes that each process has for itself: it shares its imports with all of them."""
        found = {}
        for member in self.members.values():
            if member.lives:
                try:
                    found[member.name] = psutil.Process(member.process.pid).memory_full_info().uss
                except psutil.Error:
                    continue
        return found

    def end(self) -> None:
        """End all."""
        for member in self.members.values():
            if member.lives:
                self.thaw(member)
                member.process.terminate()
        for member in self.members.values():
            if member.process is not None:
                end(member.process)

    def _bury(self, member: Member, now: float) -> None:
        status = member.process.wait()
        ended = f"ended with status {status}"
        self.journal.note(f"{member} {ended} ({member.excuse or 'nobody knows why'})")
        if not member.excuse:
            raise Broken("no process ends by itself", self._see(member, ended))
        if member.told_at:
            took = now - member.told_at
            self.slowest_end_s = max(self.slowest_end_s, took)
            # Before it has handlers for signals it has nothing to give back either.
            well = status == 0 or (status == -signal.SIGTERM and not self._was_ready(member))
            if not well:
                raise Broken("a process that is told to end ends well", self._see(member, ended))
        elif member.excuse in FATAL:
            if status not in FATAL[member.excuse]:
                what = f"({member.excuse}) {ended}, not with one of {FATAL[member.excuse]}"
                raise Broken("a process says how it ended", self._see(member, what))
            self.count[f"worker ended by: {member.excuse}"] += 1
        self._await_restart(member)

    def _see(self, member: Member, what: str) -> str:
        return f"{member} {what}: see {self.log(member.name).name}"

    def _was_ready(self, member: Member) -> bool:
        said = self.log(member.name).read_text(errors="replace")
        return f"ready: worker {member}@" in said

    def _await_restart(self, member: Member) -> None:
        if member.process is not None:
            member.process.wait()
        member.process, member.told_at, member.frozen = None, 0.0, False
        member.restart_at = time.monotonic() + self.random.uniform(0, 0.5)

    def _start(self, member: Member) -> None:
        member.starts += 1
        member.excuse, knobs = "", ""
        command = "worker"
        if member.name in ("api", "callbacks"):
            command = member.name
        elif member.name != "veteran":
            draw = self.random.uniform(0, 100)
            for name, (knob, share) in ENGINES.items():
                if 0 <= draw < share:
                    self.count[name] += 1
                    member.excuse = name if name in FATAL else ""
                    knobs = "&" + knob.format(wrong=self._wrong)
                draw -= share
        env = clean_environment() | {
            "POC_" + name.upper(): str(value)
            for name, value in self.settings.model_dump(exclude_unset=True).items()
        }
        if command == "worker":
            env |= {
                "POC_WORKER_NAME": f"{member}@{socket.gethostname()}",
                "POC_ENGINE": "fake_engine:load",
                "POC_MODEL": f"fake?seconds={BATCH_S}&nan={NAN_EVERY}{knobs}",
                "POC_RUN_CALLBACKS": "true" if self.random.random() < 0.5 else "false",
                "PYTHONPATH": str(ROOT / "tests"),
                "OMP_NUM_THREADS": "1",
            }
            if member.excuse == WRONG:
                env["POC_MODEL_DISTANCES"] = json.dumps(DISTANCES)
        ill = f" whose {member.excuse}" if member.excuse else f" with {knobs}" if knobs else ""
        self.journal.note(f"{member} starts{ill}")
        member.started_at = time.monotonic()
        member.process = Fork([command], env=env, cwd=ROOT, log_path=self.log(member.name))
