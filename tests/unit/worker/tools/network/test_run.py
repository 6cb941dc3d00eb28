"""Which nodes an epoch is played with."""

from __future__ import annotations

import pytest

from shared.errors import ConfigError
from worker.tools.network.run import run


def test_a_node_that_is_given_twice_is_refused() -> None:
    """It would wait for itself; however its address is written."""
    with pytest.raises(ConfigError, match=r":1 is given 2 times"):
        run(1, ["http://127.0.0.1:1", "http://127.0.0.1:1/"])
