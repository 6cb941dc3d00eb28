"""What a worker's log says of rounds: each thing once, whatever happens between two looks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from shared.about import about
from shared.config import PoCConfig
from shared.errors import StoreUnavailable
from shared.requests import GenerateRequest
from shared.store import Claim, Computed, Store
from shared.store.connection import Client
from shared.store.keys import Keys
from support import Clock, kept
from worker.callbacks.messages import generated_message
from worker.node import rounds
from worker.node.rounds import RoundLog

Said = Callable[[], list[str]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(rounds, "time", clock)
    return clock


@pytest.fixture
def log(store: Store) -> RoundLog:
    """Of a worker that came before any round."""
    log = RoundLog(store, "w")
    log.first_look()
    return log


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Said:
    """Gives what was said since it was last called, up to the first comma or colon."""
    caplog.set_level("INFO")

    def said() -> list[str]:
        lines = [line.replace(":", ",").partition(",")[0] for line in caplog.messages]
        caplog.clear()
        return lines

    return said


@pytest.fixture
def begin(store: Store, config: PoCConfig) -> Callable[[str], None]:
    """Lets a round generate, in the place of any other."""
    return lambda round_id: void(
        store.rounds.generate(
            round_id, GenerateRequest(config=config, round_id=round_id, replace=True)
        )
    )


def void(_: object) -> None:
    """Somebody has the status already."""


def claim(store: Store, token: str = "t") -> Claim:
    claim = store.rounds.claim("w", token)
    assert claim
    return claim


def test_a_round_from_its_begin_to_its_end(
    log: RoundLog,
    store: Store,
    config: PoCConfig,
    advance: Callable[[float], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With all that an operator asks for, a line each."""
    caplog.set_level("INFO")
    told = config.model_copy(update={"callback_url": "http://example.org"})
    store.rounds.generate("g", GenerateRequest(config=told, round_id="r1"))
    log.look(0, 0)
    work = claim(store)
    valid = [(1, 0.5), (2, 0.7)]
    found = Computed(3, kept(valid), failed=1, message=generated_message(work, valid))
    store.rounds.commit(work, found)
    advance(10)
    store.rounds.stop("s")
    log.look(0, 0)
    begin, end = caplog.messages
    assert begin == (
        "round r1 is generating: block b10c at 7, r_target 1.4, batches of 4 x 256, node 0 of 1; "
        "this is worker w"
    )
    assert end.startswith("round r1 is over, STOPPED: 3 checked, 2 valid, 1 failed in 10.")
    assert end.endswith(" s, 0.3 nonces/s; 1 callbacks wait")


def test_each_is_said_once(
    log: RoundLog, store: Store, begin: Callable[[str], None], said: Said
) -> None:
    """However often it is looked, and whoever sees it first."""
    begin("r1")
    log.claimed(claim(store))
    log.look(0, 0)
    log.look(0, 0)
    assert said() == ["round r1 is generating"]
    store.rounds.stop("s")
    for _ in range(3):
        log.look(0, 0)
    assert said() == ["round r1 is over"]


def test_each_minute(
    log: RoundLog,
    store: Store,
    begin: Callable[[str], None],
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """How far it is, how fast all are, and this worker; not more often."""
    caplog.set_level("INFO")
    begin("r1")
    for _ in range(4):
        log.look(12.34, 0.5)
        clock.now += rounds.REPORT_EVERY_S / 2
    lines = [line for line in caplog.messages if "checked" in line]
    store.rounds.stop("s")
    assert lines == [
        "round r1: 0 checked, 0 valid, 0 failed, 0.0 nonces/s; here 12.3 nonces/s, device busy 50%"
    ]


def test_a_worker_that_joins_says_what_runs(
    store: Store, begin: Callable[[str], None], said: Said
) -> None:
    """As one does that was there from the begin."""
    begin("r1")
    joined = RoundLog(store, "late")
    joined.first_look()
    joined.look(0, 0)
    assert said() == ["round r1 is generating"]


def test_a_worker_that_comes_after_a_round_is_silent(
    store: Store, begin: Callable[[str], None], said: Said, advance: Callable[[float], None]
) -> None:
    """What was over before is no news; that it goes on is."""
    begin("r1")
    advance(10)
    store.rounds.stop("s")
    late = RoundLog(store, "late")
    late.first_look()
    late.look(0, 0)
    assert said() == []
    store.rounds.generate("again")
    late.look(0, 0)
    assert said() == ["round r1 is generating"]


def test_a_round_between_two_looks(
    log: RoundLog,
    store: Store,
    begin: Callable[[str], None],
    said: Said,
    advance: Callable[[float], None],
) -> None:
    """It is said all the same, begin and end, by a worker that had no work of it."""
    begin("r1")
    advance(1)
    store.rounds.stop("s")
    log.look(0, 0)
    assert said() == ["round r1 is generating", "round r1 is over"]


def test_a_round_that_is_replaced(
    log: RoundLog, begin: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Its end is told by its own counts, and names what came after it."""
    caplog.set_level("INFO")
    begin("r1")
    log.look(0, 0)
    begin("r2")
    log.look(0, 0)
    log.look(0, 0)
    first, *others = (line for line in caplog.messages if "is over" in line)
    assert first.startswith("round r1 is over, STOPPED (round r2 came after it): 0 checked")
    assert others == []
    assert sum("round r2 is generating" in line for line in caplog.messages) == 1


def test_rounds_that_a_worker_had_work_of_between_two_looks(
    log: RoundLog, store: Store, begin: Callable[[str], None], said: Said
) -> None:
    """All of them."""
    for round_id in ("r1", "r2", "r3"):
        begin(round_id)
        log.claimed(claim(store, round_id))
    log.look(0, 0)
    assert said() == [
        "round r1 is generating",
        "round r2 is generating",
        "round r3 is generating",
        "round r1 is over",
        "round r2 is over",
    ]


def test_a_round_that_is_replaced_while_redis_is_away(
    log: RoundLog,
    begin: Callable[[str], None],
    said: Said,
    away: Callable[[], AbstractContextManager[None]],
) -> None:
    """Given looks in vain, then the first one that succeeds says it, once."""
    begin("r1")
    log.look(0, 0)
    with away():
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                log.look(0, 0)
    begin("r2")
    log.look(0, 0)
    log.look(0, 0)
    assert said() == ["round r1 is generating", "round r2 is generating", "round r1 is over"]


def test_a_round_that_redis_has_lost(
    log: RoundLog, begin: Callable[[str], None], said: Said, redis: Client, keys: Keys
) -> None:
    """What became of it nobody knows, and that is said."""
    begin("r1")
    log.look(0, 0)
    redis.delete(keys("round", "r1"), keys("status"))
    log.look(0, 0)
    assert said() == ["round r1 is generating", "round r1 is over"]


def test_a_claim_that_is_noted_late(
    log: RoundLog, store: Store, begin: Callable[[str], None], said: Said
) -> None:
    """Given a round whose end was said meanwhile, then it does not begin again."""
    begin("r1")
    late = claim(store)
    log.look(0, 0)
    store.rounds.stop("s")
    log.look(0, 0)
    log.claimed(late)
    log.look(0, 0)
    assert said() == ["round r1 is generating", "round r1 is over"]


def test_the_lines_are_about_the_round(
    log: RoundLog, begin: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    """And what the thread was at before, it is at again."""
    caplog.set_level("INFO")
    before, seen = about(), []
    caplog.handler.addFilter(lambda _: bool(seen.append(about().round_id)) or True)
    begin("r1")
    log.look(0, 0)
    begin("r2")
    log.look(0, 0)
    assert seen == ["r1", "r2", "r1"]
    assert about() == before


def test_a_round_that_was_stopped_says_why(
    new_store: Callable[..., Store],
    config: PoCConfig,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Given more valid nonces than POC_MAX_VALID."""
    caplog.set_level("INFO")
    store = new_store(max_valid=1)
    log = RoundLog(store, "w")
    store.rounds.generate("g", GenerateRequest(config=config, round_id="r1"))
    log.look(0, 0)
    store.rounds.commit(claim(store), Computed(4, [(1, "0.5"), (2, "0.5")]))
    log.look(0, 0)
    assert "round r1 is over, STOPPED (the round holds 0 valid nonces and" in caplog.text
