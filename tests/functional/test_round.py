"""A round by real worker processes, steered through the queue."""

from __future__ import annotations

from typing import Any

import pytest

from fake_engine import fake_distance
from shared.client import PoCClient
from shared.config import PoCConfig, PoCState
from shared.store import Store
from support import wait_until

pytestmark = pytest.mark.functional

CONFIG = PoCConfig(block_hash="b", block_height=1, public_key="k", r_target=0.2, batch_size=4)


def test_a_whole_round(client: PoCClient, store: Store, start_worker: Any) -> None:
    """Init, generate, stop: all that was checked is counted, all that is valid is there."""
    start_worker("w0", seconds=0.02)
    client.init(CONFIG)
    ticket = client.generate()
    wait_until(lambda: store.status().total_valid > 5)
    stopped = client.stop()
    ended = ticket.wait(timeout=10)

    assert ended.state == stopped.state == PoCState.STOPPED
    assert ended.total_checked == stopped.total_checked
    expected = [
        (n, d) for n in range(ended.total_checked) if (d := fake_distance("b", "k", n)) < 0.2
    ]
    assert list(zip(ended.valid_nonces, ended.valid_distances, strict=True)) == expected
