"""What a supervisor such as systemd hears of a worker, on the socket that it gave it."""

from __future__ import annotations

from typing import Any

import pytest

from ear import Ear
from support import wait_until
from worker.notify import PATIENCE_S

pytestmark = pytest.mark.functional

MORE_TIME = f"EXTEND_TIMEOUT_USEC={PATIENCE_S}000000"


@pytest.fixture
def start(start_worker: Any, ear: Ear, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`start_worker` by somebody who listens."""
    monkeypatch.setenv("NOTIFY_SOCKET", ear.address)
    return start_worker


def test_a_worker_is_ready_alive_and_then_stops(start: Any, ear: Ear) -> None:
    """In this order: it asks for time until it is ready, and gives signs of life from then on."""
    worker = start()
    wait_until(lambda: ear.heard().count("WATCHDOG=1") >= 2, 20, "signs of life")
    heard = list(ear.heard())
    ready = heard.index("READY=1")
    assert MORE_TIME in heard[:ready]
    assert set(heard[:ready]) <= {MORE_TIME, "WATCHDOG=1"}
    assert set(heard[ready + 1 :]) == {"WATCHDOG=1"}
    worker.process.terminate()
    assert worker.process.wait(20) == 0
    assert [each for each in ear.heard()[ready:] if each != "WATCHDOG=1"] == [
        "READY=1",
        "STOPPING=1",
    ]


def test_a_load_that_hangs_gets_no_more_time_than_its_deadline(start: Any, ear: Ear) -> None:
    """Given a model that is never loaded, it asks for time, and ends by POC_LOAD_DEADLINE."""
    worker = start(wait=False, broken="hangs", POC_LOAD_DEADLINE=1)
    assert worker.process.wait(60) == 3
    assert set(ear.heard()) == {MORE_TIME}
