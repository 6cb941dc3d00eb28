"""Was every nonce of a round counted once? Asked of Redis, answered by a recount.

The rounds of these tests take every nonce as valid (r_target 2), so what was counted is exactly
what the hash of valid nonces holds.
"""

from __future__ import annotations

from fake_engine import fake_distance
from shared.client import PoCClient
from shared.config import PoCConfig
from shared.status import RoundStatus
from shared.store import Store
from support import wait_until

#: Every nonce is valid.
ALL_VALID = PoCConfig(block_hash="b", block_height=1, public_key="k", r_target=2, batch_size=4)


def counted(store: Store, status: RoundStatus) -> list[int]:
    """The nonces that `status` counts, in order of discovery; each once, with its distance."""
    nonces, distances = store.rounds.found(status.round_id, 0, status.total_valid + 1)
    assert len(nonces) == len(set(nonces)) == status.total_valid == status.total_checked
    assert status.total_failed == 0
    assert distances == [
        fake_distance(status.block_hash, status.public_key, nonce) for nonce in nonces
    ]
    return nonces


def without_gap(nonces: list[int], config: PoCConfig = ALL_VALID, open_batches: int = 0) -> None:
    """`nonces` are the node's own, from its first on; at most `open_batches` are missing."""
    positions = {(nonce - config.node_id) // config.node_count for nonce in nonces}
    assert set(nonces) == {n for p in positions for n in config.nonces(p, 1)}
    missing = set(range(max(positions) + 1)) - positions
    assert len(missing) <= open_batches * config.batch_size, sorted(missing)


def generating(client: PoCClient, store: Store, nonces: int = 8) -> None:
    """Begin, or go on, and wait until so many more are counted."""
    client.generate(ALL_VALID)
    goal = store.status().total_checked + nonces
    wait_until(lambda: store.status().total_checked >= goal, description="the first batches")
