"""A generation that was asked to end at a count or at a time ends there by itself."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import pytest

from shared.config import PoCConfig, PoCState
from shared.errors import InvalidRequest
from shared.requests import GenerateRequest
from shared.status import RoundStatus
from shared.store import Ask, Claim, Computed, Store
from shared.store.connection import Client
from shared.store.keys import Keys

GENERATING, STOPPED = PoCState.GENERATING, PoCState.STOPPED


def take(store: Store) -> Claim | None:
    return store.rounds.claim("w", uuid4().hex)


def find(store: Store, claim: Claim | None, count: int) -> str | None:
    """Commit a claim with so many valid nonces; why it was refused, if so."""
    assert claim
    valid = [(nonce, "0.5") for nonce in claim.nonces[:count]]
    return store.rounds.commit(claim, Computed(claim.count, valid))


def beat(store: Store) -> None:
    store.workers.heartbeat("w", {"fingerprint": "f"}, {}, [])


def status(store: Store) -> RoundStatus:
    found = store.rounds.status()
    assert found
    return found


def test_the_commit_that_reaches_the_count_ends_it(store: Store, config: PoCConfig) -> None:
    """Given five that are asked for, the third batch of two ends it, and a fourth is refused."""
    store.rounds.generate("g", GenerateRequest(config=config, until_valid=5))
    claims = [take(store) for _ in range(4)]
    for claim, state in zip(claims, (GENERATING, GENERATING, STOPPED), strict=False):
        assert find(store, claim, 2) is None
        assert status(store).state is state
    assert find(store, claims[3], 2) == "the round is STOPPED"
    ended = status(store)
    assert (ended.total_valid, ended.until_valid, ended.error) == (6, 5, "")


def test_its_ticket_ends_with_what_it_has(store: Store, config: PoCConfig) -> None:
    """The final status counts the batch that was the last, and there is no error."""
    store.rounds.generate("g", GenerateRequest(config=config, until_valid=1))
    find(store, take(store), 1)
    ending = store.endings.next()
    assert ending
    assert (ending.task, ending.error) == ("g", None)
    final = RoundStatus.of(ending.round_fields or {})
    assert (final.state, final.total_valid) == (STOPPED, 1)
    assert store.rounds.open_tickets()[1] == []


def test_a_count_of_all_that_a_round_may_hold_is_reached(
    new_store: Callable[..., Store], config: PoCConfig
) -> None:
    """Given a batch that goes beyond it, then it counts as a whole, and nothing has failed."""
    store = new_store(max_valid=3)
    store.rounds.generate("g", GenerateRequest(config=config, until_valid=3))
    for _ in range(2):
        claim = take(store)
        assert claim
        pairs = [(nonce, "0.5") for nonce in claim.nonces[:2]]
        assert store.rounds.commit(claim, Computed(claim.count, pairs)) is None
    ended = store.rounds.status()
    assert ended
    assert (ended.state, ended.total_valid, ended.error) == (STOPPED, 4, "")


def test_the_last_commit_claims_nothing(store: Store, config: PoCConfig) -> None:
    """A batch that nobody waits for is not begun."""
    store.rounds.generate("g", GenerateRequest(config=config, until_valid=1))
    claim = take(store)
    assert claim
    ask = Ask("w", "next", ("chunk", "batch"))
    done = store.work.commit_and_claim(claim, Computed(claim.count, [(0, "0.5")]), ask)
    assert done == (None, None)


@pytest.mark.parametrize("who", ["heartbeat", "claim", "commit"])
def test_whoever_comes_first_after_its_time_ends_it(
    store: Store, config: PoCConfig, advance: Callable[[float], None], who: str
) -> None:
    """A heartbeat, a claim that then gets nothing, or a commit that still counts."""
    store.rounds.generate("g", GenerateRequest(config=config, seconds=60))
    claim = take(store)
    advance(55)
    beat(store)
    assert status(store).state is GENERATING
    advance(6)
    if who == "commit":
        assert find(store, claim, 1) is None
    elif who == "claim":
        assert take(store) is None
    else:
        beat(store)
    ended = status(store)
    assert (ended.state, ended.total_valid) == (STOPPED, int(who == "commit"))
    assert ended.ends_at == pytest.approx(ended.started_at + 60, abs=1)


def test_what_comes_first_ends_it(
    store: Store, config: PoCConfig, advance: Callable[[float], None]
) -> None:
    """Given a count and a time, then either is enough."""
    store.rounds.generate("g1", GenerateRequest(config=config, until_valid=1, seconds=60))
    find(store, take(store), 1)
    assert status(store).state is STOPPED
    store.rounds.generate("g2", GenerateRequest(until_valid=9, seconds=60))
    advance(60)
    beat(store)
    assert (status(store).state, status(store).total_valid) == (STOPPED, 1)


def test_the_count_is_the_rounds(store: Store, config: PoCConfig) -> None:
    """Given a round that has as many from before, then it ends as soon as it goes on."""
    store.rounds.generate("g1", GenerateRequest(config=config))
    find(store, take(store), 3)
    store.rounds.stop("s")
    assert store.rounds.generate("g2", GenerateRequest(until_valid=3)).state is STOPPED
    assert store.rounds.open_tickets()[1] == []


def test_who_joins_changes_where_it_ends_only_by_saying_so(store: Store, config: PoCConfig) -> None:
    """The newest that says where counts, as a whole."""
    store.rounds.generate("g1", GenerateRequest(config=config, until_valid=3))
    assert store.rounds.generate("g2").until_valid == 3
    joined = store.rounds.generate("g3", GenerateRequest(seconds=60))
    assert (joined.until_valid, joined.ends_at > 0) == (0, True)


@pytest.mark.parametrize("command", ["stop", "validate"])
def test_a_generation_that_begins_again_has_no_end(
    store: Store, config: PoCConfig, advance: Callable[[float], None], command: str
) -> None:
    """Given one that ended before its time, then the next does not inherit that."""
    store.rounds.generate("g1", GenerateRequest(config=config, until_valid=1, seconds=60))
    getattr(store.rounds, command)("c")
    again = store.rounds.generate("g2")
    assert (again.until_valid, again.ends_at) == (0, 0)
    advance(100)
    beat(store)
    assert find(store, take(store), 2) is None
    assert status(store).state is GENERATING


def test_a_repeat_of_the_command_does_not_move_its_end(
    store: Store, config: PoCConfig, advance: Callable[[float], None]
) -> None:
    """A message that comes twice asks for nothing new."""
    asked = GenerateRequest(config=config, seconds=60)
    first = store.rounds.generate("g", asked)
    advance(30)
    assert store.rounds.generate("g", asked) == first
    assert status(store).ends_at == first.ends_at


def test_more_than_a_round_may_hold_is_refused(
    new_store: Callable[..., Store], config: PoCConfig
) -> None:
    """It could never get there; the round is not opened."""
    store = new_store(max_valid=10)
    with pytest.raises(InvalidRequest, match=r"until_valid=11: .* at most 10 .*POC_MAX_VALID"):
        store.rounds.generate("g", GenerateRequest(config=config, until_valid=11))
    assert status(store).round_id == ""


def test_without_an_end_nothing_of_it_is_in_redis(
    store: Store, redis: Client, keys: Keys, config: PoCConfig
) -> None:
    """A round's hash is what it was before there were ends."""
    round_id = store.rounds.generate("g", GenerateRequest(config=config)).round_id
    find(store, take(store), 2)
    for key in (keys("status"), keys("round", round_id)):
        assert not {"until_valid", "ends_at"} & redis.hgetall(key).keys()
