"""Which module makes the random numbers of a device."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from worker import cpu_random, gpu_random


def generator_for(device: torch.device) -> Any:
    """The module that makes inputs and distances on `device`."""
    if device.type == "cpu":
        return cpu_random
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return gpu_random
    from worker import kernels

    return kernels
