"""Callbacks over the whole path: a worker finds, a receiver is told."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from fake_engine import fake_distance
from shared.client import PoCClient
from shared.config import PoCConfig, PoCState
from shared.data import ProofBatch, ValidatedBatch
from shared.errors import CouldNotCompute
from shared.store import Store
from support import wait_until

pytestmark = pytest.mark.functional


class Receiver(ThreadingHTTPServer):
    """A controller that answers 200 and keeps what it was told."""

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.got: list[tuple[str, dict[str, Any]]] = []

    def bodies(self, path: str) -> list[dict[str, Any]]:
        """What was posted to `path`."""
        return [body for at, body in list(self.got) if at == path]


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.got.append((self.path, body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""


@contextmanager
def receiving(port: int) -> Iterator[Receiver]:
    """A receiver on `port` while the block runs."""
    with Receiver(port) as receiver:
        thread = threading.Thread(target=receiver.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield receiver
        finally:
            receiver.shutdown()
            thread.join()


@pytest.fixture
def port() -> int:
    """A port where nobody listens yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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

    with receiving(port) as receiver:
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
    with receiving(port) as receiver:
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
    with receiving(port) as receiver:
        with pytest.raises(CouldNotCompute):
            client.validate_batch(batch, config).wait(10)
        (body,) = wait_until(lambda: receiver.bodies("/poc/validated"), description="the message")
    assert (body["error"], body["nonces"]) == ("CouldNotCompute", [7])
