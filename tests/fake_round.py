"""What the fake engine gives in a round of the tests, and how it is kept busy."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fake_engine import FakeEngine, fake_distance
from shared.config import PoCConfig
from shared.data import ProofBatch
from shared.errors import StoreUnavailable
from shared.status import RoundStatus
from shared.store import Store
from support import wait_until
from worker.node.pipeline import Pipeline


def distances(*nonces: int, key: str = "node") -> list[float]:
    """What the engine gives for nonces of the tests' block."""
    return [fake_distance("b10c", key, nonce) for nonce in nonces]


def theirs(config: PoCConfig, *nonces: int) -> ProofBatch:
    """What another node submits."""
    them = config.model_copy(update={"public_key": "them"})
    return ProofBatch.of(them, nonces, distances(*nonces, key="them"))


def status(store: Store) -> RoundStatus:
    """The round with every nonce."""
    found = store.rounds.status(newest=1000)
    assert found
    return found


def computed(engine: FakeEngine) -> list[tuple[int, ...]]:
    """The nonces of each job that the engine began."""
    return [job.nonces for job in engine.jobs]


def free(store: Store, count: int) -> list[int]:
    """The first nonces of the batches that another worker gets next, in order."""
    claims = [store.rounds.claim("other", f"free-{i}") for i in range(count)]
    return sorted(claim.nonces[0] for claim in claims if claim)


@contextmanager
def two_in_the_engine(pipeline: Pipeline, engine: FakeEngine) -> Iterator[None]:
    """One batch is computed for as long as the block takes, another one waits behind it.

    With the block ends the thread that steps: the first one is committed, or could not be.
    """
    engine.gate.clear()
    assert pipeline.step()

    def step() -> None:
        with suppress(StoreUnavailable):
            pipeline.step()

    stepping = threading.Thread(target=step)
    stepping.start()
    try:
        wait_until(lambda: len(pipeline.tokens) == 2 and engine.jobs, description="two batches")
        yield
    finally:
        engine.gate.set()
        stepping.join(30)
    assert not stepping.is_alive()
