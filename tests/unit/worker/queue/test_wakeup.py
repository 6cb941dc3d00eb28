"""A signal ends a wait of the loop."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from kombu.asynchronous import Hub

from worker.queue.wakeup import Wakeup


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A loop that waits for nothing, and a handler that does nothing."""
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    hub = Hub()
    yield hub
    hub.close()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGUSR2, before)


def test_a_signal_ends_the_wait_for_commands(hub: Hub) -> None:
    """Which would take a second; also after the loop was made anew."""
    consumer = SimpleNamespace(hub=hub)
    step = Wakeup(consumer)
    for _ in range(2):
        hub.reset()
        step.start(consumer)
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR2)).start()
        began = time.monotonic()
        next(hub.create_loop())
        assert 0.05 < time.monotonic() - began < 0.8


def test_a_thread_that_gets_no_signals_is_let_be() -> None:
    """As a worker that a test runs beside itself; or one without such a loop."""
    consumer = SimpleNamespace(hub=Hub())
    thread = threading.Thread(target=Wakeup(consumer).start, args=(consumer,))
    thread.start()
    thread.join()
    assert not consumer.hub.readers
    Wakeup(consumer).start(SimpleNamespace(hub=None))
