"""The round in Redis: each position is computed and counted once, whatever happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.config import MAX_NONCE, PoCConfig, PoCState
from shared.errors import InvalidRequest, RoundInProgress, RoundMismatch, RoundNotInitialized
from shared.requests import GenerateRequest, InitRequest, StopRequest, ValidateRequest
from shared.settings import load_settings
from shared.status import RoundStatus
from shared.store import Claim, Computed, Message, Store
from shared.store.connection import Client
from shared.store.keys import Keys
from support import kept

on_one_store = settings(
    deadline=None,
    max_examples=20,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


REQUESTS = {"init": InitRequest, "generate": GenerateRequest, "validate": ValidateRequest}


def take(store: Store, worker: str = "w") -> Claim:
    """The next claim, which must be there."""
    claim = store.rounds.claim(worker, uuid4().hex)
    assert claim
    return claim


def commit(store: Store, claim: Claim, valid: list[tuple[int, float]] | None = None) -> str | None:
    """Commit a claim as wholly computed; why it was refused, if so."""
    return store.rounds.commit(claim, Computed(claim.count, kept(valid or [])))


def status(store: Store, round_id: str | None = None) -> RoundStatus:
    """The status with every nonce."""
    found = store.rounds.status(round_id, newest=1000)
    assert found
    return found


def starts(store: Store, count: int) -> list[int]:
    """Where the next claims start."""
    return [take(store).start for _ in range(count)]


class TestOpening:
    """Rounds begin with zeros, one at a time."""

    def test_before_the_first_round_all_is_zero(self, store: Store) -> None:
        """A poller that is early sees an idle node."""
        assert status(store) == RoundStatus()
        assert store.rounds.current() == ("", None)
        assert store.rounds.open_tickets() == (RoundStatus(), [])

    def test_a_round_shows_its_config(self, store: Store, config: PoCConfig) -> None:
        """And the config itself comes back equal."""
        opened = store.rounds.init("i", InitRequest(config=config, round_id="r1"))
        assert opened == status(store) == status(store, "r1")
        assert (opened.round_id, opened.state) == ("r1", PoCState.IDLE)
        shown, asked = opened.model_dump(), config.model_dump()
        same = shown.keys() & asked.keys()
        assert {"scheme", "block_hash", "r_target", "batch_size"} <= same
        assert {name: shown[name] for name in same} == {name: asked[name] for name in same}
        assert store.rounds.current() == ("r1", config)

    @pytest.mark.parametrize(
        "terms", [{"r_target": 1.3, "submit_margin": 0.1}, {"scheme": "artifact", "k_dim": 7}]
    )
    def test_a_status_tells_enough_for_a_batch(
        self, store: Store, config: PoCConfig, terms: dict[str, Any]
    ) -> None:
        """To those who may not read the config, which has the receiver."""
        own = config.model_dump(include={"block_hash", "block_height", "public_key", "node_id"})
        del own["scheme"]
        config = PoCConfig(**own, **terms)
        known = store.rounds.init("i", InitRequest(config=config)).config
        found = [1, 2], [0.5, 0.25] if config.scheme == "distance" else ["AAAA", "BBBB"]
        batch = config.terms.batch_of(config, *found)
        assert known.terms.batch_of(known, *found) == batch

    def test_an_unknown_round_has_no_status(self, store: Store) -> None:
        assert store.rounds.status("never") is None

    def test_init_resets_what_the_last_round_counted(self, store: Store, config: PoCConfig) -> None:
        """Given a round with a valid nonce, when the next begins, then it has none."""
        store.rounds.generate("g", GenerateRequest(config=config, round_id="r1"))
        commit(store, take(store), [(2, 0.5)])
        store.rounds.stop("s")
        store.rounds.init("i", InitRequest(config=config))
        now = status(store)
        assert (now.total_checked, now.total_valid, now.valid_nonces) == (0, 0, [])
        before = status(store, "r1")
        assert (before.total_checked, before.valid_nonces) == (4, [2])

    def test_a_round_id_is_used_once(self, store: Store, config: PoCConfig) -> None:
        """Its results are still kept."""
        store.rounds.init("i1", InitRequest(config=config, round_id="r1"))
        with pytest.raises(InvalidRequest, match="r1 was used before"):
            store.rounds.init("i2", InitRequest(config=config, round_id="r1"))

    def test_replace_ends_the_running_round(self, store: Store, config: PoCConfig) -> None:
        """The replaced round is stopped, its ticket ends, the new one is idle."""
        store.rounds.generate("g", GenerateRequest(config=config, round_id="r1"))
        assert (
            store.rounds.init("i", InitRequest(config=config, replace=True)).state is PoCState.IDLE
        )
        assert status(store, "r1").state is PoCState.STOPPED
        ending = store.endings.next()
        assert ending
        assert (ending.task, ending.error) == ("g", None)

    def test_generate_with_a_config_is_one_step(self, store: Store, config: PoCConfig) -> None:
        """It opens and starts, or does neither."""
        assert (
            store.rounds.generate("g1", GenerateRequest(config=config, round_id="r1")).state
            is PoCState.GENERATING
        )
        with pytest.raises(RoundInProgress):
            store.rounds.generate("g2", GenerateRequest(config=config, round_id="r2"))
        assert status(store).round_id == "r1"
        assert store.rounds.status("r2") is None
        assert (
            store.rounds.generate(
                "g3", GenerateRequest(config=config, round_id="r3", replace=True)
            ).round_id
            == "r3"
        )

    def test_validate_with_a_config_opens_a_validating_round(
        self, store: Store, config: PoCConfig
    ) -> None:
        assert (
            store.rounds.validate("v", ValidateRequest(config=config, round_id="r1")).state
            is PoCState.VALIDATING
        )
        assert store.rounds.claim("w", "t") is None

    @pytest.mark.parametrize("verb", ["generate", "validate"])
    def test_a_command_for_another_round_is_refused(
        self, store: Store, config: PoCConfig, verb: str
    ) -> None:
        """The caller thinks of a round that is over."""
        store.rounds.init("i", InitRequest(config=config, round_id="r2"))
        with pytest.raises(RoundMismatch, match="r1 is not the current one, which is r2"):
            getattr(store.rounds, verb)("c", REQUESTS[verb](round_id="r1"))
        assert status(store).state is PoCState.IDLE

    def test_namespaces_do_not_meet(self, redis: Client, config: PoCConfig) -> None:
        """One Redis, two nodes."""
        one, two = (Store(load_settings({}, namespace=n), redis) for n in ("one", "two"))
        one.rounds.generate("g", GenerateRequest(config=config))
        assert status(two) == RoundStatus()
        redis.flushall()  # they are not of the namespace whose keys are checked


class TestCommandsTwice:
    """The same command id gives the same outcome and changes nothing."""

    @pytest.mark.parametrize(
        ("verb", "with_config"),
        [
            ("init", True),
            ("generate", True),
            ("generate", False),
            ("validate", True),
            ("validate", False),
        ],
    )
    def test_a_replay_gives_the_first_answer(
        self, store: Store, config: PoCConfig, verb: str, with_config: bool
    ) -> None:
        """Even after the next round has begun."""
        store.rounds.init("i", InitRequest(config=config))
        issue = getattr(store.rounds, verb)
        arguments = (REQUESTS[verb](config=config),) if with_config else ()
        first = issue("c", *arguments)
        store.rounds.stop("s")
        store.rounds.init("i2", InitRequest(config=config))
        before = status(store)
        assert issue("c", *arguments) == first
        assert status(store) == before

    def test_a_stop_replayed_does_not_stop_the_next_round(
        self, store: Store, new_store: Callable[..., Store], config: PoCConfig
    ) -> None:
        store.rounds.generate("g1", GenerateRequest(config=config))
        stopped = store.rounds.stop("s")
        store.rounds.generate("g2", GenerateRequest(config=config))
        assert new_store().rounds.stop("s") == stopped
        assert status(store).state is PoCState.GENERATING

    def test_a_generate_replayed_adds_no_second_ticket(
        self, store: Store, config: PoCConfig
    ) -> None:
        """A ticket that has ended must not be opened again."""
        store.rounds.generate("g", GenerateRequest(config=config))
        store.rounds.stop("s")
        store.rounds.generate("g")
        assert store.rounds.open_tickets()[1] == []
        assert status(store).state is PoCState.STOPPED

    @pytest.mark.parametrize("verb", ["generate", "validate"])
    def test_a_refusal_is_replayed_after_its_reason_has_gone(
        self, store: Store, config: PoCConfig, verb: str
    ) -> None:
        """The caller was told no; a late duplicate must not do it after all."""
        issue = getattr(store.rounds, verb)
        with pytest.raises(RoundNotInitialized, match=r"^Round not initialized$"):
            issue("c")
        store.rounds.init("i", InitRequest(config=config))
        with pytest.raises(RoundNotInitialized, match=r"^Round not initialized$"):
            issue("c")
        assert status(store).state is PoCState.IDLE

    def test_a_refused_init_is_replayed(self, store: Store, config: PoCConfig) -> None:
        """Given an init that met a running round, when it comes again, then it still is refused."""
        store.rounds.generate("g", GenerateRequest(config=config))
        for _ in range(2):
            with pytest.raises(RoundInProgress, match=r"^Round already in progress$"):
                store.rounds.init("i", InitRequest(config=config))
            store.rounds.stop("s")


class TestStopping:
    """A stop is at once and for good."""

    def test_a_stop_that_overtakes_its_round_refuses_it(
        self, store: Store, config: PoCConfig
    ) -> None:
        """Given a stop that names a round to come, when its generate comes, it is refused."""
        store.rounds.stop("s", StopRequest(round_id="r1"))
        with pytest.raises(RoundMismatch, match="r1 was stopped before it began"):
            store.rounds.generate("g", GenerateRequest(config=config, round_id="r1"))
        assert status(store) == RoundStatus()

    def test_a_stop_of_a_round_to_come_leaves_the_current_one(
        self, store: Store, config: PoCConfig
    ) -> None:
        store.rounds.generate("g", GenerateRequest(config=config, round_id="r1"))
        assert store.rounds.stop("s", StopRequest(round_id="r2")).round_id == "r1"
        assert status(store).state is PoCState.GENERATING

    def test_a_stop_of_an_old_round_shows_that_one(self, store: Store, config: PoCConfig) -> None:
        """It has ended already."""
        store.rounds.generate("g1", GenerateRequest(config=config, round_id="r1"))
        store.rounds.generate("g2", GenerateRequest(config=config, round_id="r2", replace=True))
        stopped = store.rounds.stop("s", StopRequest(round_id="r1"))
        assert (stopped.round_id, stopped.state) == ("r1", PoCState.STOPPED)
        assert status(store).state is PoCState.GENERATING

    def test_a_round_goes_on_where_it_was(self, store: Store, config: PoCConfig) -> None:
        """Given a stopped round, when it generates again, then it neither repeats nor skips."""
        store.rounds.generate("g1", GenerateRequest(config=config))
        commit(store, take(store), [(3, 0.25)])
        store.rounds.stop("s")
        assert store.rounds.generate("g2").total_checked == 4
        assert take(store).nonces == (4, 5, 6, 7)

    @pytest.mark.parametrize("verb", ["stop", "validate"])
    def test_every_ticket_ends_with_the_round(
        self, store: Store, config: PoCConfig, verb: str
    ) -> None:
        """Also those that joined while it ran; each end has the final counts."""
        store.rounds.generate("g1", GenerateRequest(config=config))
        store.rounds.generate("g2")
        assert store.rounds.open_tickets()[1] == ["g1", "g2"]
        commit(store, take(store), [(1, 0.5)])
        getattr(store.rounds, verb)("end")
        told = set()
        while ending := store.endings.next():
            assert ending.round_fields
            assert ending.round_fields["total_checked"] == "4"
            told.add(ending.task)
            store.endings.drop(ending)
        assert told == {"g1", "g2"}
        assert store.rounds.open_tickets()[1] == []


class TestClaims:
    """The sequence of a node, handed out in batches."""

    def test_a_lone_node_takes_every_nonce(self, store: Store, config: PoCConfig) -> None:
        store.rounds.generate("g", GenerateRequest(config=config))
        assert [take(store).nonces for _ in range(2)] == [(0, 1, 2, 3), (4, 5, 6, 7)]

    def test_a_node_of_three_takes_every_third(self, store: Store, config: PoCConfig) -> None:
        """From its own number on."""
        store.rounds.generate(
            "g", GenerateRequest(config=config.model_copy(update={"node_id": 1, "node_count": 3}))
        )
        assert take(store).nonces == (1, 4, 7, 10)

    def test_nothing_is_claimed_unless_a_round_generates(
        self, store: Store, config: PoCConfig
    ) -> None:
        assert store.rounds.claim("w", "t1") is None
        store.rounds.init("i", InitRequest(config=config))
        assert store.rounds.claim("w", "t2") is None
        store.rounds.generate("g")
        store.rounds.stop("s")
        assert store.rounds.claim("w", "t3") is None

    def test_asking_again_with_a_token_gives_the_same_claim(
        self, store: Store, config: PoCConfig
    ) -> None:
        """The answer was lost on the way."""
        store.rounds.generate("g", GenerateRequest(config=config))
        first = store.rounds.claim("w", "token")
        assert store.rounds.claim("w", "token") == first
        assert take(store).start == 4

    def test_two_processes_share_the_sequence(
        self, store: Store, new_store: Callable[..., Store], config: PoCConfig
    ) -> None:
        """The second has not seen the round begin."""
        other = new_store()
        store.rounds.generate("g", GenerateRequest(config=config))
        assert [take(s).start for s in (store, other, store, other)] == [0, 4, 8, 12]

    def test_positions_of_a_dead_worker_go_first(
        self, store: Store, config: PoCConfig, advance: Callable[[float], None]
    ) -> None:
        """Given a claim whose lease ended, when others claim, then they take its positions."""
        store.rounds.generate("g", GenerateRequest(config=config))
        dead = take(store, "dead")
        advance(31)
        again = take(store)
        assert (again.nonces, again.attempts) == (dead.nonces, 1)
        assert take(store).start == 4

    def test_a_live_lease_is_left_alone(
        self, store: Store, config: PoCConfig, advance: Callable[[float], None]
    ) -> None:
        store.rounds.generate("g", GenerateRequest(config=config))
        take(store)
        advance(29)
        assert take(store).start == 4

    def test_a_claim_given_back_is_no_failure(self, store: Store, config: PoCConfig) -> None:
        """A worker that shuts down hands on what it had not begun."""
        store.rounds.generate("g", GenerateRequest(config=config))
        claim = take(store)
        store.rounds.give_back(claim)
        again = take(store)
        assert (again.start, again.attempts) == (claim.start, 0)

    def test_a_claim_given_back_with_an_error_is_an_attempt(
        self, store: Store, config: PoCConfig
    ) -> None:
        store.rounds.generate("g", GenerateRequest(config=config))
        store.rounds.give_back(take(store), "out of memory")
        assert take(store).attempts == 1

    def test_positions_that_fail_too_often_are_given_up_visibly(
        self, store: Store, config: PoCConfig
    ) -> None:
        """They count as failed, not as checked, and the sequence goes on behind them."""
        store.rounds.generate("g", GenerateRequest(config=config))
        for _ in range(3):
            store.rounds.give_back(take(store), "out of memory")
        assert take(store).start == 4
        now = status(store)
        assert (now.total_failed, now.total_checked) == (4, 0)
        assert now.error == "positions 0 to 3 failed 3 times: out of memory"

    def test_the_death_of_workers_is_a_failure_too(
        self, new_store: Callable[..., Store], config: PoCConfig, advance: Callable[[float], None]
    ) -> None:
        """A batch that kills its worker must not kill them all."""
        store = new_store(max_attempts=1)
        store.rounds.generate("g", GenerateRequest(config=config))
        take(store, "w1")
        advance(31)
        assert take(store).start == 4
        assert status(store).error.endswith("failed 1 times: worker w1 did not finish it")

    def test_what_is_in_flight_at_a_change_is_claimed_again(
        self, store: Store, config: PoCConfig
    ) -> None:
        """No attempt is counted: nobody failed."""
        store.rounds.generate("g1", GenerateRequest(config=config))
        starts(store, 2)
        store.rounds.stop("s")
        store.rounds.generate("g2")
        again = [take(store) for _ in range(3)]
        assert sorted(claim.start for claim in again) == [0, 4, 8]
        assert {claim.attempts for claim in again} == {0}


class TestModels:
    """A round is of one model."""

    def test_another_model_gets_nothing_of_the_round(self, store: Store, config: PoCConfig) -> None:
        """A worker with it idles, and the round's error says why."""
        store.rounds.generate("g", GenerateRequest(config=config))
        assert store.rounds.claim("w1", "t1", "one")
        assert store.rounds.claim("w2", "t2", "two") is None
        assert "began with the model one, worker w2 has two" in status(store).error
        assert store.rounds.claim("w1", "t3", "one")
        assert status(store).error == ""

    def test_the_next_round_may_have_another(self, store: Store, config: PoCConfig) -> None:
        store.rounds.generate("g", GenerateRequest(config=config))
        assert store.rounds.claim("w1", "t1", "one")
        store.rounds.generate("h", GenerateRequest(config=config, replace=True))
        assert store.rounds.claim("w2", "t2", "two")
        assert status(store).error == ""


class TestSchemes:
    """A worker gets nothing of a round whose scheme it does not compute."""

    def test_another_scheme_gets_nothing_of_the_round(
        self, store: Store, config: PoCConfig
    ) -> None:
        """No nonce is lost to it, the round's error says why, and others go on."""
        store.rounds.generate("g", GenerateRequest(config=config))
        assert store.rounds.claim("w1", "t1", "other model", ["artifact"]) is None
        assert "worker w1 can't compute the scheme distance" in status(store).error
        claim = store.rounds.claim("w2", "t2", "model", ["artifact", "distance"])
        assert claim
        assert (claim.start, claim.attempts) == (0, 0)

    def test_it_hides_no_other_error(self, store: Store, config: PoCConfig) -> None:
        store.rounds.generate("g", GenerateRequest(config=config))
        assert store.rounds.claim("w1", "t1", "one")
        assert store.rounds.claim("w2", "t2", "two") is None
        before = status(store).error
        assert store.rounds.claim("w3", "t3", "one", []) is None
        assert status(store).error == before


class TestCommits:
    """Counted once, or refused with a reason."""

    def test_a_commit_counts_and_keeps(self, store: Store, config: PoCConfig) -> None:
        store.rounds.generate("g", GenerateRequest(config=config))
        claim = take(store)
        assert commit(store, claim, [(2, 0.5), (1, 0.25)]) is None
        now = status(store)
        assert (now.total_checked, now.total_valid) == (4, 2)
        # In the order of discovery.
        assert (now.valid_nonces, now.valid_distances) == ([2, 1], [0.5, 0.25])

    def test_a_commit_counts_once(self, store: Store, config: PoCConfig) -> None:
        """A reply was lost and the worker sends it again."""
        store.rounds.generate("g", GenerateRequest(config=config))
        claim = take(store)
        commit(store, claim, [(0, 0.5)])
        assert commit(store, claim, [(0, 0.5)]) == "its positions were taken over"
        now = status(store)
        assert (now.total_checked, now.valid_nonces) == (4, [0])

    @pytest.mark.parametrize("verb", ["stop", "validate"])
    def test_a_commit_after_the_end_is_refused(
        self, store: Store, config: PoCConfig, verb: str
    ) -> None:
        store.rounds.generate("g", GenerateRequest(config=config))
        claim = take(store)
        ended = getattr(store.rounds, verb)("end")
        assert commit(store, claim, [(0, 0.5)]) == f"the round is {ended.state}"
        assert status(store).total_checked == 0

    def test_a_commit_to_the_next_round_is_refused(self, store: Store, config: PoCConfig) -> None:
        """Neither round counts it."""
        store.rounds.generate("g1", GenerateRequest(config=config, round_id="r1"))
        claim = take(store)
        store.rounds.generate("g2", GenerateRequest(config=config, round_id="r2", replace=True))
        assert commit(store, claim, [(0, 0.5)]) == "the round is over"
        assert status(store, "r1").total_checked == status(store, "r2").total_checked == 0

    def test_a_commit_from_before_a_stop_is_refused_after_it(
        self, store: Store, config: PoCConfig
    ) -> None:
        """Its positions are claimed again, so it would count twice."""
        store.rounds.generate("g1", GenerateRequest(config=config))
        claim = take(store)
        store.rounds.stop("s")
        store.rounds.generate("g2")
        assert commit(store, claim) == "the round went on without it"
        assert take(store).start == claim.start

    def test_a_late_commit_counts_unless_it_was_taken_over(
        self, store: Store, config: PoCConfig, advance: Callable[[float], None]
    ) -> None:
        """A slow worker's work is not thrown away while nobody else does it."""
        store.rounds.generate("g", GenerateRequest(config=config))
        slow, slower = take(store), take(store)
        advance(31)
        assert commit(store, slow) is None
        again = take(store)
        assert again.start == slower.start
        assert commit(store, slower) == "its positions were taken over"
        assert commit(store, again) is None
        assert status(store).total_checked == 8

    def test_failed_nonces_and_errors_are_shown(self, store: Store, config: PoCConfig) -> None:
        """Three of four had a finite distance."""
        store.rounds.generate("g", GenerateRequest(config=config))
        store.rounds.commit(
            take(store), Computed(3, [], failed=1, error="nonce 2: nan", profile='{"tile": "8"}')
        )
        now = status(store)
        assert (now.total_checked, now.total_failed) == (3, 1)
        assert (now.error, now.profile) == ("nonce 2: nan", {"tile": "8"})

    def test_a_commit_posts_its_callback(self, store: Store, config: PoCConfig) -> None:
        """In the same script, so that neither is without the other."""
        store.rounds.generate("g", GenerateRequest(config=config, round_id="r1"))
        claim = take(store)
        message = Message("http://c/generated", "{}", claim.token, "r1", 60)
        store.rounds.commit(claim, Computed(4, [(0, "0.5")], message=message))
        store.rounds.commit(claim, Computed(4, [(0, "0.5")], message=message))
        assert store.outbox.waiting() == status(store).callbacks_pending == 1

    def test_a_round_that_holds_too_much_is_stopped_with_an_error(
        self, new_store: Callable[..., Store], config: PoCConfig
    ) -> None:
        """Before Redis runs out of memory; its ticket fails and says what to do."""
        store = new_store(max_valid=3)
        store.rounds.generate("g", GenerateRequest(config=config))
        assert commit(store, take(store), [(0, 0.5), (1, 0.5)]) is None
        assert commit(store, take(store), [(4, 0.5)]) is None  # as many as it may hold
        refused = commit(store, take(store), [(8, 0.5)])
        assert refused
        assert "POC_MAX_VALID is 3" in refused
        now = status(store)
        assert (now.state, now.error) == (PoCState.STOPPED, refused)
        assert (now.total_checked, now.valid_nonces) == (8, [0, 1, 4])
        ending = store.endings.next()
        assert ending
        assert (type(ending.error).__name__, str(ending.error)) == ("RoundFailed", refused)

    def test_the_largest_nonces_survive(
        self, store: Store, redis: Client, keys: Keys, config: PoCConfig
    ) -> None:
        """A Lua number would round them."""
        store.rounds.generate("g", GenerateRequest(config=config, round_id="r1"))
        largest = [MAX_NONCE, MAX_NONCE - 1, 2**53 + 1]
        commit(store, take(store), [(n, 0.5) for n in largest])
        assert status(store).valid_nonces == largest
        assert set(redis.hkeys(keys("nonces", "r1"))) == {str(n) for n in largest}

    def test_the_last_positions_of_a_node_are_exact(
        self, store: Store, redis: Client, keys: Keys, config: PoCConfig
    ) -> None:
        """Given the largest network and a cursor near the end of its sequence."""
        far = 2**43 - 8
        config = config.model_copy(update={"node_id": 999_999, "node_count": 1_000_000})
        store.rounds.generate("g", GenerateRequest(config=config, round_id="r1"))
        redis.hset(keys("run", "r1"), "cursor", far)
        assert starts(store, 2) == [far, far + 4]
        assert take(store).nonces[0] == 999_999 + (far + 8) * 1_000_000

    @on_one_store
    @given(st.lists(st.floats(0, 2), min_size=1, max_size=8))
    def test_distances_come_back_bit_for_bit(
        self, redis: Client, store: Store, config: PoCConfig, distances: list[float]
    ) -> None:
        redis.flushall()
        store.rounds.generate("g", GenerateRequest(config=config))
        commit(store, take(store), list(enumerate(distances)))
        assert status(store).valid_distances == distances

    def test_pages_follow_the_order_of_discovery(self, store: Store, config: PoCConfig) -> None:
        """And `newest` is the end of it."""
        store.rounds.generate("g", GenerateRequest(config=config, round_id="r1"))
        for claim in (take(store), take(store)):
            commit(store, claim, [(n, n / 8) for n in claim.nonces])
        assert store.rounds.found("r1", 3, 2) == ([3, 4], [0.375, 0.5])
        assert store.rounds.found("r1", 8, 2) == ([], [])
        newest = store.rounds.status(newest=2)
        assert newest
        assert newest.valid_nonces == [6, 7]


class TestTime:
    """By Redis' clock alone."""

    def test_elapsed_runs_from_init_and_stands_while_stopped(
        self, store: Store, config: PoCConfig, advance: Callable[[float], None]
    ) -> None:
        """Idle time counts, stopped time does not; generating time is beside it."""
        store.rounds.init("i", InitRequest(config=config))
        advance(10)
        store.workers.heartbeat("w", {"fingerprint": "f"}, {}, [])
        idle = status(store)
        assert idle.elapsed_seconds >= 10
        assert idle.generating_seconds == idle.recent_rate_per_second == 0
        store.rounds.generate("g1")
        advance(20)
        store.rounds.stop("s1")
        advance(40)
        store.rounds.generate("g2")
        advance(80)
        stopped = store.rounds.stop("s2")
        assert 110 <= stopped.elapsed_seconds < 150
        assert 100 <= stopped.generating_seconds < 110

    def test_a_heartbeat_refreshes_what_flows(
        self, store: Store, config: PoCConfig, advance: Callable[[float], None]
    ) -> None:
        """Unless the round is stopped."""
        began = store.rounds.generate("g", GenerateRequest(config=config))
        commit(store, take(store))
        advance(8)
        store.workers.heartbeat("w", {"fingerprint": "f"}, {}, [])
        running = status(store)
        assert 8 <= running.elapsed_seconds < 16
        assert running.rate_per_second == pytest.approx(4 / running.elapsed_seconds, abs=1e-3)
        assert running.started_at == began.started_at
        assert running.updated_at >= began.started_at + 8
        stopped = store.rounds.stop("s")
        advance(8)
        store.workers.heartbeat("w", {"fingerprint": "f"}, {}, [])
        assert status(store) == stopped

    def test_the_recent_rate_forgets_what_was_long_ago(
        self, store: Store, config: PoCConfig, advance: Callable[[float], None]
    ) -> None:
        """Given fast batches and then slow ones, the overall rate remembers, the recent not."""
        store.rounds.generate("g", GenerateRequest(config=config))
        for seconds in [1] * 20 + [20] * 4:
            for _ in range(seconds):
                advance(1)
                store.workers.heartbeat("w", {"fingerprint": "f"}, {}, [])
            commit(store, take(store))
        now = status(store)
        assert now.rate_per_second == pytest.approx(4 * 24 / now.elapsed_seconds, abs=2e-3)
        assert now.elapsed_seconds >= 100
        # Four nonces in 20 s, over the last two batches.
        assert now.recent_rate_per_second == pytest.approx(0.2, rel=0.05)

    def test_the_recent_rate_sinks_while_nothing_is_computed(
        self, store: Store, config: PoCConfig, advance: Callable[[float], None]
    ) -> None:
        """A device that hangs is seen."""
        store.rounds.generate("g", GenerateRequest(config=config))
        for _ in range(20):
            advance(1)
            commit(store, take(store))
        advance(100)
        store.workers.heartbeat("w", {"fingerprint": "f"}, {}, [])
        assert status(store).recent_rate_per_second < 0.4

    def test_a_clock_that_steps_back_stands_still(
        self, store: Store, config: PoCConfig, redis: Client, keys: Keys
    ) -> None:
        """Given a Redis whose clock falls back an hour, then no time shrinks, and it goes on."""
        redis.hset(keys("clock"), "offset", 3_600_000)
        began = store.rounds.generate("g", GenerateRequest(config=config))
        redis.hset(keys("clock"), "offset", 0)
        stopped = store.rounds.stop("s")
        assert stopped.updated_at >= began.updated_at
        assert 0 <= stopped.elapsed_seconds < 1800
        redis.hincrby(keys("clock"), "offset", 100_000)
        later = store.rounds.generate("g2").updated_at
        assert 100 <= later - stopped.updated_at < 1800


class TestKeeping:
    """What is left of a round that has ended."""

    def test_an_old_round_expires(
        self, new_store: Callable[..., Store], redis: Client, keys: Keys, config: PoCConfig
    ) -> None:
        """Given a round with nonces, when the next begins, then all it had is on its way out."""
        store = new_store(keep_rounds_s=50)
        store.rounds.generate("g", GenerateRequest(config=config, round_id="r1"))
        commit(store, take(store), [(0, 0.5)])
        take(store)
        store.rounds.init("i", InitRequest(config=config, round_id="r2", replace=True))
        left = {name: redis.ttl(keys(name, "r1")) for name in ("round", "nonces", "found", "run")}
        assert all(0 < seconds <= 50 for seconds in left.values()), left
        assert not redis.exists(*(keys(name, "r1") for name in ("claims", "leases", "tickets")))

    def test_the_rounds_that_are_kept_are_listed(
        self,
        new_store: Callable[..., Store],
        redis: Client,
        keys: Keys,
        config: PoCConfig,
        advance: Callable[[float], None],
    ) -> None:
        """The newest first, each until its time; one that has expired is left out."""
        store = new_store(keep_rounds_s=50)
        assert store.rounds.kept(10) == []
        for name in ("r1", "r2", "r3"):
            store.rounds.init(name, InitRequest(config=config, round_id=name))
            advance(1)
        kept = store.rounds.kept(10)
        assert [each.round_id for each in kept] == ["r3", "r2", "r1"]
        assert [each.round_id for each in store.rounds.kept(2)] == ["r3", "r2"]
        current, replaced, _ = kept
        assert (current.state, current.kept_until) == (PoCState.IDLE, 0)
        assert replaced.state == PoCState.STOPPED
        assert replaced.kept_until == pytest.approx(replaced.updated_at + 50, abs=0.01)
        redis.delete(keys("round", "r2"))
        assert [each.round_id for each in store.rounds.kept(10)] == ["r3", "r1"]

    def test_the_index_forgets_what_has_expired(
        self,
        new_store: Callable[..., Store],
        redis: Client,
        keys: Keys,
        config: PoCConfig,
        advance: Callable[[float], None],
    ) -> None:
        """Given a round whose life is over, when another one is replaced, then it is gone."""
        store = new_store(keep_rounds_s=50)
        for name in ("r1", "r2"):
            store.rounds.init(name, InitRequest(config=config, round_id=name))
        advance(60)
        store.rounds.init("r3", InitRequest(config=config, round_id="r3"))
        assert redis.zrange(keys("kept"), 0, -1) == ["r2"]

    def test_the_current_round_is_kept_however_long_it_is_stopped(
        self, store: Store, redis: Client, keys: Keys, config: PoCConfig
    ) -> None:
        store.rounds.generate("g", GenerateRequest(config=config, round_id="r1"))
        store.rounds.stop("s")
        assert redis.ttl(keys("round", "r1")) == -1

    def test_late_work_does_not_bring_an_expired_round_back(
        self, store: Store, redis: Client, keys: Keys, config: PoCConfig
    ) -> None:
        """Whatever a slow worker still sends."""
        store.rounds.generate("g1", GenerateRequest(config=config, round_id="r1"))
        claim = take(store)
        store.rounds.generate("g2", GenerateRequest(config=config, round_id="r2", replace=True))
        redis.delete(*redis.keys(keys.prefix + "*:r1"))
        assert commit(store, claim, [(0, 0.5)]) == "the round is over"
        store.rounds.give_back(claim, "late")
        store.workers.heartbeat("w", {"fingerprint": "f"}, {}, [claim.token])
        assert redis.keys(keys.prefix + "*:r1") == []


class TestLeases:
    """A heartbeat keeps claims, within limits."""

    @staticmethod
    def beat(store: Store, *claims: Claim) -> None:
        store.workers.heartbeat("w", {"fingerprint": "f"}, {}, [claim.token for claim in claims])

    def test_a_heartbeat_keeps_a_claim(
        self, store: Store, config: PoCConfig, advance: Callable[[float], None]
    ) -> None:
        """Other claims of the same worker are not meant."""
        store.rounds.generate("g", GenerateRequest(config=config))
        kept, lost = take(store), take(store)
        advance(20)
        self.beat(store, kept)
        advance(20)
        assert starts(store, 2) == [lost.start, 8]

    def test_a_batch_that_waits_is_kept_past_its_deadline(
        self, new_store: Callable[..., Store], config: PoCConfig, advance: Callable[[float], None]
    ) -> None:
        """Given one that computes and one behind it, the deadline of the second has not begun."""
        store = new_store(batch_deadline=60)
        store.rounds.generate("g", GenerateRequest(config=config))
        computes, waits = take(store), take(store)
        for _ in range(8):
            advance(10)
            store.workers.heartbeat("w", {"fingerprint": "f"}, {}, [computes.token, waits.token])
        # The lease of the first has ended, so its positions are the next, and no others.
        assert starts(store, 2) == [computes.start, waits.start + waits.count]
        assert store.rounds.commit(waits, Computed(4, [])) is None

    def test_a_batch_past_its_deadline_is_not_kept(
        self, store: Store, config: PoCConfig, advance: Callable[[float], None]
    ) -> None:
        """A hung GPU's worker lives and beats: its positions must go on all the same."""
        store.rounds.generate("g", GenerateRequest(config=config))
        hung = take(store)
        for _ in range(17):
            advance(20)
            self.beat(store, hung)
        assert take(store).start == hung.start

    def test_a_claim_of_before_a_change_is_not_kept(self, store: Store, config: PoCConfig) -> None:
        """Its positions are free at once."""
        store.rounds.generate("g1", GenerateRequest(config=config))
        old = take(store)
        store.rounds.stop("s")
        self.beat(store, old)
        store.rounds.generate("g2")
        self.beat(store, old)
        assert take(store).start == old.start

    def test_a_claim_given_back_is_not_kept(self, store: Store, config: PoCConfig) -> None:
        """The heartbeat's thread may be a moment behind."""
        store.rounds.generate("g", GenerateRequest(config=config))
        given = take(store)
        store.rounds.give_back(given)
        self.beat(store, given)
        assert take(store).start == given.start
