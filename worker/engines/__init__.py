"""Engines: jobs in, distances out. `load_engine` picks and loads the one that is configured.

Importing this package is cheap: torch and its friends come with the engine that needs them.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import cast

from shared.errors import EngineError
from shared.settings import PREFIX, Settings
from worker.engines import checkpoint
from worker.engines.base import Engine, EngineInfo, Job, JobCancelled, Pending

__all__ = ["Engine", "EngineInfo", "Job", "JobCancelled", "Pending", "engine_of", "load_engine"]


#: What an engine has.
_MEMBERS = ("info", "busy_seconds", "submit", "ensure_alive", "close")
#: Settings that another engine would silently ignore.
_VLLM_ONLY = frozenset(
    {
        "gpu_memory_utilization",
        "max_model_len",
        "quantization",
        "serve_host",
        "serve_port",
        "tensor_parallel",
        "vllm_options",
    }
)


def load_engine(settings: Settings) -> Engine:
    """Load the engine of `settings`; takes as long as loading the model does.

    `module:factory` calls `factory(settings)`.
    Raises `EngineError` if there is no such engine or it can't load its model.
    """
    match engine_of(settings):
        case "transformers":
            return _load_transformers(settings)
        case "vllm":
            return _load_vllm(settings)
        case path:
            return _load_custom(path, settings)


def engine_of(settings: Settings) -> str:
    """`vllm`, `transformers` or `module:factory`.

    `auto` is vLLM where it is installed and has a GPU, else transformers, which runs anywhere.
    """
    if settings.engine != "auto":
        return settings.engine
    if settings.device not in ("auto", "cuda") or importlib.util.find_spec("vllm") is None:
        return "transformers"
    import torch

    return "vllm" if torch.cuda.is_available() else "transformers"


def _load_vllm(settings: Settings) -> Engine:
    from worker.engines.vllm.engine import VllmEngine

    return VllmEngine(settings)


def _load_transformers(settings: Settings) -> Engine:
    ignored = sorted(_VLLM_ONLY & settings.model_fields_set)
    if ignored:
        names = ", ".join(f"{PREFIX}{name.upper()}" for name in ignored)
        raise EngineError(f"{names}: only for vLLM; unset, or set POC_ENGINE=vllm")
    checkpoint.find(settings.model)  # before torch is imported, which takes seconds
    try:
        from worker.engines.transformers_engine import TransformersEngine
    except ImportError as error:
        raise EngineError(
            f"the transformers engine can't be imported ({error}); install torch, transformers "
            "and safetensors into this environment"
        ) from error
    return TransformersEngine(
        settings.model,
        dtype=settings.dtype,
        device=settings.device,
        gpu=settings.gpu,
        tile=settings.tile,
    )


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
            f"POC_ENGINE={path}: it gave a {type(engine).__name__}, not an engine, which has "
            f"{', '.join(missing)}; see worker/engines/base.py"
        )
    return cast(Engine, engine)
