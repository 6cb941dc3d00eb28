"""What callers of the network send to a gateway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi.testclient import TestClient

from shared.gateway.in_time import ANSWER_S

#: Seconds within which whoever does not ask to wait is answered, also where other tests take the
#: processor: whoever had to wait twice would need longer.
IN_TIME = 2 * ANSWER_S

#: Makes a client of a gateway with these settings.
Gateway = Callable[..., TestClient]

POW = "/api/v1/inference/pow"
BLOCK: dict[str, Any] = {"block_hash": "B10C", "block_height": 7, "public_key": "02a1"}
ROUND: dict[str, Any] = {
    **BLOCK,
    "node_id": 1,
    "node_count": 3,
    "params": {"model": "/models/m", "seq_len": 256},
}
JOB: dict[str, Any] = {**ROUND, "nonces": [1, 4]}
