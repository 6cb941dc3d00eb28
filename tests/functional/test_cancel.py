"""A validation that is cancelled, with a real worker, its caller and its receiver."""

from __future__ import annotations

from typing import Any

import pytest

import preloaded
from exactness import ALL_VALID
from fake_engine import fake_distance
from receiver import Receiver
from shared.client import PoCClient
from shared.data import ProofBatch
from shared.errors import Cancelled, InvalidRequest
from shared.settings import Settings
from shared.store import Store
from support import ROOT, clean_environment, wait_until

pytestmark = pytest.mark.functional


def test_cancelled_by_the_command_line(
    settings: Settings, store: Store, client: PoCClient, start_worker: Any
) -> None:
    """Given one under way, its caller, its receiver and the worker's next task see the end."""
    start_worker("w0", seconds=0.1)
    with Receiver() as receiver:
        config = ALL_VALID.model_copy(update={"callback_url": receiver.url, "batch_size": 1})
        nonces = list(range(3000))
        batch = ProofBatch.of(config, nonces, [fake_distance("b", "k", n) for n in nonces])
        ticket = client.validate_batch(batch, config)
        wait_until(
            lambda: store.validations.progress().get(ticket.id, {}).get("done"),
            description="a chunk that is done",
        )
        env = clean_environment() | {
            "POC_REDIS_URL": settings.redis_url,
            "POC_NAMESPACE": settings.namespace,
        }
        done = preloaded.run(["cancel", ticket.id], env=env, cwd=ROOT)
        assert (done.returncode, done.stdout) == (0, f"validation {ticket.id} was cancelled\n")
        with pytest.raises(Cancelled, match=f"^validation {ticket.id} was cancelled before"):
            ticket.wait(30)
        wait_until(lambda: receiver.bodies("/poc/validated"), description="the callback")
        (body,) = receiver.bodies("/poc/validated")
    assert (body["error"], body["not_computed"]) == ("Cancelled", nonces)
    assert client.cancel(ticket.id).cancelled
    # The worker is free for others, whose end is no cancellation.
    small = client.validate_batch(
        ProofBatch.of(ALL_VALID, batch.nonces[:4], batch.dist[:4]), ALL_VALID
    )
    assert small.wait(30).n_invalid == 0
    assert not client.cancel(small.id).cancelled
    with pytest.raises(InvalidRequest, match="no validation"):
        client.cancel("never")
