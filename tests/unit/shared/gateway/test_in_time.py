"""Whatever is slow, a request has its answer in time."""

from __future__ import annotations

import time

import pytest

from calls import POW, Gateway
from shared.gateway import in_time
from shared.store import Store

pytestmark = pytest.mark.usefixtures("worker")


def test_a_slow_redis_is_waited_for_once_however_often_it_is_asked(
    gateway: Gateway, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_time, "ANSWER_S", 1.0)
    for part, look in ((store.workers, "listing"), (store.rounds, "status")):
        quick = getattr(part, look)
        slow = lambda quick=quick: (time.sleep(0.9), quick())[1]  # noqa: E731
        monkeypatch.setattr(part, look, slow)
    answer = gateway().post(f"{POW}/stop")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert answer.elapsed.total_seconds() < 1.8  # what two waits of their own would take
