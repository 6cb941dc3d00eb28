"""How the GPUs of this worker are, as NVML has it: load, memory, temperature, power."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import pynvml

log = logging.getLogger(__name__)


class Gpus:
    """The GPUs that this process sees. Without a driver there are none, and nothing is read."""

    def __init__(self, names: Sequence[str]) -> None:
        """`names` are numbers as nvidia-smi has them, or UUIDs."""
        self._handles: list[Any] = []
        if not names:
            return
        try:
            pynvml.nvmlInit()
            self._handles = [_handle(name) for name in names]
        except pynvml.NVMLError as error:
            log.info("load, memory and temperature of the GPU are not shown: NVML: %s", error)

    @classmethod
    def of(cls, device: str) -> Gpus:
        """Those that an engine on `device` computes on: all that CUDA shows to this process."""
        if not device.startswith("cuda"):
            return cls([])
        return cls((os.environ.get("CUDA_VISIBLE_DEVICES") or "0").split(","))

    def read(self) -> list[dict[str, Any]]:
        """One `GpuReading` for each, as JSON has it; what a card does not tell is left out."""
        return [_read(handle) for handle in self._handles]


def _handle(name: str) -> Any:
    if name.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(name))
    return pynvml.nvmlDeviceGetHandleByUUID(name)


def _read(handle: Any) -> dict[str, Any]:
    readings: dict[str, Callable[[], Any]] = {
        "name": lambda: pynvml.nvmlDeviceGetName(handle),
        "uuid": lambda: pynvml.nvmlDeviceGetUUID(handle),
        "utilization": lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
        "memory_used_bytes": lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).used,
        "memory_total_bytes": lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).total,
        "temperature_celsius": lambda: pynvml.nvmlDeviceGetTemperature(
            handle, pynvml.NVML_TEMPERATURE_GPU
        ),
        "power_watts": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
    }
    found = {}
    for name, read in readings.items():
        try:
            found[name] = read()
        except pynvml.NVMLError:  # a part of a card has no power of its own, say
            continue
    return found
