"""A checkpoint's weights as transformers loads them, which is also how they are looked at."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils.logging import disable_progress_bar

from shared.errors import EngineError
from worker.engines import checkpoint, tensors
from worker.engines.checkpoint import first_line

#: Attention by architecture, where it is another than torch's own: that passes over a soft cap.
_ATTENTION = {"gemma2": "eager"}


def check(directory: Path, config: PretrainedConfig) -> None:
    """Raise `EngineError` unless all weights of `config` are there, in their shapes, and no others.

    For vLLM, which computes with whatever its memory holds where one is missing. Reads headers
    only. Of what is quantized only the number of layers is looked at, and that weights in float8
    have scales: how its other tensors are called is up to the method.
    """
    if checkpoint.quantization_of(directory, config) is None:
        load(directory, config, "auto", torch.device("meta"))
        return
    found = tensors.read(checkpoint.weight_files(directory))
    tensors.check_tied(directory, found, tied=config.tie_word_embeddings)
    tensors.check_scales(directory, found)
    layers = ((name, re.match(r"model\.layers\.(\d+)\.", name)) for name in found)
    tensors.check_used(
        directory,
        (name for name, layer in layers if layer and int(layer[1]) >= config.num_hidden_layers),
    )


def load(
    directory: Path, config: PretrainedConfig, dtype: str, device: torch.device
) -> PreTrainedModel:
    """The model in `directory`, ready to compute on `device`; on "meta" without its numbers.

    Raises `EngineError` for weights that can't be read, or that are not all those of `config`.
    """
    found = tensors.read(checkpoint.weight_files(directory))
    tensors.check_names(directory, found)
    tensors.check_types(directory, found)
    tensors.check_tied(directory, found, tied=config.tie_word_embeddings)
    config.return_dict = True  # how it answers is ours to say
    disable_progress_bar()  # of no use in a log
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            device_map={"": device},  # straight to it: a large model need not fit in memory first
            use_safetensors=True,
            trust_remote_code=False,
            # Whatever the config says: it may name code of a hub, or kernels of other numbers.
            attn_implementation=_ATTENTION.get(config.model_type, "sdpa"),
            # Nothing is generated here: what a file says of that can't matter.
            generation_config=GenerationConfig(),
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
    tensors.check_used(directory, report["unexpected_keys"])
    missing = sorted(report["missing_keys"])
    if missing:
        # The library fills them with fresh random numbers: distances, but of no model.
        raise EngineError(
            f"{directory}: {len(missing)} weights are missing, {missing[0]} the first; "
            "download or make the model again"
        )
    loaded: PreTrainedModel = model
    return loaded
