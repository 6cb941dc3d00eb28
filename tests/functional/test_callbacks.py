"""Callbacks from a real outbox to a real receiver: nothing is lost, nobody is held up."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr

from chunks import claim_chunk, verdict_on
from receiver import Receiver
from shared.config import PoCConfig
from shared.data import ProofBatch, ValidatedBatch
from shared.errors import CouldNotCompute
from shared.requests import GenerateRequest, ValidateRequest
from shared.settings import Settings, load_settings
from shared.signature import verify
from shared.status import RoundStatus
from shared.store import Computed, Store
from support import ROOT, free_port, kept, wait_until
from worker.callbacks import delivery
from worker.callbacks.messages import generated_message, validated_message
from worker.children import end, spawn
from worker.sender import PoCCallbackSender
from worker.tools.embedded import EmbeddedRedis

pytestmark = pytest.mark.functional


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return load_settings(
        {},
        redis_url=redis_url,
        namespace="test",
        callback_timeout_s=0.5,
        lease_s=0.5,
        heartbeat_s=0.1,
    )


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    with contextlib.closing(Store(settings)) as made:
        yield made


@contextlib.contextmanager
def sending(store: Store, settings: Settings, name: str = "sender") -> Iterator[None]:
    """A sender at work; it must end when it is told to."""
    stop = threading.Event()
    thread = threading.Thread(
        target=PoCCallbackSender(store, name, settings).run, args=(stop,), daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


def open_round(store: Store, url: str, **changes: Any) -> None:
    config = PoCConfig(
        block_hash="b10c",
        block_height=7,
        public_key="node",
        r_target=1.4,
        batch_size=4,
        callback_url=url,
        **changes,
    )
    store.rounds.generate(uuid4().hex, GenerateRequest(config=config, replace=True))


def find(store: Store, batches: int = 1) -> list[int]:
    """Commit so many batches with one valid nonce each, as the manager does."""
    found = []
    for _ in range(batches):
        claim = store.rounds.claim("w", uuid4().hex)
        assert claim
        valid = [(claim.nonces[0], 0.5)]
        message = generated_message(claim, valid)
        assert store.rounds.commit(claim, Computed(4, kept(valid), message=message)) is None
        found.append(claim.nonces[0])
    return found


def status(store: Store) -> RoundStatus:
    found = store.rounds.status()
    assert found
    return found


def counts(store: Store) -> tuple[int, int, int]:
    """Pending, delivered, refused."""
    now = status(store)
    return now.callbacks_pending, now.callbacks_delivered, now.callbacks_refused


def until_counts(store: Store, *expected: int, timeout: float = 15.0) -> None:
    wait_until(lambda: counts(store) == expected, timeout, f"the counts to be {expected}")


def test_a_batch_arrives_with_its_key(store: Store, settings: Settings) -> None:
    """Given a committed batch, then its receiver gets it once, as JSON, and the status says so."""
    with Receiver() as receiver, sending(store, settings):
        open_round(store, receiver.url)
        nonces = find(store)
        until_counts(store, 0, 1, 0)
    ((path, headers, body),) = receiver.requests
    assert path == "/poc/generated"
    assert headers["Content-Type"] == "application/json"
    assert headers["Idempotency-Key"].startswith(status(store).round_id + ":")
    batch = ProofBatch.model_validate_json(body)
    assert (batch.nonces, batch.dist, batch.public_key) == (nonces, [0.5], "node")


def test_a_validation_ends_in_a_message(store: Store, settings: Settings) -> None:
    """A verdict, and an error where there is none."""
    with Receiver() as receiver, sending(store, settings):
        open_round(store, receiver.url)
        config = store.rounds.current()[1]
        assert config
        batch = ProofBatch.of(config, [0, 1], [0.5, 0.5])
        for task, second in (("good", 0.5), ("bad", None)):
            store.validations.open(task, ValidateRequest(batch=batch))
            chunk = claim_chunk(store, "w", uuid4().hex)
            assert chunk
            store.validations.commit(chunk, [0.5, second])
            job = store.validations.next_computed()
            assert job
            if task == "good":
                verdict = verdict_on(job)
                store.validations.finish(job, verdict, message=validated_message(job, verdict))
            else:
                error = CouldNotCompute("no finite numbers for 1 of 2 nonces")
                store.validations.finish(job, error=error, message=validated_message(job, error))
        until_counts(store, 0, 2, 0)
    told = {headers["Idempotency-Key"]: json.loads(body) for _, headers, body in receiver.requests}
    assert [path for path, _, _ in receiver.requests] == ["/poc/validated"] * 2
    assert told["validation:good"]["fraud_detected"] is False
    assert told["validation:bad"]["error"] == "CouldNotCompute"
    assert "fraud_detected" not in told["validation:bad"]


def test_a_receiver_that_was_down_misses_nothing(
    store: Store, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """Given nobody at the address for a while, then all arrives later; the log says it once."""
    caplog.set_level(logging.INFO, "worker.callbacks.delivery")
    port = free_port()
    with sending(store, settings):
        open_round(store, f"http://127.0.0.1:{port}/poc")
        nonces = find(store, 20)
        wait_until(lambda: "are tried again" in caplog.text, 10, "the outage to be noticed")
        assert counts(store) == (20, 0, 0)
        with Receiver(port=port) as receiver:
            until_counts(store, 0, 20, 0)
            wait_until(lambda: "delivered again" in caplog.text, 5, "the end to be noticed")
            assert receiver.nonces == nonces
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_what_failed_is_tried_again(store: Store, settings: Settings) -> None:
    """Given 500, 429 and silence, then 200: the same message under the same key."""
    with Receiver(500, 429, "hang") as receiver, sending(store, settings):
        open_round(store, receiver.url)
        find(store)
        until_counts(store, 0, 1, 0)
    keys = {headers["Idempotency-Key"] for _, headers, _ in receiver.requests}
    bodies = {body for _, _, body in receiver.requests}
    assert (len(receiver.requests), len(keys), len(bodies)) == (4, 1, 1)


def test_a_receiver_that_is_still_at_it_is_asked_again(store: Store, settings: Settings) -> None:
    """Given one that is slow and tells a repeat 409 until it is through, then it is delivered."""
    with Receiver("hang", 409, 409) as receiver, sending(store, settings):
        open_round(store, receiver.url)
        find(store)
        wait_until(lambda: counts(store) == (0, 1, 0), 20, "the delivery")
    keys = {headers["Idempotency-Key"] for _, headers, _ in receiver.requests}
    assert (len(receiver.requests), len(keys)) == (4, 1)


def test_a_repeat_by_another_sender_may_meet_the_first(store: Store, settings: Settings) -> None:
    """Given a sender that was killed while its request was under way, then 409 is no refusal."""
    with Receiver(409) as receiver:
        open_round(store, receiver.url)
        find(store)
        assert store.outbox.take("killed", 1)
        with sending(store, settings):
            wait_until(lambda: counts(store) == (0, 1, 0), 20, "the delivery")
    assert len(receiver.requests) == 2


def test_a_conflict_at_the_first_attempt_is_a_refusal(store: Store, settings: Settings) -> None:
    with Receiver(409) as receiver, sending(store, settings):
        open_round(store, receiver.url)
        find(store)
        wait_until(lambda: counts(store) == (0, 0, 1), 20, "the refusal")
    assert "409 Conflict" in status(store).callback_error


def test_a_message_that_its_receiver_cannot_stand_blocks_no_other(
    store: Store, settings: Settings
) -> None:
    """Given 500 for one and the same message again and again, then the others still arrive."""
    with Receiver() as receiver, sending(store, settings):
        receiver.poison = b'"nonces":[0]'
        open_round(store, receiver.url)
        find(store, 20)
        until_counts(store, 1, 19, 0)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (404, "it answered 404 Not Found"),
        (308, "it answered 308 Permanent Redirect; redirects are not followed"),
    ],
)
def test_a_refusal_is_final_and_shown(
    store: Store, settings: Settings, answer: int, says: str
) -> None:
    """One request, no second one anywhere, and the status tells who said what."""
    with Receiver(answer) as receiver, sending(store, settings):
        open_round(store, receiver.url)
        find(store)
        until_counts(store, 0, 0, 1)
        find(store)
        until_counts(store, 0, 1, 1)
    assert [path for path, _, _ in receiver.requests] == ["/poc/generated"] * 2
    assert status(store).callback_error.startswith(receiver.url.removesuffix("/poc"))
    assert says in status(store).callback_error
    totals = store.overview().totals
    assert (totals.delivered, totals.refused) == (1, {f"status_{answer}": 1})


def test_an_address_that_cannot_be_is_refused(store: Store, settings: Settings) -> None:
    """Given a host that can't be one, then it is not tried for an hour."""
    with sending(store, settings):
        open_round(store, "http://256.1.1.1/poc")
        find(store)
        until_counts(store, 0, 0, 1)
    assert "the message can't be sent" in status(store).callback_error
    assert store.overview().totals.refused == {"never_sent": 1}


@pytest.mark.parametrize("trouble", ["hang", "drip"])
def test_a_receiver_that_never_ends_holds_up_no_other(
    store: Store, settings: Settings, trouble: str
) -> None:
    """Given one that is silent, or never ends its headers, then another gets all of its own."""
    with Receiver() as slow, Receiver() as good, sending(store, settings):
        slow.always = trouble
        open_round(store, slow.url)
        find(store, 50)
        wait_until(lambda: slow.requests, 10, "the first attempt")
        open_round(store, good.url)
        nonces = find(store, 50)
        until_counts(store, 0, 50, 0)
        assert good.nonces == nonces
        assert store.outbox.waiting() == 50
        slow.always = 200
        wait_until(lambda: store.outbox.waiting() == 0, 30, "the slow one to get its own")


def test_many_slow_receivers_leave_room_for_others(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given more of them than there are requests at a time, then another gets its own soon."""
    monkeypatch.setattr(delivery, "MAX_REQUESTS", 2)
    monkeypatch.setattr(delivery, "MAX_TROUBLED", 1)
    monkeypatch.setattr(delivery, "MAX_PAUSE_S", 0.5)
    with contextlib.ExitStack() as stack:
        good, *slow = [stack.enter_context(Receiver()) for _ in range(13)]
        stack.enter_context(sending(store, settings))
        for each in slow:
            each.always = "hang"
            open_round(store, each.url)
            find(store, 3)
        wait_until(lambda: all(each.requests for each in slow), 30, "all to be known")
        open_round(store, good.url)
        nonces = find(store, 20)
        until_counts(store, 0, 20, 0)
        assert good.nonces == nonces


def test_a_full_sender_has_room_for_others(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given more messages for a dead receiver than a sender holds, then none is lost or in the way.

    What was let go comes back when its lease ends.
    """
    monkeypatch.setattr(delivery, "MAX_HELD", 8)
    port = free_port()
    with Receiver() as good, sending(store, settings):
        open_round(store, f"http://127.0.0.1:{port}/poc")
        lost = find(store, 40)
        open_round(store, good.url)
        find(store, 5)
        until_counts(store, 0, 5, 0)
        with Receiver(port=port) as late:
            wait_until(lambda: store.outbox.waiting() == 0, 60, "all to arrive")
            assert late.nonces == lost


def test_a_round_says_that_its_receiver_failed_in_the_one_before(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given one that is left alone for now, before anything is tried; not once it takes them."""
    monkeypatch.setattr(delivery, "pause", lambda failures: 3.0)
    port = free_port()
    with sending(store, settings):
        open_round(store, f"http://127.0.0.1:{port}/poc")
        find(store)
        wait_until(lambda: "tried again" in status(store).callback_error, 10, "an attempt")
        open_round(store, f"http://127.0.0.1:{port}/poc")
        assert status(store).callback_error == ""
        find(store)
        wait_until(lambda: "ConnectError" in status(store).callback_error, 2, "the reason")
        with Receiver(port=port):
            until_counts(store, 0, 1, 0)
    assert status(store).callback_error == ""


def test_a_deadline_that_passes_is_shown(store: Store, settings: Settings) -> None:
    """Given nobody at the address until the deadline, then it is given up with the last failure."""
    with sending(store, settings):
        open_round(store, f"http://127.0.0.1:{free_port()}/poc", callback_deadline_s=4)
        find(store, 3)
        wait_until(lambda: "tried again" in status(store).callback_error, 10, "an attempt")
        until_counts(store, 0, 0, 3)
    assert re.search("its deadline passed; .*ConnectError", status(store).callback_error)
    assert store.overview().totals.refused == {"deadline": 3}


def test_a_message_found_after_its_deadline_is_not_sent(store: Store, settings: Settings) -> None:
    """Given no sender until the deadline passed, then it is given up without an attempt."""
    with Receiver() as receiver:
        open_round(store, receiver.url, callback_deadline_s=0.001)
        find(store)
        (entry,) = store.outbox.take("early bird", 1)
        wait_until(lambda: entry.gives_up_at < time.monotonic(), 5, "the deadline")
        with sending(store, settings):
            until_counts(store, 0, 0, 1)
    assert receiver.requests == []
    assert status(store).callback_error.endswith(
        "it was never tried, since no sender came to it in time"
    )


def test_senders_share_the_work(store: Store, settings: Settings) -> None:
    """Given two senders and no trouble, then each message is sent once."""
    # None that is slow for a moment counts as dead.
    settings = settings.model_copy(update={"lease_s": 600.0})
    with (
        Receiver() as receiver,
        sending(store, settings, "one"),
        sending(store, settings, "two"),
    ):
        open_round(store, receiver.url)
        nonces = find(store, 60)
        until_counts(store, 0, 60, 0)
        assert receiver.nonces == nonces
        assert len(receiver.requests) == 60


SENDER = """
import sys, threading
from shared.settings import load_settings
from shared.store import Store
from worker.sender import PoCCallbackSender

settings = load_settings({}, redis_url=sys.argv[1], namespace="test", lease_s=0.5, heartbeat_s=0.1)
PoCCallbackSender(Store(settings), "killed", settings).run(threading.Event())
"""


def test_a_killed_sender_is_taken_over(store: Store, settings: Settings) -> None:
    """Given a process killed with requests under way, then another sender delivers them."""
    with Receiver() as receiver:
        receiver.always = "hang"
        open_round(store, receiver.url)
        nonces = find(store, 10)
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        process = spawn([sys.executable, "-c", SENDER, settings.redis_url], env=env)
        try:
            wait_until(lambda: receiver.requests, 30, "the first sender to begin")
        finally:
            process.kill()
            end(process)
        receiver.always = 200
        with sending(store, settings, "heir"):
            until_counts(store, 0, 10, 0)
        assert receiver.nonces == nonces


def test_a_stopped_sender_leaves_what_it_held(store: Store, settings: Settings) -> None:
    """Given a stop while a request is under way, then the message waits for the next sender."""
    with Receiver("hang") as receiver:
        open_round(store, receiver.url)
        with sending(
            store, load_settings({}, **settings.model_dump() | {"callback_timeout_s": 60})
        ):
            find(store)
            wait_until(lambda: receiver.requests, 10, "the attempt")
        assert counts(store) == (1, 0, 0)
        with sending(store, settings):
            until_counts(store, 0, 1, 0)


def test_a_redis_that_was_away_loses_no_callback(caplog: pytest.LogCaptureFixture) -> None:
    """Given a Redis with a log that is killed with callbacks under way, then all arrive."""
    caplog.set_level(logging.WARNING, "worker")
    with EmbeddedRedis(aof=True) as server, Receiver() as receiver:
        options = {"namespace": "test", "lease_s": 0.5, "heartbeat_s": 0.1}
        settings = load_settings({}, redis_url=server.url, **options)
        with contextlib.closing(Store(settings)) as store, sending(store, settings):
            open_round(store, receiver.url)
            receiver.always = 503
            nonces = find(store, 20)
            wait_until(lambda: receiver.requests, 10, "the first attempt")
            server.kill()
            wait_until(lambda: "nothing is lost" in caplog.text, 30, "the outage to be noticed")
            receiver.always = 200
            server.start()
            until_counts(store, 0, 20, 0, timeout=60)
        assert receiver.nonces == nonces
    assert caplog.text.count("nothing is lost") == caplog.text.count("answers again") == 1


def test_an_answer_given_while_redis_is_away_counts_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Given a Redis that dies between request and answer, then the delivery is settled later."""
    with EmbeddedRedis(aof=True) as server, Receiver("hold") as receiver:
        settings = load_settings({}, redis_url=server.url, namespace="test")
        with contextlib.closing(Store(settings)) as store, sending(store, settings):
            open_round(store, receiver.url)
            find(store)
            wait_until(lambda: receiver.requests, 10, "the request")
            server.kill()
            receiver.let_go.set()
            wait_until(lambda: "nothing is lost" in caplog.text, 30, "the outage")
            server.start()
            until_counts(store, 0, 1, 0, timeout=60)
        assert len(receiver.requests) == 1


def test_a_batch_can_be_sent_at_once(store: Store, settings: Settings) -> None:
    """Past the outbox: one attempt, and what came of it."""
    direct = PoCCallbackSender(store, "sender", settings)
    with Receiver(200, 404) as receiver:
        open_round(store, receiver.url)
        config = store.rounds.current()[1]
        assert config
        batch = ProofBatch.of(config, [1], [0.5])
        assert direct.send_generated(batch, config, "k") is None
        verdict = ValidatedBatch.judge(batch, [0.5], config)
        assert direct.send_validated(verdict, config, "k") == "it answered 404 Not Found"
        silent = config.model_copy(update={"callback_url": None})
        assert direct.send_generated(batch, silent, "k") is None
    assert [path for path, _, _ in receiver.requests] == ["/poc/generated", "/poc/validated"]


class TestSignature:
    """How a receiver knows who told it."""

    SECRET = base64.b64encode(bytes(range(32))).decode()

    def test_each_attempt_is_signed(self, store: Store, settings: Settings) -> None:
        """Given a secret, each attempt has its own time, and the same id and body."""
        signing = settings.model_copy(update={"callback_secret": SecretStr(self.SECRET)})
        with Receiver(500) as receiver, sending(store, signing):
            open_round(store, receiver.url)
            find(store)
            until_counts(store, 0, 1, 0)
        assert len(receiver.requests) == 2
        for _, headers, body in receiver.requests:
            assert verify(self.SECRET, headers, body.decode()) == headers["Idempotency-Key"]

    def test_without_a_secret_there_is_none(self, store: Store, settings: Settings) -> None:
        with Receiver() as receiver, sending(store, settings):
            open_round(store, receiver.url)
            find(store)
            until_counts(store, 0, 1, 0)
        ((_, headers, _),) = receiver.requests
        assert not [name for name in headers if name.lower().startswith("webhook-")]


@pytest.mark.parametrize(
    ("url", "allow", "says"),
    [
        ("http://169.254.169.254/latest", None, "link-local"),
        ("http://2852039166/", None, "link-local"),
        ("http://[::ffff:169.254.169.254]/", None, "link-local"),
        ("http://127.0.0.1:9/", "receiver.example,10.0.0.0/8", "not in POC_CALLBACK_ALLOW"),
    ],
)
def test_what_may_not_be_reached_is_refused_for_good(
    url: str, allow: str | None, says: str, store: Store, settings: Settings
) -> None:
    """Also if it is in the outbox already, past the check of the command; the status says why."""
    with sending(store, settings.model_copy(update={"callback_allow": allow})):
        open_round(store, url)
        find(store)
        until_counts(store, 0, 0, 1)
    assert says in status(store).callback_error


def test_a_redirect_leads_nowhere(store: Store, settings: Settings) -> None:
    """Given a receiver that points at another, then that one hears nothing."""
    with Receiver(307) as receiver, sending(store, settings):
        open_round(store, receiver.url)
        find(store)
        until_counts(store, 0, 0, 1)
    assert [path for path, _, _ in receiver.requests] == ["/poc/generated"]
    assert "redirects are not followed" in status(store).callback_error
