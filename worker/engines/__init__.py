"""Engines: jobs in, proofs out. `load_engine` picks and loads the one that is configured.

Importing this package is cheap: torch and its friends come with the engine that needs them.
"""

from __future__ import annotations

import ctypes
import importlib
from types import ModuleType
from typing import cast

from shared.errors import EngineError
from shared.settings import PREFIX, Settings
from worker.engines.base import Engine, EngineInfo, JobCancelled, Pending
from worker.job import Job

__all__ = [
    "Engine",
    "EngineInfo",
    "Job",
    "JobCancelled",
    "Pending",
    "engine_of",
    "load_engine",
    "module_of",
]

#: The engines that come with us. `auto` takes the first whose module finds that it `fits`, else the
#: last. What else an engine has is in its own file: `load`, `ARCHITECTURES`, and for the doctor
#: `examine` and `needs_gpu`. A setting that is an engine's own says so in `shared.settings`.
BUILT_IN = {
    "vllm": f"{__name__}.vllm.engine",
    "transformers": f"{__name__}.transformers_engine",
}

#: What an engine has.
_MEMBERS = ("info", "busy_seconds", "submit", "ensure_alive", "close")


def load_engine(settings: Settings) -> Engine:
    """Load the engine of `settings`; takes as long as loading the model does.

    `module:factory` calls `factory(settings)`.
    Raises `EngineError` if there is no such engine or it can't load its model.
    """
    if ":" in settings.engine:
        return _load_custom(settings.engine, settings)
    if settings.gpu is not None:
        _ensure_driver(settings.gpu)
    name = engine_of(settings)
    ignored = sorted(settings.of_other_engines(name) & settings.model_fields_set)
    if ignored:
        names = ", ".join(f"{PREFIX}{each.upper()}" for each in ignored)
        owner = settings.engine_of_field(ignored[0])
        raise EngineError(f"{names}: only for {owner}; unset, or set POC_ENGINE={owner}")
    return cast(Engine, module_of(name).load(settings))


def engine_of(settings: Settings) -> str:
    """The name of a built-in engine, or `module:factory`. Raises `EngineError` for another name."""
    name = settings.engine
    if name == "auto":
        *preferred, fallback = BUILT_IN
        return next((each for each in preferred if module_of(each).fits(settings)), fallback)
    if ":" not in name and name not in BUILT_IN:
        raise EngineError(
            f"POC_ENGINE={name}: there is no such engine; choose auto, {', '.join(BUILT_IN)}, or "
            "module:factory for one of your own"
        )
    return name


def module_of(name: str) -> ModuleType:
    """The module of a built-in engine, which can be read without the libraries of the engine."""
    return importlib.import_module(BUILT_IN[name])


def _ensure_driver(gpu: str) -> None:
    """Refuse a GPU where there can be none, before seconds are spent on importing torch."""
    try:
        ctypes.CDLL("libcuda.so.1")  # which does not start CUDA
    except OSError as error:
        raise EngineError(
            f"POC_GPU={gpu}: there is no NVIDIA driver here ({error}); install it, or unset "
            "POC_GPU to compute without a GPU"
        ) from None


def _load_custom(path: str, settings: Settings) -> Engine:
    module_name, _, factory_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise EngineError(
            f"POC_ENGINE={path}: can't import {module_name!r} ({error}); "
            "give module:factory of a module on the Python path"
        ) from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise EngineError(
            f"POC_ENGINE={path}: {module_name!r} has no callable {factory_name!r}; "
            "it must take the settings and return an engine"
        )
    try:
        engine = factory(settings)
    except TypeError as error:
        raise EngineError(
            f"POC_ENGINE={path}: it can't be called with the settings ({error})"
        ) from error
    if missing := [name for name in _MEMBERS if not hasattr(engine, name)]:
        raise EngineError(
            f"POC_ENGINE={path}: it gave no engine but {type(engine).__name__}; an engine has "
            f"{', '.join(missing)}; see worker/engines/base.py"
        )
    return cast(Engine, engine)
