"""A checkpoint's weights as transformers loads them, which is also how they are looked at."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from shared.errors import EngineError
from worker.engines import checkpoint
from worker.engines.checkpoint import first_line


def check(directory: Path, config: PretrainedConfig) -> None:
    """Raise `EngineError` unless all weights of `config` are there, in their shapes.

    For vLLM, which computes with whatever its memory holds where one is missing. Reads headers
    only. What is quantized is left to vLLM: transformers may lack what that takes.
    """
    if getattr(config, "quantization_config", None) is None:
        load(directory, config, "auto", torch.device("meta"))


def load(
    directory: Path, config: PretrainedConfig, dtype: str, device: torch.device
) -> PreTrainedModel:
    """The model in `directory`, ready to compute on `device`; on "meta" without its numbers.

    Raises `EngineError` for weights that can't be read, or that are not all those of `config`.
    """
    checkpoint.weight_files(directory)  # its messages say more than the library's
    disable_progress_bar()  # of no use in a log
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            device_map={"": device},  # straight to it: a large model need not fit in memory first
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        model = model.eval().requires_grad_(False)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise EngineError(
            f"{directory}: the weights do not fit on {device} ({first_line(error)}); "
            "use a smaller model or POC_DTYPE=bfloat16"
        ) from None
    except Exception as error:  # safetensors, shapes, disk: no common parent
        raise EngineError(
            f"{directory}: the weights can't be loaded ({first_line(error)}); "
            "download or make the model again"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        # The library fills them with fresh random numbers: distances, but of no model.
        raise EngineError(
            f"{directory}: {len(missing)} weights are missing, {missing[0]} the first; "
            "download or make the model again"
        )
    loaded: PreTrainedModel = model
    return loaded
