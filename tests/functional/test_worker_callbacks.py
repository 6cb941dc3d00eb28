"""Callbacks over the whole path: a worker finds, a receiver is told."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from fake_engine import fake_distance
from preloaded import Fork
from raw import meta, push
from receiver import Receiver
from shared.client import PoCClient
from shared.config import PoCConfig, PoCState
from shared.data import ProofBatch, ValidatedBatch
from shared.errors import CouldNotCompute
from shared.settings import Settings
from shared.status import RoundStatus
from shared.store import Store
from shared.store.keys import Keys
from support import ROOT, clean_environment, free_port, wait_until
from worker.children import end

pytestmark = pytest.mark.functional


StartCallbacks = Callable[[], Fork]


@pytest.fixture
def port() -> int:
    """A port where nobody listens yet."""
    return free_port()


@pytest.fixture
def config(port: int) -> PoCConfig:
    return PoCConfig(
        block_hash="b",
        block_height=1,
        public_key="k",
        r_target=0.5,
        batch_size=8,
        callback_url=f"http://127.0.0.1:{port}/poc",
    )


def test_what_was_found_while_the_receiver_was_down_arrives(
    port: int, config: PoCConfig, client: PoCClient, store: Store, start_worker: Any
) -> None:
    """Given a receiver that comes up after the stop, it is told every valid nonce."""
    start_worker("w0", seconds=0.02)
    client.generate(config)
    wait_until(lambda: store.status().total_valid >= 10, description="ten valid nonces")
    stopped = client.stop()
    # The stop did not wait for the receiver, and generation did not either.
    assert stopped.callbacks_pending > 0
    assert stopped.callbacks_delivered == 0

    with Receiver(port=port) as receiver:
        done = wait_until(
            lambda: (now := store.status()).callbacks_pending == 0 and now,
            timeout=20,
            description="the outbox to drain",
        )
    told = {
        nonce: distance
        for body in receiver.bodies("/poc/generated")
        for nonce, distance in zip(body["nonces"], body["dist"], strict=True)
    }
    found = store.rounds.found(stopped.round_id, 0, stopped.total_valid)
    assert told == dict(zip(*found, strict=True))
    assert len(told) == stopped.total_valid
    assert done.state == PoCState.STOPPED
    assert (done.callbacks_delivered, done.callbacks_refused) == (stopped.callbacks_pending, 0)
    ProofBatch.model_validate(receiver.bodies("/poc/generated")[0])


def test_a_verdict_arrives(
    port: int, config: PoCConfig, client: PoCClient, store: Store, start_worker: Any
) -> None:
    """What a validation of the round ends with is posted, the same that its ticket gives."""
    start_worker("w0")
    client.init(config)
    batch = ProofBatch.of(config, [0, 1], [fake_distance("b", "k", n) for n in (0, 1)])
    with Receiver(port=port) as receiver:
        verdict = client.validate_batch(batch).wait(10)
        (body,) = wait_until(lambda: receiver.bodies("/poc/validated"), description="the message")
        wait_until(lambda: store.status().callbacks_delivered == 1, description="the count")
    assert ValidatedBatch.model_validate(body) == verdict


def test_a_validation_without_a_verdict_is_told_as_well(
    port: int, config: PoCConfig, client: PoCClient, start_worker: Any
) -> None:
    """Who waits for /validated hears that it could not be computed."""
    start_worker("w0", nan=7)
    batch = ProofBatch.of(config, [7], [0.1])
    with Receiver(port=port) as receiver:
        with pytest.raises(CouldNotCompute):
            client.validate_batch(batch, config).wait(10)
        (body,) = wait_until(lambda: receiver.bodies("/poc/validated"), description="the message")
    assert (body["error"], body["nonces"]) == ("CouldNotCompute", [7])


def test_a_validation_of_its_own_counts_beside_the_rounds(
    port: int, config: PoCConfig, client: PoCClient, store: Store, start_worker: Any
) -> None:
    """Given a config beside the batch, then its callbacks are counted, by no round."""
    start_worker("w0")
    client.init(config)
    batch = ProofBatch.of(config, [0, 1], [fake_distance("b", "k", n) for n in (0, 1)])

    def counts() -> tuple[int, int, int]:
        now = store.status().validation_callbacks
        return now.callbacks_pending, now.callbacks_delivered, now.callbacks_refused

    client.validate_batch(batch, config).wait(10)
    assert counts() == (1, 0, 0)
    with Receiver(port=port) as receiver:
        wait_until(lambda: counts() == (0, 1, 0), description="the delivery")
        receiver.always = 404
        client.validate_batch(batch, config).wait(10)
        wait_until(lambda: counts() == (0, 1, 1), description="the refusal")
    now = store.status()
    assert "404" in now.validation_callbacks.callback_error
    assert (now.callbacks_pending, now.callbacks_delivered, now.callbacks_refused) == (0, 0, 0)


@pytest.mark.parametrize(
    ("url", "allow", "says"),
    [
        ("http://127.0.0.1:9", "receiver.example", "127.0.0.1 is not in POC_CALLBACK_ALLOW"),
        ("http://169.254.169.254", "", "a link-local address"),
        ("http://me:hunter2@127.0.0.1:9", "", "takes no user and password"),
    ],
)
def test_a_receiver_that_is_not_allowed_is_refused_with_the_command(
    url: str, allow: str, says: str, settings: Settings, start_worker: Any, store: Store
) -> None:
    """Whoever names it is told at once, and no round begins; not even the log has its password."""
    worker = start_worker("w0", POC_CALLBACK_ALLOW=allow)
    config = {"block_hash": "b", "block_height": 1, "public_key": "k", "r_target": 1.5, "url": url}
    with redis.Redis.from_url(settings.redis_url) as direct:
        for task in ("poc.init", "poc.generate", "poc.validate"):
            answer = meta(direct, push(direct, task, {"config": config}))
            assert answer["status"] == "FAILURE"
            assert answer["result"]["exc_type"] == "InvalidRequest"
            assert says in json.dumps(answer["result"]["exc_message"])
            assert "hunter2" not in json.dumps(answer)
    assert store.status().round_id == ""
    assert "hunter2" not in worker.log


@pytest.fixture
def start_callbacks(settings: Settings, tmp_path: Path) -> Iterator[StartCallbacks]:
    """Start `poc callbacks`, which logs to the file `callbacks.log`; it is ended after the test."""
    started: list[Fork] = []
    env = clean_environment() | {
        "POC_REDIS_URL": settings.redis_url,
        "POC_NAMESPACE": settings.namespace,
        "POC_LEASE_S": str(settings.lease_s),
        "POC_HEARTBEAT_S": str(settings.heartbeat_s),
    }

    def start() -> Fork:
        log = tmp_path / "callbacks.log"
        started.append(Fork(["callbacks"], env=env, cwd=ROOT, log_path=log))
        return started[-1]

    yield start
    for process in started:
        end(process, timeout=10)


class TestItsOwnProcess:
    """`poc callbacks` beside workers that deliver nothing."""

    @pytest.fixture
    def stopped(
        self, config: PoCConfig, client: PoCClient, store: Store, start_worker: Any
    ) -> RoundStatus:
        """A round that found something, by a worker with POC_RUN_CALLBACKS=false."""
        start_worker("w0", seconds=0.02, POC_RUN_CALLBACKS="false")
        client.generate(config)
        wait_until(lambda: store.status().total_valid >= 10, description="ten valid nonces")
        return client.stop()

    def test_it_delivers_what_the_workers_leave(
        self,
        port: int,
        store: Store,
        stopped: RoundStatus,
        start_callbacks: StartCallbacks,
        tmp_path: Path,
    ) -> None:
        """Given a receiver that listens, then it is told everything, and only by this process."""
        with Receiver(port=port) as receiver:
            # Ten times as long as the workers' own sender would take.
            time.sleep(1)
            assert receiver.requests == []
            assert store.status().callbacks_pending == stopped.callbacks_pending > 0
            sender = start_callbacks()
            wait_until(
                lambda: store.status().callbacks_delivered == stopped.callbacks_pending,
                timeout=30,
                description="the deliveries",
            )
        found, _ = store.rounds.found(stopped.round_id, 0, stopped.total_valid)
        assert receiver.nonces == sorted(found)
        assert store.status().callbacks_pending == 0
        assert end(sender, timeout=20) == 0
        assert "Traceback" not in (tmp_path / "callbacks.log").read_text()

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_a_signal_ends_it_in_order(
        self, number: int, store: Store, start_callbacks: StartCallbacks, tmp_path: Path
    ) -> None:
        """With status 0: the end of its terminal as well."""
        sender = start_callbacks()
        wait_until(lambda: store._redis.exists(Keys("test")("outbox")), 30, "it to look for work")
        sender.send_signal(number)
        assert sender.wait(20) == 0
        assert "Traceback" not in (tmp_path / "callbacks.log").read_text()

    def test_another_takes_over_from_one_that_was_killed(
        self,
        port: int,
        store: Store,
        stopped: RoundStatus,
        start_callbacks: StartCallbacks,
    ) -> None:
        """Given one that held all of it while the receiver was down, then nothing is lost."""
        doomed = start_callbacks()
        wait_until(
            lambda: _held(store) == stopped.callbacks_pending, 30, "it to have taken the messages"
        )
        doomed.kill()
        doomed.wait()
        start_callbacks()
        with Receiver(port=port) as receiver:
            wait_until(
                lambda: store.status().callbacks_delivered == stopped.callbacks_pending,
                timeout=60,
                description="the deliveries",
            )
        found, _ = store.rounds.found(stopped.round_id, 0, stopped.total_valid)
        assert receiver.nonces == sorted(found)


def _held(store: Store) -> int:
    """The messages that are with a sender."""
    try:
        return int(store._redis.xpending(Keys("test")("outbox"), "senders")["pending"])
    except redis.ResponseError:  # nobody has asked for any yet
        return 0
