"""What `poc bench` asks of vLLM's process."""

from __future__ import annotations

import pytest
from driver import Driver

from shared.errors import EngineError

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(300),
]


def test_forwards_alone_are_timed_in_whole_tiles(driver: Driver) -> None:
    """They have the shape of a round's and are no jobs, so the engine is not busy with them."""
    busy = driver.engine.busy_seconds
    driver.call("poc_shapes")
    nonces, seconds = driver.engine.time_forwards(40, 0.05)
    assert set(map(tuple, driver.call("poc_shapes"))) == {(4, 40, 64)}
    assert nonces > 0
    assert nonces % 4 == 0
    assert seconds >= 0.05
    assert driver.engine.busy_seconds == busy
    with pytest.raises(EngineError, match="seq_len=129"):
        driver.engine.time_forwards(129, 0.05)


def test_the_published_algorithm_around_our_forward_gives_our_distances(driver: Driver) -> None:
    """Else it would be no opponent."""
    theirs = driver.engine.call("poc_published", "b", "k", list(range(8)), 40)
    assert theirs == pytest.approx(driver.distances(*range(8)), abs=2e-6)
