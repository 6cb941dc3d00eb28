"""Validations: cut into chunks, shared, judged once, and no business of the round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from chunks import claim_chunk, verdict_on
from shared.config import MAX_NONCE, PoCConfig
from shared.data import ProofBatch
from shared.errors import CouldNotCompute, RoundFailed, RoundMismatch, RoundNotInitialized
from shared.evidence import Computer, Evidence
from shared.requests import GenerateRequest, InitRequest, ValidateRequest
from shared.schemes.artifact import ArtifactBatch
from shared.store import Chunk, ComputedValidation, Message, Store
from shared.store.connection import Client
from shared.store.keys import Keys

MODEL = {"fingerprint": "f"}


def batch_of(config: PoCConfig, *nonces: int, **changes: Any) -> ProofBatch:
    """A batch whose distances are all 0.5."""
    return ProofBatch.of(config, nonces, [0.5] * len(nonces)).model_copy(update=changes)


def in_chunks(config: PoCConfig, nonces: int) -> PoCConfig:
    """A config by which a worker takes so many nonces at a time."""
    return config.model_copy(update={"batch_size": nonces})


def take(store: Store) -> Chunk:
    """The next chunk, which must be there."""
    chunk = claim_chunk(store, "w", uuid4().hex)
    assert chunk
    return chunk


def computed(store: Store) -> ComputedValidation:
    """The next validation that waits for its verdict, which must be there."""
    job = store.validations.next_computed()
    assert job
    return job


def end(store: Store, message: Message | None = None) -> None:
    """Judge the next validation that waits for it."""
    job = computed(store)
    store.validations.finish(job, verdict_on(job), message=message)


def test_a_batch_is_cut_into_chunks(store: Store, config: PoCConfig) -> None:
    """Any worker takes any of them."""
    batch, config = batch_of(config, 7, 5, 3, 1, 0), in_chunks(config, 2)
    store.validations.open("j", ValidateRequest(batch=batch, config=config))
    chunks = [take(store) for _ in range(3)]
    assert [chunk.nonces for chunk in chunks] == [(7, 5), (3, 1), (0,)]
    assert {(chunk.validation, chunk.given_up, chunk.attempts) for chunk in chunks} == {
        ("j", False, 0)
    }
    assert (chunks[0].batch, chunks[0].config) == (batch, config)
    assert claim_chunk(store, "w", "none left") is None


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_chunk_is_of_its_own_batch(store: Store, config: PoCConfig, order: str) -> None:
    """Given two validations whose chunks come in turns, whatever their ids."""
    config = in_chunks(config, 1)
    for place, task in enumerate(order):
        batch = batch_of(config, 10 * place, 10 * place + 1)
        store.validations.open(task, ValidateRequest(batch=batch, config=config))
    first = [take(store) for _ in range(2)]
    for chunk in first:
        store.validations.give_back(chunk)
    found = {chunk.nonces: chunk.validation for chunk in [*first, *(take(store) for _ in range(4))]}
    assert found == {(0,): order[0], (1,): order[0], (10,): order[1], (11,): order[1]}


def test_a_config_that_redis_has_lost_is_named(
    store: Store, redis: Client, keys: Keys, config: PoCConfig
) -> None:
    """Given a server that evicts keys, then nobody looks for it without end."""
    round_id = store.rounds.init("c", InitRequest(config=config)).round_id
    redis.delete(keys("run", round_id))
    with pytest.raises(RoundFailed, match=f"lost {keys('run', round_id)}.*noeviction"):
        store.validations.open("j", ValidateRequest(batch=batch_of(config, 1)))


def test_chunks_of_two_models_make_no_verdict(store: Store, config: PoCConfig) -> None:
    """Given a worker with another model that took over, what it computed does not count."""
    store.validations.open(
        "j", ValidateRequest(batch=batch_of(config, 7, 5), config=in_chunks(config, 1))
    )
    first, second = take(store), take(store)
    assert store.validations.commit(first, [0.1], profile='{"fingerprint": "one"}') is None
    assert store.validations.commit(second, [0.2], profile='{"fingerprint": "two"}') is None
    job = computed(store)
    assert job.proofs == [0.1, None]
    assert job.error == "its chunks were computed by different models"


def test_who_computed_is_known(store: Store, config: PoCConfig) -> None:
    """Given chunks of two workers, each of them once, with what it computes with."""
    first, second = (
        Computer(worker=f"w{place}", device="cpu", profile={"tile": "8"}, versions={"torch": "2"})
        for place in range(2)
    )
    store.validations.open(
        "j", ValidateRequest(batch=batch_of(config, 7, 5, 3), config=in_chunks(config, 1))
    )
    for computer in (second, first, second):
        store.validations.commit(take(store), [0.5], computer=computer)
    job = computed(store)
    assert job.computed_by == [first, second]
    assert job.opened_at is not None


def test_evidence_lives_as_long_as_its_validation(
    store: Store, redis: Client, keys: Keys, config: PoCConfig
) -> None:
    """And none is there of a validation that nobody knows."""
    store.validations.open("j", ValidateRequest(batch=batch_of(config, 7), config=config))
    store.validations.commit(take(store), [None])
    job, error = computed(store), CouldNotCompute("why")
    evidence = job.evidence(error)
    store.validations.finish(job, error=error, evidence=evidence)
    assert store.validations.evidence("j") == evidence.model_dump_json()
    assert redis.ttl(keys("job", "j")) > 0
    assert store.validations.evidence("nobody") is None


def test_evidence_of_a_verdict_has_its_fields_and_no_other(store: Store, config: PoCConfig) -> None:
    """What a reader makes of its JSON is equal to it."""
    store.validations.open("j", ValidateRequest(batch=batch_of(config, 7), config=config))
    store.validations.commit(take(store), [1.5])
    job = computed(store)
    evidence = job.evidence(verdict_on(job))
    assert vars(evidence).keys() == Evidence.model_fields.keys()
    assert Evidence.model_validate_json(evidence.model_dump_json()) == evidence
    assert evidence.n_invalid == 1


def test_the_last_chunk_makes_it_ready(store: Store, config: PoCConfig) -> None:
    """Distances stand in the order of the nonces, whatever order the chunks came in."""
    store.validations.open(
        "j", ValidateRequest(batch=batch_of(config, 7, 5, 3), config=in_chunks(config, 2))
    )
    first, second = take(store), take(store)
    assert store.validations.commit(second, [0.3], profile="{}") is None
    assert store.validations.next_computed() is None
    assert store.validations.progress() == {"j": {"done": 1, "total": 3}}
    assert store.validations.commit(first, [0.1, 0.2]) is None
    job = computed(store)
    assert (job.id, job.proofs, job.error, job.profile) == ("j", [0.1, 0.2, 0.3], "", "{}")
    assert job.batch.nonces == [7, 5, 3]


def test_a_job_that_another_clerk_ends_meanwhile_is_whole_or_gone(
    store: Store,
    new_store: Callable[..., Store],
    redis: Client,
    config: PoCConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Never with its batch and without its distances, which would look as if none was computed."""
    store.validations.open("j", ValidateRequest(batch=batch_of(config, 7, 5), config=config))
    store.validations.commit(take(store), [0.1, 0.2])
    job, other, read = computed(store), new_store(), redis.hgetall

    def read_then_end(key: str) -> Any:
        found = read(key)
        monkeypatch.undo()
        other.validations.finish(job, verdict_on(job))
        return found

    monkeypatch.setattr(redis, "hgetall", read_then_end)
    seen = store.validations.next_computed()
    assert seen is None or seen.proofs == [0.1, 0.2]


def test_a_chunk_counts_once(store: Store, config: PoCConfig, redis: Client, keys: Keys) -> None:
    store.validations.open(
        "j", ValidateRequest(batch=batch_of(config, 1, 2), config=in_chunks(config, 1))
    )
    chunk = take(store)
    store.validations.commit(chunk, [0.1])
    assert store.validations.commit(chunk, [0.1]) == "its chunk was taken over"
    assert store.validations.progress() == {"j": {"done": 1, "total": 2}}
    assert not redis.exists(keys("chunk_claims"), keys("chunk_leases"))


def test_asking_again_renews_the_lease(
    store: Store, config: PoCConfig, advance: Callable[[float], None]
) -> None:
    """Whoever asks, lives."""
    store.validations.open(
        "j", ValidateRequest(batch=batch_of(config, 1), config=in_chunks(config, 1))
    )
    for _ in range(3):
        assert claim_chunk(store, "w", "t")
        advance(20)
    assert claim_chunk(store, "other", "u") is None


def test_asking_again_with_a_token_gives_the_same_chunk(store: Store, config: PoCConfig) -> None:
    """The answer was lost on the way."""
    store.validations.open(
        "j", ValidateRequest(batch=batch_of(config, 1, 2), config=in_chunks(config, 1))
    )
    assert claim_chunk(store, "w", "t") == claim_chunk(store, "w", "t")
    assert take(store).nonces == (2,)


def test_a_chunk_of_a_dead_worker_goes_first(
    store: Store, config: PoCConfig, advance: Callable[[float], None]
) -> None:
    """And says what happened to it."""
    store.validations.open(
        "j", ValidateRequest(batch=batch_of(config, 1, 2), config=in_chunks(config, 1))
    )
    dead = take(store)
    advance(31)
    again = take(store)
    assert (again.nonces, again.attempts) == ((1,), 1)
    assert again.error == "worker w did not finish it"
    assert store.validations.commit(dead, [0.1]) == "its chunk was taken over"


def test_a_heartbeat_keeps_a_chunk_until_the_deadline(
    store: Store, config: PoCConfig, advance: Callable[[float], None]
) -> None:
    """With or without a round."""
    store.validations.open(
        "j", ValidateRequest(batch=batch_of(config, 1), config=in_chunks(config, 1))
    )
    chunk = take(store)
    for seconds in (20, 20):
        advance(seconds)
        store.workers.heartbeat("w", {"fingerprint": "f"}, {}, [chunk.token])
    assert claim_chunk(store, "w", "too early") is None
    advance(300)
    store.workers.heartbeat("w", {"fingerprint": "f"}, {}, [chunk.token])
    assert take(store).nonces == (1,)


def test_a_chunk_given_back_unharmed_is_no_failure(store: Store, config: PoCConfig) -> None:
    store.validations.open(
        "j", ValidateRequest(batch=batch_of(config, 1), config=in_chunks(config, 1))
    )
    store.validations.give_back(take(store))
    assert (take(store).attempts, claim_chunk(store, "w", "t")) == (0, None)


def test_a_chunk_that_fails_too_often_is_given_up(store: Store, config: PoCConfig) -> None:
    """The other chunks are not lost; its own nonces have no distance."""
    store.validations.open(
        "j", ValidateRequest(batch=batch_of(config, 1, 2, 3), config=in_chunks(config, 1))
    )
    for _ in range(3):
        chunk = take(store)
        assert not chunk.given_up
        store.validations.give_back(chunk, "out of memory")
    chunk = take(store)
    assert (chunk.given_up, chunk.attempts, chunk.error) == (True, 3, "out of memory")
    store.validations.commit(chunk, [], error=chunk.error)
    store.validations.commit(take(store), [0.2])
    store.validations.commit(take(store), [0.3])
    job = computed(store)
    assert (job.proofs, job.error) == ([None, 0.2, 0.3], "out of memory")


class TestSchemes:
    """A worker leaves the chunks of a scheme that it does not compute to those who do."""

    @pytest.fixture
    def artifacts(self, store: Store, config: PoCConfig) -> None:
        """A chunk of the scheme artifact, and one of the scheme distance behind it."""
        of_block = {"block_hash": config.block_hash, "block_height": config.block_height}
        batch = ArtifactBatch(**of_block, public_key="other", nonces=[4])
        asked = PoCConfig.model_validate({**of_block, "public_key": "me", "scheme": "artifact"})
        store.validations.open("a", ValidateRequest(batch=batch, config=asked))
        store.validations.open("d", ValidateRequest(batch=batch_of(config, 7), config=config))

    @pytest.fixture
    def lives(self, store: Store) -> None:
        """A worker that computes both."""
        store.workers.heartbeat("both", MODEL, {}, [], schemes=["artifact", "distance"])

    @pytest.mark.usefixtures("artifacts", "lives")
    def test_they_wait_for_one_who_does(self, store: Store) -> None:
        """And keep nobody from the chunks behind them."""
        chunk = claim_chunk(store, "one", "t", ["distance"])
        assert chunk
        assert chunk.validation == "d"
        assert claim_chunk(store, "one", "u", ["distance"]) is None
        chunk = claim_chunk(store, "both", "v", ["artifact", "distance"])
        assert chunk
        assert (chunk.validation, chunk.given_up) == ("a", False)

    @pytest.mark.usefixtures("artifacts", "lives")
    def test_so_do_those_that_were_given_back(self, store: Store) -> None:
        """Whoever gave them back."""
        store.validations.give_back(take(store), "loose wire")
        chunk = claim_chunk(store, "one", "t", ["distance"])
        assert chunk
        assert chunk.validation == "d"
        assert take(store).error == "loose wire"

    @pytest.mark.usefixtures("artifacts", "lives")
    def test_without_one_they_are_given_up(
        self, store: Store, advance: Callable[[float], None]
    ) -> None:
        """So that whoever waits for the verdict learns why there is none."""
        advance(31)
        chunk = claim_chunk(store, "one", "t", ["distance"])
        assert chunk
        assert (chunk.validation, chunk.given_up) == ("a", True)
        assert chunk.error == "no live worker can compute the scheme artifact"

    @pytest.mark.usefixtures("artifacts")
    def test_one_that_failed_says_why(self, store: Store) -> None:
        """Given a worker that tried, and does not compute it any more."""
        store.validations.give_back(take(store), "no layers")
        chunk = claim_chunk(store, "one", "t", ["distance"])
        assert chunk
        assert (chunk.given_up, chunk.error) == (True, "no layers")


def test_a_distance_that_could_not_be_computed_stays_one(store: Store, config: PoCConfig) -> None:
    """And the others keep all their digits."""
    store.validations.open(
        "j", ValidateRequest(batch=batch_of(config, 1, 2, 3), config=in_chunks(config, 3))
    )
    store.validations.commit(take(store), [None, 0.1 + 0.2, 2.0])
    job = computed(store)
    assert job.proofs == [None, 0.1 + 0.2, 2.0]
    assert job.not_computed == [1]


def test_an_empty_batch_is_ready_at_once(store: Store, config: PoCConfig) -> None:
    """There is nothing to compute, and still a verdict."""
    store.validations.open(
        "j", ValidateRequest(batch=batch_of(config), config=in_chunks(config, 4))
    )
    assert claim_chunk(store, "w", "t") is None
    assert computed(store).proofs == []


def test_the_largest_nonces_survive(store: Store, config: PoCConfig) -> None:
    """A Lua number would round them."""
    store.validations.open(
        "j",
        ValidateRequest(
            batch=batch_of(config, MAX_NONCE, MAX_NONCE - 1), config=in_chunks(config, 2)
        ),
    )
    assert take(store).nonces == (MAX_NONCE, MAX_NONCE - 1)


def test_a_validation_ends_once(store: Store, config: PoCConfig) -> None:
    """Given two workers that judged it, then one end and one callback are told."""
    store.validations.open(
        "j", ValidateRequest(batch=batch_of(config), config=in_chunks(config, 4))
    )
    job = computed(store)
    message = Message("http://c/validated", "{}", "j", "", 60)
    verdict = verdict_on(job)
    store.validations.finish(job, verdict, message=message)
    store.validations.finish(job, error=CouldNotCompute("too late"))
    assert store.validations.next_computed() is None
    assert store.validations.progress() == {}
    assert store.outbox.waiting() == 1
    ending = store.endings.next()
    assert ending
    assert (ending.task, ending.verdict, ending.error) == ("j", verdict.model_dump_json(), None)
    store.endings.drop(ending)
    assert store.endings.next() is None


def test_a_validation_may_end_with_an_error(store: Store, config: PoCConfig) -> None:
    """A verdict would accuse without a reason."""
    store.validations.open(
        "j", ValidateRequest(batch=batch_of(config), config=in_chunks(config, 4))
    )
    store.validations.finish(computed(store), error=CouldNotCompute("2 of 3 nonces"))
    ending = store.endings.next()
    assert ending
    assert (type(ending.error), str(ending.error)) == (CouldNotCompute, "2 of 3 nonces")
    assert (ending.verdict, ending.round_fields) == (None, None)


def test_what_comes_after_the_end_changes_nothing(
    store: Store, redis: Client, keys: Keys, config: PoCConfig
) -> None:
    """A late chunk is refused, one that waits is skipped."""
    store.validations.open(
        "j", ValidateRequest(batch=batch_of(config, 1, 2), config=in_chunks(config, 1))
    )
    late = take(store)
    ended = ComputedValidation("j", "", late.batch, config, [], "", "")
    store.validations.finish(ended, error=CouldNotCompute("given up"))
    assert store.validations.commit(late, [0.5]) == "the validation has ended"
    assert claim_chunk(store, "w", "t") is None
    assert not redis.exists(keys("chunks"), keys("chunk_claims"), keys("job_dist", "j"))


def test_an_ended_validation_expires(
    new_store: Callable[..., Store], redis: Client, keys: Keys, config: PoCConfig
) -> None:
    """Its batch goes at once."""
    store = new_store(keep_rounds_s=50)
    store.validations.open(
        "j", ValidateRequest(batch=batch_of(config), config=in_chunks(config, 4))
    )
    end(store)
    assert 0 < redis.ttl(keys("job", "j")) <= 50
    assert not redis.hexists(keys("job", "j"), "batch")


def test_a_verdict_without_its_validation_is_skipped(
    store: Store, redis: Client, keys: Keys, config: PoCConfig
) -> None:
    """It must not hold up those behind it."""
    redis.rpush(keys("verdicts"), "gone")
    store.validations.open(
        "j", ValidateRequest(batch=batch_of(config), config=in_chunks(config, 4))
    )
    assert computed(store).id == "j"


def test_it_never_touches_the_round(store: Store, config: PoCConfig) -> None:
    """From its begin to its end."""
    before = store.rounds.generate("g", GenerateRequest(config=config))
    store.validations.open(
        "j", ValidateRequest(batch=batch_of(config, 1, 2), config=in_chunks(config, 1))
    )
    for _ in range(2):
        store.validations.commit(take(store), [0.5])
    end(store)
    assert store.rounds.status() == before


@pytest.mark.parametrize("verb", ["init", "stop"])
def test_it_outlives_its_round(store: Store, config: PoCConfig, verb: str) -> None:
    """It took what it needs with it."""
    store.rounds.init("i", InitRequest(config=config, round_id="r1"))
    store.validations.open("j", ValidateRequest(batch=batch_of(config, 1)))
    if verb == "init":
        store.rounds.init(
            "i2", InitRequest(config=config.model_copy(update={"block_hash": "other"}))
        )
    else:
        store.rounds.stop("s")
    chunk = take(store)
    assert chunk.config == config
    store.validations.commit(chunk, [0.5])
    job = computed(store)
    assert (job.config, job.round_id) == (config, "r1")


def test_its_callback_counts_in_its_round(store: Store, config: PoCConfig) -> None:
    """Also when that round is no longer the current one, which does not count it then."""
    store.rounds.init("i1", InitRequest(config=config, round_id="r1"))
    store.validations.open("j", ValidateRequest(batch=batch_of(config)))
    store.rounds.init("i2", InitRequest(config=config, round_id="r2"))
    message = Message("http://c/validated", "{}", "j", "r1", 60)
    end(store, message)
    pending = [store.rounds.status(each) for each in ("r1", "r2", None)]
    assert [status and status.callbacks_pending for status in pending] == [1, 0, 0]


def test_opening_it_twice_opens_one(store: Store, config: PoCConfig) -> None:
    """Also when the round that judges it has changed meanwhile."""
    store.rounds.init("i1", InitRequest(config=config))
    batch = batch_of(config, 1)
    store.validations.open("j", ValidateRequest(batch=batch))
    store.rounds.init("i2", InitRequest(config=config.model_copy(update={"block_hash": "other"})))
    store.validations.open("j", ValidateRequest(batch=batch))
    take(store)
    assert claim_chunk(store, "w", "t") is None


class TestWhatIsRefused:
    """Before anything is recorded."""

    def test_a_batch_without_config_or_round(self, store: Store, config: PoCConfig) -> None:
        with pytest.raises(RoundNotInitialized, match=r"^Round not initialized$"):
            store.validations.open("j", ValidateRequest(batch=batch_of(config, 1)))

    @pytest.mark.parametrize(
        ("beside", "of"), [(True, "the config beside it"), (False, "the current round")]
    )
    def test_a_batch_of_another_block(
        self, store: Store, config: PoCConfig, beside: bool, of: str
    ) -> None:
        """The caller learns which two don't fit."""
        store.rounds.init("i", InitRequest(config=config))
        batch = batch_of(config, 1, block_hash="other")
        with pytest.raises(RoundMismatch, match=f"of block other at 7, {of} is of block b10c at 7"):
            store.validations.open(
                "j", ValidateRequest(batch=batch, config=config if beside else None)
            )
        assert store.validations.progress() == {}

    def test_nonces_that_are_not_the_submitters(self, store: Store, config: PoCConfig) -> None:
        """Given a network of three, when node 1 submits what node 2 owns, then it is named."""
        config = config.model_copy(update={"node_id": 1, "node_count": 3})
        with pytest.raises(RoundMismatch, match=r"1 of 2 nonces are not of node 1 of 3.* 5$"):
            store.validations.open(
                "j", ValidateRequest(batch=batch_of(config, 4, 5), config=in_chunks(config, 1))
            )

    def test_a_submitter_that_the_network_does_not_have(
        self, store: Store, config: PoCConfig
    ) -> None:
        config = config.model_copy(update={"node_count": 3})
        with pytest.raises(RoundMismatch, match=r"node_id 3 is not in \[0, 3\)"):
            store.validations.open(
                "j",
                ValidateRequest(batch=batch_of(config, 3, node_id=3), config=in_chunks(config, 1)),
            )

    def test_a_network_of_one_owns_every_nonce(self, store: Store, config: PoCConfig) -> None:
        """Then the submitter's number says nothing."""
        store.validations.open(
            "j",
            ValidateRequest(batch=batch_of(config, 1, 2, node_id=9), config=in_chunks(config, 4)),
        )
        assert take(store).nonces == (1, 2)


@pytest.mark.parametrize("stray", [b"nothing", b"\xff\x00", b"", b"done"])
def test_what_is_no_validation_keeps_none_waiting(
    stray: bytes, store: Store, redis: Client, keys: Keys, config: PoCConfig
) -> None:
    """Given a stray item in front of the verdicts, it is dropped, visibly."""
    store.validations.open("done", ValidateRequest(batch=batch_of(config), config=config))
    end(store)
    redis.rpush(keys("verdicts"), stray)
    store.validations.open("j", ValidateRequest(batch=batch_of(config), config=config))
    assert computed(store).id == "j"
    assert redis.llen(keys("verdicts")) == 1


@pytest.mark.parametrize("field", ["batch", "config"])
@pytest.mark.parametrize("value", ["", "{}", "[1", '{"nonces": 7}'])
def test_a_validation_of_another_version_ends_with_an_error(
    field: str, value: str, store: Store, redis: Client, keys: Keys, config: PoCConfig
) -> None:
    """Given one that can't be read when its verdict is due, its caller hears of it."""
    store.validations.open("strange", ValidateRequest(batch=batch_of(config), config=config))
    redis.hset(keys("job", "strange"), field, value)
    store.validations.open("j", ValidateRequest(batch=batch_of(config), config=config))
    assert computed(store).id == "j"
    ending = store.endings.next()
    assert ending
    assert (ending.task, type(ending.error)) == ("strange", CouldNotCompute)
    assert str(ending.error).startswith("this version of the worker can't read the validation: ")
    assert store.validations.progress() == {"j": {"done": 0, "total": 0}}


@pytest.mark.parametrize("field", ["batch", "config"])
def test_a_chunk_of_another_version_ends_no_worker(
    field: str, store: Store, redis: Client, keys: Keys, config: PoCConfig
) -> None:
    """Given a validation that can't be read, a worker gets the next one."""
    store.validations.open("strange", ValidateRequest(batch=batch_of(config, 1), config=config))
    redis.hset(keys("job", "strange"), field, '{"nonces": 7}')
    store.validations.open("j", ValidateRequest(batch=batch_of(config, 2), config=config))
    assert take(store).validation == "j"
    ending = store.endings.next()
    assert ending
    assert (ending.task, type(ending.error)) == ("strange", CouldNotCompute)


def test_a_validation_is_not_opened_twice(
    store: Store, redis: Client, keys: Keys, config: PoCConfig
) -> None:
    """Given a repeat after its outcome was forgotten, what is computed is kept, so is the end."""
    batch, config = batch_of(config, 7, 5), in_chunks(config, 1)
    store.validations.open("j", ValidateRequest(batch=batch, config=config))
    store.validations.commit(take(store), [0.1])
    redis.delete(keys("command", "j"))
    store.validations.open("j", ValidateRequest(batch=batch, config=config))
    assert store.validations.progress() == {"j": {"done": 1, "total": 2}}
    store.validations.commit(take(store), [0.2])
    end(store)
    redis.delete(keys("command", "j"))
    store.validations.open("j", ValidateRequest(batch=batch, config=config))
    assert store.validations.progress() == {}
    assert redis.llen(keys("endings")) == 1
