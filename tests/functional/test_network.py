"""An epoch of the network as it is simulated: with nodes of its own, and through a crash."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from preloaded import Fork
from support import ROOT, clean_environment, free_port, wait_until
from worker.children import end
from worker.tools.embedded import EmbeddedRedis
from worker.tools.make_model import make_model
from worker.tools.network.dapi import Chain
from worker.tools.network.epoch import Epoch, Node, Participant

pytestmark = [pytest.mark.functional, pytest.mark.slow, pytest.mark.timeout(300)]

HOST, MODEL, SEQ_LEN = "127.0.0.1", "net/model", 16


class Machine:
    """A worker and a gateway that can be killed, and started again where they were."""

    def __init__(self, name: str, redis_url: str, model: Path, directory: Path) -> None:
        port = free_port()
        self.url = f"http://{HOST}:{port}"
        self._name, self._directory = name, directory
        self._env = clean_environment(
            POC_REDIS_URL=redis_url,
            POC_NAMESPACE=name,
            POC_MODEL=str(model),
            POC_ENGINE="transformers",
            POC_DEVICE="cpu",
            POC_LEASE_S="2",
            POC_HEARTBEAT_S="0.5",
            POC_GATEWAY_PORT=str(port),
            POC_GATEWAY_MODEL=MODEL,
            OMP_NUM_THREADS="1",
        )
        self._processes: list[Fork] = []

    def start(self) -> None:
        """Both, and wait until they are ready."""
        words = {"worker": ["worker"], "gateway": ["gateway", "--with-api"]}
        logs = {part: self._directory / f"{self._name}-{part}.log" for part in words}
        said = {part: _read(log).count(READY[part]) for part, log in logs.items()}
        self._processes = [
            Fork(words[part], env=self._env, cwd=ROOT, log_path=log) for part, log in logs.items()
        ]
        for part, log in logs.items():
            wait_until(
                lambda part=part, log=log: _read(log).count(READY[part]) > said[part],
                120,
                f"{self._name}'s {part}",
                every=0.05,
            )

    def kill(self) -> None:
        """As a crash of their machine does it."""
        for each in self._processes:
            each.kill()
        for each in self._processes:
            each.wait()

    def end(self) -> None:
        for each in self._processes:
            end(each)


READY = {"worker": "ready.", "gateway": "listens on"}


def _read(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


@pytest.fixture
def server() -> Iterator[EmbeddedRedis]:
    """One that keeps what it has, as it does in production."""
    with EmbeddedRedis(aof=True) as server:
        yield server


@pytest.fixture
def machines(server: EmbeddedRedis, tmp_path: Path) -> Iterator[list[Machine]]:
    """Two that work."""
    model = make_model(tmp_path / "model", initializer_range=0.2)
    machines = [Machine(f"node-{number}", server.url, model, tmp_path) for number in range(2)]
    with contextlib.ExitStack() as stack:
        for each in machines:
            stack.callback(each.end)
            each.start()
        yield machines


def test_an_epoch_finds_the_cheat_and_pays_the_others(tmp_path: Path) -> None:
    """Although callbacks meet each border of phases; nothing of it is left."""
    done = subprocess.run(
        [sys.executable, "-m", "worker.cli", "simulate-epoch", "--seconds", "2", "--json"],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"the nodes' pages are http://\S+/node/", done.stderr)
    assert not list(tmp_path.glob("poc-*"))
    told = json.loads(done.stdout)
    assert told["as_it_must"]
    found = {each["name"]: each for each in told["participants"]}
    assert {name: each["paid"] for name, each in found.items()} == {
        "honest-1": True,
        "honest-2": True,
        "cheat": False,
    }
    votes = {name: (each["votes_for"], each["votes_against"]) for name, each in found.items()}
    assert votes == {"honest-1": (2, 1), "honest-2": (2, 1), "cheat": (1, 2)}
    for each in found.values():
        assert each["artifacts"] == each["computed"] > 0
        assert (each["repeats"], each["holes"]) == (0, 0)
    assert set(told["answers"]) >= {
        "200 OK",
        "400 block_height is not the active PoC stage",
        "503 not in PoC generate phase",
    }


def test_counts_are_exact_through_a_crash_of_gateway_worker_and_redis_at_once(
    machines: list[Machine], server: EmbeddedRedis
) -> None:
    """Given kill -9 of all three while they generate, then each artifact is there, and paid."""
    chain = Chain(MODEL)
    participants = [Participant(each.url, Node(each.url), chain) for each in machines]
    stored = participants[0].dapi.artifacts

    def more(than: int) -> None:
        wait_until(lambda: len(stored) > than + 200, 60, "more artifacts", every=0.05)

    def crash() -> None:
        more(0)
        server.kill()
        machines[0].kill()
        before = len(stored)
        server.start()
        machines[0].start()
        more(before)

    with contextlib.ExitStack() as stack:
        for each in participants:
            stack.enter_context(each.taking_part(HOST))
        outcomes = Epoch(chain, participants, SEQ_LEN).run(crash)
    for each in outcomes:
        assert each.artifacts == each.computed
        assert each.holes == 0
        assert (each.votes_for, each.votes_against, each.paid) == (2, 0, True)
        assert each.as_it_must
