"""A validation that is cancelled ends at once, and is told of as any other end."""

from __future__ import annotations

from uuid import uuid4

import pytest

from chunks import claim_chunk, verdict_on
from shared.config import PoCConfig
from shared.data import ProofBatch
from shared.errors import Cancelled, InvalidRequest
from shared.requests import GenerateRequest, ValidateRequest
from shared.store import Message, Store
from shared.store.connection import Client
from shared.store.keys import Keys

WHY = Cancelled("nobody wants to know")


def open_one(store: Store, config: PoCConfig, task: str, nonces: int = 6) -> None:
    """A validation in chunks of two nonces."""
    in_twos = config.model_copy(update={"batch_size": 2})
    batch = ProofBatch.of(config, list(range(nonces)), [0.5] * nonces)
    store.validations.open(task, ValidateRequest(batch=batch, config=in_twos))


def cancel(store: Store, task: str, command: str = "") -> bool:
    """With a callback, and under an id of its own."""
    return store.validations.cancel(
        command or uuid4().hex, task, WHY, lambda _: Message("http://c", "{}", task, "", 60)
    )


def test_its_ticket_and_its_receiver_are_told(store: Store, config: PoCConfig) -> None:
    """With the reason, once, however often it is cancelled."""
    open_one(store, config, "j")
    assert cancel(store, "j", "c") is cancel(store, "j", "c") is cancel(store, "j") is True
    ending = store.endings.next()
    assert ending
    assert (ending.task, type(ending.error), str(ending.error)) == ("j", Cancelled, str(WHY))
    store.endings.drop(ending)
    assert store.endings.next() is None
    assert [entry.key for entry in store.outbox.take("s", 10)] == ["j"]
    assert store.validations.progress() == {}


def test_what_is_computed_of_it_is_refused(store: Store, config: PoCConfig) -> None:
    """Given chunks that wait, are taken and are done, then those of others are left."""
    open_one(store, config, "other", nonces=2)
    open_one(store, config, "j")
    open_one(store, config, "last", nonces=2)
    others, done, taken = (claim_chunk(store, "w", f"t{n}") for n in range(3))
    assert others
    assert done
    assert taken
    assert store.validations.commit(done, [0.5, 0.5]) is None
    cancel(store, "j")
    assert store.validations.commit(taken, [0.5, 0.5]) == "its chunk was taken over"
    assert store.validations.commit(others, [0.5, 0.5]) is None
    rest = claim_chunk(store, "w", "t4")
    assert rest
    assert rest.validation == "last"
    assert claim_chunk(store, "w", "t5") is None
    judged = store.validations.next_computed()
    assert judged
    assert judged.id == "other"


def test_one_that_waits_for_its_verdict_gets_none(store: Store, config: PoCConfig) -> None:
    """A clerk that has it already is too late."""
    open_one(store, config, "j", nonces=2)
    chunk = claim_chunk(store, "w", "t")
    assert chunk
    store.validations.commit(chunk, [0.5, 0.5])
    judged = store.validations.next_computed()
    assert judged
    assert cancel(store, "j")
    store.validations.finish(judged, verdict_on(judged))
    ending = store.endings.next()
    assert ending
    assert ending.error
    store.endings.drop(ending)
    assert (store.endings.next(), store.validations.next_computed()) == (None, None)


def test_one_that_has_ended_stays_as_it_is(store: Store, config: PoCConfig) -> None:
    """Its verdict was there first."""
    open_one(store, config, "j", nonces=0)
    judged = store.validations.next_computed()
    assert judged
    store.validations.finish(judged, verdict_on(judged))
    assert cancel(store, "j") is False
    ending = store.endings.next()
    assert ending
    assert (ending.verdict, ending.error) == (verdict_on(judged).model_dump_json(), None)
    assert store.outbox.take("s", 10) == []


def test_what_is_no_validation_is_refused(store: Store, config: PoCConfig) -> None:
    """A round's ticket is named as one, with the command that is meant."""
    with pytest.raises(InvalidRequest, match="no validation never is kept"):
        cancel(store, "never")
    store.rounds.generate("g", GenerateRequest(config=config, round_id="r1"))
    with pytest.raises(InvalidRequest, match=r"g is no validation, .* round r1: `poc stop`"):
        cancel(store, "g")


def test_one_that_opens_while_it_is_looked_for_is_told_of_as_well(
    store: Store, config: PoCConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given that the first look found nothing, then it looks again, and the callback is there."""
    read, looks = store.validations._read, iter([({}, {})])

    def look(validation: str) -> tuple[dict[str, str], dict[str, str]]:
        return next(looks, None) or read(validation)

    open_one(store, config, "j")
    monkeypatch.setattr(store.validations, "_read", look)
    assert cancel(store, "j")
    assert len(store.outbox.take("s", 10)) == 1


def test_one_of_another_version_can_be_cancelled(
    store: Store, redis: Client, keys: Keys, config: PoCConfig
) -> None:
    """Nobody can say whom to call; its ticket ends all the same."""
    open_one(store, config, "j")
    redis.hset(keys("job", "j"), "batch", "{}")
    assert cancel(store, "j")
    assert store.endings.next()
    assert store.outbox.take("s", 10) == []
