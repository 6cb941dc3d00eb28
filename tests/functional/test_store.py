"""The store and a Redis that goes away: exact over what Redis kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from uuid import uuid4

import pytest
import redis

from shared.config import PoCConfig, PoCState
from shared.errors import StoreUnavailable
from shared.requests import GenerateRequest
from shared.settings import load_settings
from shared.status import RoundStatus
from shared.store import Claim, Computed, Store
from worker.tools.embedded import EmbeddedRedis

pytestmark = pytest.mark.functional

CONFIG = PoCConfig(block_hash="b10c", block_height=7, public_key="node", r_target=1.4, batch_size=4)


@contextlib.contextmanager
def store_on(server: EmbeddedRedis) -> Iterator[Store]:
    """A store of a process of its own on `server`."""
    store = Store(load_settings({}, redis_url=server.url, namespace="test"))
    try:
        yield store
    finally:
        store.close()


def take(store: Store) -> Claim:
    claim = store.rounds.claim("w", uuid4().hex)
    assert claim
    return claim


def status(store: Store) -> RoundStatus:
    found = store.rounds.status(newest=100)
    assert found
    return found


def dump(server: EmbeddedRedis) -> dict[bytes, tuple[int, bytes]]:
    """All that the server holds: what a replica had received."""
    with contextlib.closing(redis.Redis.from_url(server.url)) as client:
        return {key: (max(client.pttl(key), 0), client.dump(key)) for key in client.scan_iter()}


def restore(server: EmbeddedRedis, kept: dict[bytes, tuple[int, bytes]]) -> None:
    """Set the server back to what was kept: the replica is the primary now."""
    with contextlib.closing(redis.Redis.from_url(server.url)) as client:
        client.flushall()
        for key, (lives_ms, value) in kept.items():
            client.restore(key, lives_ms, value)


def test_a_round_goes_on_after_redis_was_killed() -> None:
    """Given a Redis with a log, when it is killed and started, then nothing answered is lost."""
    with EmbeddedRedis(aof=True) as server, store_on(server) as store:
        store.rounds.generate("g", GenerateRequest(config=CONFIG))
        store.rounds.commit(take(store), Computed(4, [(2, "0.5")]))
        in_flight = take(store)
        before = status(store)
        server.kill()
        with pytest.raises(StoreUnavailable, match=r"^Redis: "):
            store.rounds.status()
        server.start()
        assert status(store) == before
        assert store.rounds.commit(in_flight, Computed(4, [])) is None
        assert status(store).total_checked == 8
        assert take(store).start == 8


def test_a_redis_without_a_log_comes_back_idle() -> None:
    """Given a Redis that keeps nothing, then what was in flight is refused and all is zero."""
    with EmbeddedRedis() as server, store_on(server) as store:
        store.rounds.generate("g", GenerateRequest(config=CONFIG))
        in_flight = take(store)
        server.kill()
        server.start()
        assert store.rounds.commit(in_flight, Computed(4, [(0, "0.5")])) == "the round is over"
        assert store.rounds.claim("w", "t") is None
        assert status(store) == RoundStatus()
        store.rounds.generate("g", GenerateRequest(config=CONFIG))
        assert take(store).start == 0


def test_a_redis_that_steps_back_counts_exactly() -> None:
    """Given a fail-over that undid a claim and two commits, then each position counts once."""
    with EmbeddedRedis() as server, store_on(server) as store:
        store.rounds.generate("g", GenerateRequest(config=CONFIG))
        store.rounds.commit(take(store), Computed(4, [(0, "0.5")]))
        undone = take(store)
        kept = dump(server)
        store.rounds.commit(undone, Computed(4, [(4, "0.5")]))
        lost = take(store)
        restore(server, kept)

        assert status(store).valid_nonces == [0]
        assert (
            store.rounds.commit(lost, Computed(4, [(8, "0.5")])) == "its positions were taken over"
        )
        assert store.rounds.commit(undone, Computed(4, [(4, "0.5")])) is None
        again = take(store)
        assert again.start == lost.start
        assert store.rounds.commit(again, Computed(4, [(8, "0.5")])) is None
        now = status(store)
        assert (now.state, now.total_checked) == (PoCState.GENERATING, 12)
        assert now.valid_nonces == [0, 4, 8]
