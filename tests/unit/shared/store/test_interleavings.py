"""Two workers and a controller in any order: no position is lost, none is counted twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.config import PoCConfig
from shared.requests import GenerateRequest
from shared.store import Ask, Claim, Computed, Store
from shared.store.connection import Client
from shared.store.keys import Keys

#: What happens, and to which of the claims that a worker ever had.
steps = st.tuples(
    st.sampled_from(
        [
            "claim",
            "claim",
            "commit",
            "commit and claim",
            "give_back",
            "fail",
            "beat",
            "expire",
            "stop",
            "go",
        ]
    ),
    st.integers(0, 7),
)


@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(steps, max_size=40))
def test_every_position_is_counted_once(
    redis: Client,
    keys: Keys,
    new_store: Callable[..., Store],
    config: PoCConfig,
    advance: Callable[[float], None],
    history: list[tuple[str, int]],
) -> None:
    """At any time a position below the cursor is committed, failed, or in exactly one claim."""
    redis.flushall()
    stores = [new_store(), new_store()]
    ids = map(str, count())
    claims: list[Claim] = []
    committed: list[int] = []
    stores[0].rounds.generate(next(ids), GenerateRequest(config=config, round_id="r"))

    def claim(store: Store) -> Claim | None:
        if got := store.rounds.claim("w", next(ids)):
            claims.append(got)
        return got

    def commit(store: Store, claim: Claim, *, and_claim: bool = False) -> None:
        outcome = Computed(claim.count, [(nonce, "0.5") for nonce in claim.nonces[::2]])
        if and_claim:
            ask = Ask("w", next(ids), ("chunk", "batch"))
            refused, got = store.work.commit_and_claim(claim, outcome, ask)
            if isinstance(got, Claim):
                claims.append(got)
        else:
            refused = store.rounds.commit(claim, outcome)
        if refused is None:
            committed.extend(range(claim.start, claim.start + claim.count))

    def check() -> int:
        held = [json.loads(raw) for raw in redis.hvals(keys("claims", "r"))]
        waiting = [int(c["start"]) + i for c in held for i in range(c["count"])]
        below = committed + waiting
        assert len(set(below)) == len(below)
        now = stores[0].rounds.status(newest=1000)
        assert now
        assert now.total_checked == len(committed)
        assert now.total_valid == len(now.valid_nonces) == len(committed) // 2
        assert set(now.valid_nonces) == {n for n in committed if n % 2 == 0}
        cursor = int(redis.hget(keys("run", "r"), "cursor"))
        assert len(below) + now.total_failed == cursor
        assert set(below) <= set(range(cursor))
        return len(waiting)

    for step, which in history:
        store = stores[which % 2]
        if step == "claim":
            claim(store)
        elif step == "expire":
            advance(31)
        elif step == "stop":
            store.rounds.stop(next(ids))
        elif step == "go":
            store.rounds.generate(next(ids))
        elif claims:
            one = claims[-1 - which % len(claims)]
            if step.startswith("commit"):
                commit(store, one, and_claim=step == "commit and claim")
            elif step == "beat":
                store.workers.heartbeat("w", {"fingerprint": "f"}, {}, [one.token])
            else:
                store.rounds.give_back(one, "broken" if step == "fail" else None)
        check()

    # Whatever happened, live workers finish what is left.
    stores[0].rounds.generate(next(ids))
    advance(31)
    while check() > 0:
        got = claim(stores[0])
        assert got
        commit(stores[0], got)
