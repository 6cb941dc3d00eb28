"""What NVML says of the real card, in the units of a reading."""

from __future__ import annotations

import pytest

from shared.status import GpuReading
from worker.node.gpus import Gpus

pytestmark = pytest.mark.gpu


def test_a_card_tells_of_itself() -> None:
    read = Gpus.of("cuda").read()[0]
    card = GpuReading(**read)
    assert card.name.startswith(("NVIDIA", "Tesla"))
    assert card.uuid.startswith(("GPU-", "MIG-"))
    assert card.utilization is not None
    assert 0 <= card.utilization <= 1
    assert card.memory_used_bytes is not None
    assert card.memory_total_bytes is not None
    assert 1e6 < card.memory_used_bytes <= card.memory_total_bytes
    assert card.memory_total_bytes > 4e9
    assert card.temperature_celsius is not None
    assert 10 < card.temperature_celsius < 120
    assert card.power_watts is not None
    assert 5 < card.power_watts < 2000
