"""An epoch of the network as it is simulated: with nodes of its own, and through a crash."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

import preloaded
from computing import computing
from preloaded import Fork
from serving_api import serving_gateway
from support import ROOT, free_port, wait_until
from worker.tools.embedded import EmbeddedRedis
from worker.tools.make_model import make_model
from worker.tools.network.dapi import Chain
from worker.tools.network.epoch import Epoch, Participant
from worker.tools.network.node import Node

pytestmark = [pytest.mark.functional, pytest.mark.slow, pytest.mark.timeout(300)]

HOST, MODEL, SEQ_LEN = "127.0.0.1", "net/model", 16


class Machine:
    """A worker and a gateway that can be killed, and started again where they were."""

    def __init__(self, name: str, redis_url: str, model: Path, directory: Path) -> None:
        self._port = free_port()
        self.url = f"http://{HOST}:{self._port}"
        self._name, self._redis_url, self._model = name, redis_url, model
        self._directory = directory
        self._starts = count()
        self._started = contextlib.ExitStack()
        self._processes: list[Fork] = []

    def start(self) -> None:
        """Both, and wait until they are ready."""
        # A log of its own: what one said before it was killed does not count.
        log = self._directory / f"{self._name}-{next(self._starts)}"
        namespace = {"POC_NAMESPACE": self._name}
        worker = computing(self._redis_url, self._model, log.with_suffix(".worker"), **namespace)
        gateway = serving_gateway(
            self._redis_url,
            log.with_suffix(".gateway"),
            "--with-api",
            POC_GATEWAY_PORT=str(self._port),
            POC_GATEWAY_MODEL=MODEL,
            **namespace,
        )
        self._processes = [self._started.enter_context(worker)]
        self._processes.append(self._started.enter_context(gateway)[0])

    def kill(self) -> None:
        """As a crash of their machine does it."""
        for each in self._processes:
            each.kill()
        for each in self._processes:
            each.wait()

    def end(self) -> None:
        """In order."""
        self._started.close()


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
    words = ["simulate-epoch", "--seconds=2", "--json"]
    env = os.environ | {"TMPDIR": str(tmp_path)}
    done = preloaded.run(words, env=env, cwd=ROOT, timeout=280)
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
    stores = [each.dapi.artifacts for each in participants]

    def more() -> None:
        """And then no hole: what was held at a crash is taken over when its lease ends."""
        before = [len(each) for each in stores]
        wait_until(
            lambda: all(len(now) > n + 200 for now, n in zip(stores, before, strict=True)),
            60,
            "more artifacts",
            every=0.05,
        )
        wait_until(
            lambda: all(max([*each]) < len(each) for each in stores),
            60,
            "what was held",
            every=0.01,
        )

    def crash() -> None:
        more()
        server.kill()
        machines[0].kill()
        server.start()
        machines[0].start()
        more()

    with contextlib.ExitStack() as stack:
        for each in participants:
            stack.enter_context(each.taking_part(HOST))
        outcomes = Epoch(chain, participants, SEQ_LEN).run(crash)
    for each in outcomes:
        assert each.artifacts == each.computed
        assert each.holes == 0
        assert (each.votes_for, each.votes_against, each.paid) == (2, 0, True)
        assert each.as_it_must
