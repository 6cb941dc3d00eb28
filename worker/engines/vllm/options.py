"""What vLLM is started with: the operator's options, and those that rounds need."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shared.errors import EngineError
from shared.schemes import terms_of
from shared.settings import CHECK_LEN, Settings
from worker.children import forks_of
from worker.engines.checkpoint import first_line, longest
from worker.engines.vllm.installed import Device
from worker.engines.vllm.memory import DEFAULT_SEQUENCES, reserve_bytes, tokens_of

#: What a process imports that is then forked: into vLLM's engine, and to ask vLLM what would start
#: CUDA.
FORKED = f"{__package__}.forked"

#: Bytes of KV cache on a CPU, where the engine is for trying things out.
CPU_KV_CACHE = 1 << 30

#: What vLLM mixes into its worker.
_extension = f"{__package__}.extension.PoCWorkerExtension"

#: Options of vLLM that are settings here.
_SETTINGS = {
    "dtype": "POC_DTYPE",
    "gpu_memory_utilization": "POC_GPU_MEMORY_UTILIZATION",
    "max_model_len": "POC_MAX_MODEL_LEN",
    "model": "POC_MODEL",
    "quantization": "POC_QUANTIZATION",
    "tensor_parallel_size": "POC_TENSOR_PARALLEL",
}
#: Further options that an operator may choose. Any other might change the model behind its
#: fingerprint, its KV cache, which processes there are, or what the memory is reckoned with; or it
#: holds a secret, where all of these are shown to everybody.
_OPTIONS = frozenset(
    {
        "async_scheduling", "block_size", "compilation_config", "cudagraph_capture_sizes",
        "disable_cascade_attn", "disable_custom_all_reduce", "disable_log_stats",
        "enable_chunked_prefill", "enable_log_requests", "enable_prefix_caching", "enforce_eager",
        "generation_config", "linear_backend", "long_prefill_token_threshold",
        "max_cudagraph_capture_size", "max_logprobs", "max_num_batched_tokens", "max_num_seqs",
        "moe_backend", "num_gpu_blocks_override", "optimization_level",
        "override_generation_config", "reasoning_parser", "safetensors_load_strategy",
        "scheduling_policy", "seed", "structured_outputs_config", "tokenizer", "tokenizer_mode",
        "use_tqdm_on_load",
    }
)  # fmt: skip


#: For weights in float8 with a scale for each block. vLLM's own kernels that quantize along with a
#: norm or an activation are slower than what it compiles without them (docs/benchmarks.md).
_UNFUSED = {
    "custom_ops": ["none"],
    "pass_config": {"fuse_norm_quant": False, "fuse_act_quant": False},
}

#: What says which graphs vLLM captures.
_CAPTURES = {"cudagraph_capture_sizes", "max_cudagraph_capture_size", "compilation_config"}


@contextmanager
def extended_by(name: str) -> Iterator[None]:
    """Load engines with another extension, for measurements and tests: a class of ours that is one.

    Holds for the whole process while it lasts. vLLM's process imports the class by `name`.
    """
    global _extension
    before, _extension = _extension, name
    try:
        yield
    finally:
        _extension = before


def _float8_options(config: Any, dtype: str, ranks: int) -> dict[str, Any]:
    """For weights in float8 with a scale for each block: what was measured as the fastest."""
    quantization = getattr(config, "quantization_config", None)
    if not isinstance(quantization, dict) or quantization.get("quant_method") != "fp8":
        return {}
    block = quantization.get("weight_block_size")
    if not block:
        return {}
    options: dict[str, Any] = {"compilation_config": _UNFUSED}
    experts = getattr(config, "moe_intermediate_size", 0)
    # As vLLM reads them: in this order.
    whole = quantization.get("ignored_layers") or quantization.get("modules_to_not_convert") or ()
    if (
        experts
        # vLLM refuses to start with what DeepGEMM can't compute, once it is asked for.
        and dtype == "bfloat16"
        and block == [128, 128]
        and not (experts // ranks % 128 or config.hidden_size % 128)
        and not any(".experts" in str(name) for name in whole)
        and _deep_gemm_is_better()
    ):
        options["moe_backend"] = "deep_gemm"
    return options


def _deep_gemm_is_better() -> bool:
    """What vLLM says in a process of its own: to ask imports DeepGEMM, and that starts CUDA."""
    from worker.engines.vllm.internals import deep_gemm_instead_of_triton

    try:
        with ProcessPoolExecutor(1, mp_context=forks_of(FORKED)) as pool:
            return pool.submit(deep_gemm_instead_of_triton).result()
    except BrokenProcessPool:
        return False  # what can't be imported can't compute
    except ValueError as error:
        raise EngineError(
            f"one of vLLM's variables (VLLM_...) is no number ({error}); its switches are 0 or 1"
        ) from None


def check_options(settings: Settings) -> dict[str, Any]:
    """Those of `settings.vllm_options`.

    Raises `EngineError` for one that can't be set, and for a scheme that there is not.
    """
    try:
        terms_of(settings.scheme)
    except ValueError as error:
        raise EngineError(f"POC_SCHEME: {error}") from None
    given = settings.vllm_options or {}
    for name in given:
        if name in _SETTINGS:
            raise EngineError(f"POC_VLLM_OPTIONS: {name} is a setting; use {_SETTINGS[name]}")
        if name not in _OPTIONS:
            known = ", ".join(sorted(_OPTIONS))
            raise EngineError(f"POC_VLLM_OPTIONS: {name} can't be set; what can is {known}")
    for name, least in (("max_num_batched_tokens", CHECK_LEN), ("max_num_seqs", 1)):
        if name in given and (type(given[name]) is not int or given[name] < least):
            raise EngineError(f"POC_VLLM_OPTIONS: {name} is no number of {least} or more")
    return given


def engine_arguments(
    settings: Settings,
    options: dict[str, Any],
    directory: Path,
    config: Any,
    device: Device,
    dtype: str,
    tile: int,
) -> Any:
    """The `AsyncEngineArgs` of vLLM, with room on the device for jobs of `tile` sequences."""
    budgets: dict[str, Any] = {"max_num_batched_tokens": tokens_of(tile)}
    if tile > DEFAULT_SEQUENCES:
        budgets["max_num_seqs"] = tile
    if settings.serve_port is None and not options.keys() & _CAPTURES:
        budgets["cudagraph_capture_sizes"] = [1]  # vLLM's graphs are for the steps of requests
    budgets |= _float8_options(config, dtype, settings.tensor_parallel)
    budgets |= options
    reserve = reserve_bytes(
        config,
        tile=tile,
        tokens=budgets["max_num_batched_tokens"],
        ranks=settings.tensor_parallel,
        width=device.width,
    )
    share = settings.gpu_memory_utilization - reserve / device.total
    if device.kind == "cuda" and share <= 0:
        raise EngineError(
            f"POC_GPU_MEMORY_UTILIZATION={settings.gpu_memory_utilization:g}: jobs alone need "
            f"{reserve >> 20} MiB of {device.total >> 20}; lower POC_TILE, or "
            "max_num_batched_tokens in POC_VLLM_OPTIONS"
        )
    memory = (
        {"gpu_memory_utilization": share}
        if device.kind == "cuda"
        else {"kv_cache_memory_bytes": CPU_KV_CACHE}
    )
    # Of its own accord vLLM would multiply them by a factor of the rotary positions.
    limit = longest(config)
    max_model_len = settings.max_model_len or limit
    if max_model_len > limit:
        is_another = (
            "beyond its original length this model (longrope) is another one for each engine"
            if limit < config.max_position_embeddings
            else "the model has no more"
        )
        raise EngineError(f"POC_MAX_MODEL_LEN={max_model_len}: set {limit} or less; {is_another}")
    from vllm import AsyncEngineArgs

    try:
        return AsyncEngineArgs(
            **{
                "disable_log_stats": settings.serve_port is None,
                **memory,
                **budgets,
            },
            model=str(directory),
            served_model_name=str(settings.model),
            dtype=dtype,
            quantization=settings.quantization,
            tensor_parallel_size=settings.tensor_parallel,
            max_model_len=max_model_len,
            # Of use to requests alone, and an odd one is no reason not to compute rounds.
            generation_config="vllm" if settings.serve_port is None else "auto",
            skip_tokenizer_init=settings.serve_port is None,
            trust_remote_code=False,
            runner="generate",  # whatever files beside the model say that it is good for
            # Those that are hashed: auto prefers what Mistral's own formats are called.
            config_format="hf",
            load_format="safetensors",
            # Without it the compiled forward takes token ids only.
            enable_prompt_embeds=True,
            worker_extension_cls=_extension,
        )
    except Exception as error:
        raise EngineError(f"POC_VLLM_OPTIONS: vLLM refuses them ({cause_of(error)})") from error


def cause_of(error: BaseException) -> str:
    """What went wrong, in one line, without the frame that vLLM puts around it."""
    if isinstance(error, ValidationError):  # its first line only counts what is wrong
        return "; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors())
    return first_line(error).removeprefix("Exception: ")
