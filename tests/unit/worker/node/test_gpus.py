"""How GPUs are, as NVML has it. The library is a stand-in here: it needs a driver."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from shared.status import WorkerStatus
from worker.node import gpus
from worker.node.gpus import Gpus

CARD = {
    "name": "a card",
    "uuid": "GPU-1",
    "utilization": 0.75,
    "memory_used_bytes": 3 << 30,
    "memory_total_bytes": 80 << 30,
    "temperature_celsius": 61,
    "power_watts": 345.5,
}


class Nvml:
    """Two cards, of which the second has no sensor for power."""

    NVMLError = pynvml.NVMLError
    NVML_TEMPERATURE_GPU = pynvml.NVML_TEMPERATURE_GPU

    def __init__(self) -> None:
        self.asked: list[str | int] = []

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        self.asked.append(index)
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        self.asked.append(uuid)
        return 0

    def nvmlDeviceGetName(self, _: int) -> str:  # noqa: N802
        return "a card"

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return f"GPU-{handle + 1}"

    def nvmlDeviceGetUtilizationRates(self, _: int) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=75)

    def nvmlDeviceGetMemoryInfo(self, _: int) -> Any:  # noqa: N802
        return SimpleNamespace(used=3 << 30, total=80 << 30)

    def nvmlDeviceGetTemperature(self, _: int, sensor: int) -> int:  # noqa: N802
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return 61

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        if handle == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return 345_500


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    stand_in = Nvml()
    monkeypatch.setattr(gpus, "pynvml", stand_in)
    return stand_in


def test_a_card_is_read_in_units_of_its_readings(nvml: Nvml) -> None:
    assert Gpus(["0"]).read() == [CARD]


def test_what_a_card_does_not_tell_is_left_out(nvml: Nvml) -> None:
    (reading,) = Gpus(["1"]).read()
    assert reading == {name: CARD[name] for name in CARD if name != "power_watts"} | {
        "uuid": "GPU-2"
    }
    assert WorkerStatus(name="w", gpus=[reading]).gpus[0].power_watts is None


@pytest.mark.parametrize(
    ("shown", "asked"), [(None, [0]), ("", [0]), ("2", [2]), ("GPU-7,1", ["GPU-7", 1])]
)
def test_the_cards_are_those_that_cuda_shows(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch, shown: str | None, asked: list[str | int]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    Gpus.of("cuda:0")
    assert nvml.asked == asked


def test_an_engine_on_the_cpu_has_none(nvml: Nvml) -> None:
    assert Gpus.of("cpu").read() == []
    assert nvml.asked == []


def test_without_a_driver_nothing_is_shown(
    monkeypatch: pytest.MonkeyPatch, nvml: Nvml, caplog: pytest.LogCaptureFixture
) -> None:
    """And the log says so once."""

    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(nvml, "nvmlInit", missing)
    caplog.set_level("INFO")
    cards = Gpus.of("cuda")
    assert cards.read() == cards.read() == []
    (line,) = caplog.messages
    assert "are not shown" in line


def test_a_card_that_is_gone_takes_no_worker_along(
    monkeypatch: pytest.MonkeyPatch, nvml: Nvml
) -> None:
    def lost(_: int) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    cards = Gpus(["0"])
    for name in ("Name", "UUID", "UtilizationRates", "MemoryInfo", "PowerUsage"):
        monkeypatch.setattr(nvml, f"nvmlDeviceGet{name}", lost)
    monkeypatch.setattr(nvml, "nvmlDeviceGetTemperature", lambda *_: lost(0))
    assert cards.read() == [{}]
