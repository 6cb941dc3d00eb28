"""Callbacks with items are joined, each item in one message; nonces end where the scheme says."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.config import PoCConfig, PoCState
from shared.requests import GenerateRequest, InitRequest, StopRequest, ValidateRequest
from shared.schemes.artifact import ArtifactTerms
from shared.status import RoundStatus
from shared.store import Ask, Claim, Computed, Message, Store, fresh_id
from shared.store.connection import Client
from shared.store.keys import Keys
from worker.callbacks.messages import generated_message

Advance = Callable[[float], None]

#: A vector, as far as a store looks at it.
VECTOR = "AAAA"
#: What the scripts say: seconds from one message to the next, and how long one gets.
GATHER_S, GATHER_BYTES = 1.0, 1_000_000


@pytest.fixture
def config() -> PoCConfig:
    """A lone node with batches of four, that tells somebody."""
    return PoCConfig(
        block_hash="B10C",
        block_height=7,
        public_key="node",
        batch_size=4,
        callback_url="http://c",
        terms=ArtifactTerms(),
    )


@pytest.fixture
def opened(store: Store, config: PoCConfig) -> Store:
    """The round `r1` generates."""
    store.rounds.generate("g", GenerateRequest(config=config, round_id="r1"))
    return store


@pytest.fixture
def begun(opened: Store) -> Store:
    """It has told its first batch, and nothing waits for delivery."""
    one_batch(opened)
    assert deliver(opened) == [[0, 1, 2, 3]]
    return opened


def take(store: Store, worker: str = "w") -> Claim:
    """The next claim, which must be there."""
    claim = store.rounds.claim(worker, fresh_id())
    assert claim
    return claim


def commit(store: Store, claim: Claim, ask: Ask | None = None) -> str | None:
    """Commit a claim as wholly computed, with its callback; why it was refused, if so."""
    valid = [(nonce, VECTOR) for nonce in claim.nonces]
    done = Computed(claim.count, valid, message=generated_message(claim, valid))
    if ask:
        return store.work.commit_and_claim(claim, done, ask)[0]
    return store.rounds.commit(claim, done)


def one_batch(store: Store, worker: str = "w") -> Claim:
    """Claim and commit a batch."""
    claim = take(store, worker)
    assert commit(store, claim) is None
    return claim


def bodies(redis: Client, keys: Keys) -> list[dict[str, Any]]:
    """The messages that wait in the outbox, oldest first."""
    return [json.loads(fields["body"]) for _, fields in redis.xrange(keys("outbox"))]


def told(redis: Client, keys: Keys) -> list[list[int]]:
    """The nonces of each message."""
    return [[each["nonce"] for each in body["artifacts"]] for body in bodies(redis, keys)]


def counters(store: Store, round_id: str | None = None) -> tuple[int, int, int]:
    found = store.rounds.status(round_id)
    assert found
    return found.callbacks_pending, found.callbacks_delivered, found.callbacks_refused


def deliver(store: Store) -> list[list[int]]:
    """Take and settle all that waits; the nonces of each message."""
    found = []
    for entry in store.outbox.take("s", 1000):
        body = store.outbox.body(entry.id)
        assert body
        found.append([each["nonce"] for each in json.loads(body)["artifacts"]])
        store.outbox.settle(entry)
    return found


def test_the_list_of_rounds_has_what_the_status_has(opened: Store) -> None:
    """The scheme's own fields, and refused callbacks by reason."""
    one_batch(opened)
    (entry,) = opened.outbox.take("s", 10)
    opened.outbox.settle(entry, "it answered 400", "status_400")
    (kept,) = opened.rounds.kept(10)
    assert kept.model_dump(exclude={"kept_until"}) == opened.status().model_dump(
        include=set(RoundStatus.model_fields)
    )
    assert kept.terms["k_dim"] == 12
    assert kept.refusals == {"status_400": 1}


class TestJoining:
    def test_what_a_stray_hand_took_holds_up_nothing(
        self, begun: Store, redis: Client, keys: Keys, advance: Advance
    ) -> None:
        """Those nonces count, and are not told; all others are."""
        one_batch(begun)
        redis.delete(keys("gathered", "r1"))
        one_batch(begun)
        last = take(begun)
        advance(GATHER_S)
        assert commit(begun, last) is None
        assert deliver(begun) == [list(range(8, 16))]
        assert begun.status().total_valid == 16

    def test_the_first_batch_is_told_at_once(
        self, opened: Store, redis: Client, keys: Keys
    ) -> None:
        """Nobody has to wait to see that a round goes on."""
        one_batch(opened)
        assert told(redis, keys) == [[0, 1, 2, 3]]

    def test_batches_of_one_second_are_one_message(
        self, begun: Store, redis: Client, keys: Keys, advance: Advance
    ) -> None:
        """In the order in which they were committed; the last of them lets it go."""
        for _ in range(3):
            one_batch(begun)
            advance(0.3)
        last = take(begun)
        assert told(redis, keys) == []
        advance(0.1)
        commit(begun, last)
        assert told(redis, keys) == [list(range(4, 20))]
        (body,) = bodies(redis, keys)
        assert body == {
            "public_key": "node",
            "block_hash": "B10C",
            "block_height": 7,
            "node_id": 0,
            "encoding": {"dtype": "f16", "k_dim": 12, "endian": "le"},
            "artifacts": [{"nonce": n, "vector_b64": VECTOR} for n in range(4, 20)],
        }

    def test_slow_batches_are_each_told_at_once(
        self, opened: Store, redis: Client, keys: Keys, advance: Advance
    ) -> None:
        """There is nothing to join them with."""
        for count in range(1, 4):
            one_batch(opened)
            assert len(told(redis, keys)) == count
            advance(GATHER_S)

    def test_it_is_delivered_as_the_first_of_them_would_be(
        self, begun: Store, config: PoCConfig, redis: Client, keys: Keys, advance: Advance
    ) -> None:
        """The first one's key is no other message's; its time to be tried begins when it goes."""
        first = one_batch(begun)
        one_batch(begun)
        advance(GATHER_S)
        begun.rounds.claim("w", "next")
        ((entry_id, fields),) = redis.xrange(keys("outbox"))
        assert (fields["url"], fields["round"]) == ("http://c/generated", "r1")
        assert fields["key"] == f"r1:{first.token}"
        posted_ms = int(entry_id.split("-")[0]) + int(redis.hget(keys("clock"), "offset") or 0)
        waits = int(fields["expires_at"]) - posted_ms
        assert waits == pytest.approx(config.callback_deadline_s * 1000, abs=50)
        one_batch(begun)
        begun.rounds.stop("s")
        names = [fields["key"] for _, fields in redis.xrange(keys("outbox"))]
        assert len(names) == len(set(names)) == 2

    def test_a_message_without_items_goes_out_by_itself(
        self, begun: Store, redis: Client, keys: Keys
    ) -> None:
        """Whatever is being joined."""
        one_batch(begun)
        claim = take(begun)
        message = Message("http://c/generated", "{}", "k", "r1", 60)
        begun.rounds.commit(claim, Computed(4, [], message=message))
        assert [fields["body"] for _, fields in redis.xrange(keys("outbox"))] == ["{}"]
        assert counters(begun) == (2, 1, 0)

    def test_what_is_long_enough_goes_out_at_once(
        self, store: Store, config: PoCConfig, redis: Client, keys: Keys
    ) -> None:
        """However fast it comes: no receiver gets more than a megabyte, or one batch."""
        large = config.model_copy(update={"batch_size": 4096})
        store.rounds.generate("g", GenerateRequest(config=large))
        for _ in range(20):
            one_batch(store)
        texts = [fields["body"] for _, fields in redis.xrange(keys("outbox"))]
        assert len(texts) == 3
        for text in texts[1:]:
            assert GATHER_BYTES <= len(text) < 1.3 * GATHER_BYTES

    def test_what_is_refused_is_in_no_message(
        self, opened: Store, redis: Client, keys: Keys, advance: Advance
    ) -> None:
        """A batch that was taken over is told by whoever was counted."""
        late = take(opened)
        advance(opened._settings.lease_s + 1)
        again = take(opened, "other")
        assert again.nonces == late.nonces
        assert commit(opened, again) is None
        assert commit(opened, late) is not None
        opened.rounds.stop("s")
        assert told(redis, keys) == [[0, 1, 2, 3]]

    def test_one_without_a_receiver_keeps_nothing(
        self, store: Store, config: PoCConfig, redis: Client, keys: Keys
    ) -> None:
        nobody = config.model_copy(update={"callback_url": None})
        store.rounds.generate("g", GenerateRequest(config=nobody, round_id="r1"))
        one_batch(store)
        assert not redis.exists(keys("gathered", "r1"))
        assert counters(store) == (0, 0, 0)


class TestGoingOut:
    """Nobody waits for a batch that may never come."""

    def test_with_the_next_claim_of_any_worker(
        self, begun: Store, redis: Client, keys: Keys, advance: Advance
    ) -> None:
        """Also if the one that committed it died."""
        one_batch(begun)
        advance(GATHER_S - 0.2)
        take(begun, "other")
        assert told(redis, keys) == []
        advance(0.3)
        take(begun, "other")
        assert told(redis, keys) == [[4, 5, 6, 7]]

    def test_with_a_claim_behind_a_commit_that_claims(
        self, begun: Store, redis: Client, keys: Keys, advance: Advance
    ) -> None:
        work = begun.work.claim(Ask("w", "first", ("chunk", "batch")))
        assert isinstance(work, Claim)
        assert commit(begun, work, Ask("w", "second", ("chunk", "batch"))) is None
        assert told(redis, keys) == []
        advance(GATHER_S)
        work = begun.work.claim(Ask("w", "second", ("chunk", "batch")))
        assert isinstance(work, Claim)
        assert work.nonces == (8, 9, 10, 11)
        assert told(redis, keys) == [[4, 5, 6, 7]]

    def test_with_a_heartbeat(
        self, begun: Store, redis: Client, keys: Keys, advance: Advance
    ) -> None:
        """While the next batch is computed for long."""
        one_batch(begun)
        beat(begun)
        assert told(redis, keys) == []
        advance(GATHER_S)
        beat(begun)
        assert told(redis, keys) == [[4, 5, 6, 7]]
        beat(begun)
        assert len(told(redis, keys)) == 1

    @pytest.mark.parametrize("how", ["stop", "validate", "init", "generate", "replaced"])
    def test_with_the_end_of_the_generation(
        self, how: str, begun: Store, config: PoCConfig, redis: Client, keys: Keys
    ) -> None:
        """At once, before its tickets end; by whatever command."""
        one_batch(begun)
        assert told(redis, keys) == []
        new = config.model_copy(update={"block_hash": "next"})
        match how:
            case "stop":
                begun.rounds.stop("s", StopRequest(round_id="r1"))
            case "validate":
                begun.rounds.validate("v")
            case "init":
                begun.rounds.init("i", InitRequest(config=new, replace=True))
            case "generate":
                begun.rounds.generate("i", GenerateRequest(config=new, replace=True))
            case "replaced":
                begun.rounds.validate("i", ValidateRequest(config=new, replace=True))
        assert told(redis, keys) == [[4, 5, 6, 7]]
        assert not redis.exists(keys("gathered", "r1"))
        assert counters(begun, "r1") == (1, 1, 0)

    def test_with_the_batch_that_brings_the_count(
        self, store: Store, config: PoCConfig, redis: Client, keys: Keys
    ) -> None:
        store.rounds.generate("g", GenerateRequest(config=config, until_valid=10))
        one_batch(store)
        one_batch(store)
        assert told(redis, keys) == [[0, 1, 2, 3]]
        one_batch(store)
        assert told(redis, keys) == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11]]
        assert status(store).state == PoCState.STOPPED

    def test_with_the_heartbeat_that_ends_it_by_its_time(
        self, store: Store, config: PoCConfig, redis: Client, keys: Keys, advance: Advance
    ) -> None:
        store.rounds.generate("g", GenerateRequest(config=config, seconds=0.5))
        one_batch(store)
        one_batch(store)
        advance(0.6)
        beat(store)
        assert told(redis, keys) == [[0, 1, 2, 3], [4, 5, 6, 7]]

    def test_with_the_batch_that_is_one_too_many(
        self,
        new_store: Callable[..., Store],
        config: PoCConfig,
        redis: Client,
        keys: Keys,
    ) -> None:
        """The cap stops the round; what counted before is told."""
        store = new_store(max_valid=10)
        store.rounds.generate("g", GenerateRequest(config=config))
        one_batch(store)
        one_batch(store)
        refused = commit(store, take(store))
        assert refused
        assert "holds 8 valid nonces and POC_MAX_VALID is 10" in refused
        assert told(redis, keys) == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert status(store).total_valid == 8

    def test_a_round_that_goes_on_tells_its_first_batch_at_once(
        self, begun: Store, redis: Client, keys: Keys, advance: Advance
    ) -> None:
        """However short the break was."""
        one_batch(begun)
        begun.rounds.stop("s")
        begun.rounds.generate("again")
        one_batch(begun)
        one_batch(begun)
        assert told(redis, keys) == [[4, 5, 6, 7], [8, 9, 10, 11]]
        advance(GATHER_S)
        take(begun)
        assert told(redis, keys)[2:] == [[12, 13, 14, 15]]


class TestCounting:
    def test_a_joined_message_counts_once(self, begun: Store, advance: Advance) -> None:
        """From its first item on, so that a receiver's lag is seen at once."""
        for _ in range(3):
            one_batch(begun)
            assert counters(begun) == (1, 1, 0)
        advance(GATHER_S)
        beat(begun)
        assert counters(begun) == (1, 1, 0)
        one_batch(begun)
        assert counters(begun) == (2, 1, 0)
        begun.rounds.stop("s")
        assert deliver(begun) == [list(range(4, 16)), list(range(16, 20))]
        assert counters(begun) == (0, 3, 0)

    def test_a_round_that_was_replaced_counts_its_own(
        self, begun: Store, config: PoCConfig
    ) -> None:
        one_batch(begun)
        begun.rounds.generate("h", GenerateRequest(config=config, round_id="r2", replace=True))
        one_batch(begun)
        assert (counters(begun, "r1"), counters(begun, "r2")) == ((1, 1, 0), (1, 0, 0))
        deliver(begun)
        assert (counters(begun, "r1"), counters(begun, "r2")) == ((0, 2, 0), (0, 1, 0))

    @given(
        st.lists(
            st.sampled_from(["commit", "die", "wait", "stop", "go on", "beat", "claim", "new"]),
            max_size=40,
        )
    )
    @settings(
        max_examples=30,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    def test_nothing_is_told_twice_and_nothing_is_lost(
        self,
        store: Store,
        config: PoCConfig,
        redis: Client,
        keys: Keys,
        advance: Advance,
        events: Sequence[str],
    ) -> None:
        """Whatever happens: each nonce that counts is in one message, of its own round."""
        redis.flushall()
        rounds = ["r0"]
        store.rounds.generate(fresh_id(), GenerateRequest(config=config, round_id="r0"))
        for event in events:
            match event:
                case "commit":
                    if claim := store.rounds.claim("w", fresh_id()):
                        commit(store, claim)
                case "die":
                    store.rounds.claim("dead", fresh_id())
                case "wait":
                    advance(0.7)
                case "stop":
                    store.rounds.stop(fresh_id())
                case "go on":
                    store.rounds.generate(fresh_id())
                case "beat":
                    beat(store)
                case "claim":
                    if claim := store.rounds.claim("w", fresh_id()):
                        store.rounds.give_back(claim)
                case "new":
                    rounds.append(f"r{len(rounds)}")
                    asked = GenerateRequest(config=config, round_id=rounds[-1], replace=True)
                    store.rounds.generate(fresh_id(), asked)
        store.rounds.stop(fresh_id())
        by_round: dict[str, list[int]] = {each: [] for each in rounds}
        messages = dict.fromkeys(rounds, 0)
        for _, fields in redis.xrange(keys("outbox")):
            nonces = [each["nonce"] for each in json.loads(fields["body"])["artifacts"]]
            by_round[fields["round"]] += nonces
            messages[fields["round"]] += 1
        for each in rounds:
            found = store.rounds.found(each, 0, 10_000, "artifact")[0]
            assert by_round[each] == found
            assert counters(store, each)[0] == messages[each]
            assert not redis.exists(keys("gathered", each))


class TestPositions:
    """Artifacts have nonces below 2**31, so a node's sequence has an end."""

    #: Of a node whose sequence is this long.
    LENGTH = 2148

    @pytest.fixture
    def last(self, config: PoCConfig) -> PoCConfig:
        """The last of a million nodes, with large batches."""
        update = {"node_id": 483_000, "node_count": 1_000_000, "batch_size": 1000}
        last = config.model_copy(update=update)
        assert last.positions == self.LENGTH
        return last

    def test_the_last_batch_is_shorter_and_then_nothing_is_claimed(
        self, store: Store, last: PoCConfig, redis: Client, keys: Keys
    ) -> None:
        store.rounds.generate("g", GenerateRequest(config=last))
        claims = [one_batch(store) for _ in range(3)]
        assert [claim.count for claim in claims] == [1000, 1000, 148]
        assert claims[-1].nonces[-1] < 2**31 <= claims[-1].nonces[-1] + last.node_count
        assert status(store).error == ""
        for token in ("x", "y"):
            assert store.rounds.claim("w", token) is None
        found = status(store)
        assert found.error == f"all {self.LENGTH} nonces of this node were handed out"
        assert (found.state, found.total_checked) == (PoCState.GENERATING, self.LENGTH)
        assert store.rounds.stop("s").total_valid == self.LENGTH
        assert sum(map(len, told(redis, keys))) == self.LENGTH

    def test_what_was_given_back_is_still_claimed(self, store: Store, last: PoCConfig) -> None:
        """The end is an end of what is new."""
        store.rounds.generate("g", GenerateRequest(config=last))
        first = take(store)
        for _ in range(2):
            one_batch(store)
        assert store.rounds.claim("w", "nothing") is None
        store.rounds.give_back(first)
        again = take(store)
        assert again.nonces == first.nonces
        assert commit(store, again) is None
        assert status(store).total_checked == self.LENGTH

    def test_the_last_nonces_of_a_lone_node(
        self, store: Store, config: PoCConfig, redis: Client, keys: Keys
    ) -> None:
        """Two thousand million batches later."""
        store.rounds.generate("g", GenerateRequest(config=config, round_id="r1"))
        redis.hset(keys("run", "r1"), "cursor", str(2**31 - 6))
        assert take(store).nonces == tuple(range(2**31 - 6, 2**31 - 2))
        assert take(store).nonces == (2**31 - 2, 2**31 - 1)
        assert store.rounds.claim("w", "nothing") is None

    def test_distances_have_no_such_end(self, store: Store, redis: Client, keys: Keys) -> None:
        endless = PoCConfig(block_hash="b", block_height=7, public_key="k", r_target=1.0)
        store.rounds.generate("g", GenerateRequest(config=endless, round_id="r1"))
        redis.hset(keys("run", "r1"), "cursor", str(2**40))
        assert take(store).nonces[0] == 2**40
        assert status(store).error == ""


def status(store: Store) -> RoundStatus:
    found = store.rounds.status()
    assert found
    return found


def beat(store: Store) -> None:
    """What a worker that has nothing says now and then."""
    model = {"fingerprint": "f", "model": "m", "max_seq_len": "1024", "vocab_size": "8"}
    store.workers.heartbeat("w", model, {"state": "idle"}, [])
