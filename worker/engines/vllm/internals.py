"""Every vLLM internal that is used as it is, one function each, with where it comes from.

Those that a forward of our own is put together from are in `parts`. Nothing else in the project
names vLLM's internals, so these are the pages to read when vLLM changes. What is needed has a
contract test (`tests/with_vllm/test_contract.py`); what not every vLLM has is asked for with a
default. What takes a `worker` runs in vLLM's worker process, where that is vLLM's own
(`vllm.v1.worker.gpu_worker.Worker`, or the CPU's). Read in vLLM 0.26.0, 0.32.0 and 0.33.0.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm.forward_context import set_forward_context
from vllm.v1.attention.backend import AttentionType, CommonAttentionMetadata

from worker.engines.tensors import common_name

#: Embeddings [tokens, hidden_size], positions int64 [tokens] and rows int64 [sequences] to normed
#: hidden states at these rows, [sequences, hidden_size].
HiddenAt = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class KVGroup:
    """Attention layers that share their metadata."""

    layers: tuple[str, ...]
    #: Makes the metadata. Our own: the live one may hold buffers that CUDA graphs point at.
    builder: Any
    #: Tokens in a block, as the attention kernels count them.
    block_size: int


def model_of(worker: Any) -> Any:
    """The deployed model: `forward(input_ids, positions, ..., inputs_embeds)`, `compute_logits`.

    Source: `get_model` of both model runners (`vllm.v1.worker.gpu_model_runner`,
    `vllm.v1.worker.gpu.model_runner`); the forward is compiled unless `enforce_eager`.
    """
    return worker.model_runner.get_model()


def inner_model(worker: Any) -> Any:
    """The deployed model without its head: decoder `layers` in order, and the final `norm`.

    Source: the causal models in `vllm.model_executor.models`, each with its `...Model`.
    """
    return model_of(worker).model


def device_of(worker: Any) -> torch.device:
    """The device of this rank.

    Source: `WorkerBase` in `vllm.v1.worker.worker_base`.
    """
    return torch.device(worker.device)


def directory_of(worker: Any) -> Path:
    """Where the model's files are.

    Source: `ModelConfig` in `vllm.config`; the engine gives it a directory.
    """
    return Path(worker.vllm_config.model_config.model)


def facts(worker: Any) -> dict[str, Any]:
    """What vLLM made of its options: plain values that may leave the process.

    Source: `vllm.config` (`VllmConfig` with its model, scheduler and parallel parts), and
    `attn_groups` of the model runners for the backend, as vLLM itself names it.
    """
    config, runner = worker.vllm_config, worker.model_runner
    model = config.model_config
    backends = {group.backend.get_name() for groups in runner.attn_groups for group in groups}
    return {
        "vocab_size": model.hf_text_config.vocab_size,
        "hidden_size": model.get_hidden_size(),
        "layers": model.hf_text_config.num_hidden_layers,
        "dtype": str(model.dtype).removeprefix("torch."),
        "max_model_len": model.max_model_len,
        "max_tokens": config.scheduler_config.max_num_batched_tokens,
        "quantization": model.quantization or "none",
        "kernels": kernels(worker) or ("unknown" if model.quantization else ""),
        "compiled": not model.enforce_eager,
        "tensor_parallel": config.parallel_config.tensor_parallel_size,
        "attention": "+".join(sorted(backends)),
        "runner": type(runner).__module__,
    }


def kernels(worker: Any) -> str:
    """What computes the quantized products, as vLLM names it; empty where it names nothing.

    Each gives other numbers: CUTLASS, DeepGEMM with or without scales that are powers of two
    (E8M0), Triton, Marlin, FlashInfer.

    Source: attributes of the quantization methods in `vllm.model_executor.layers.quantization`,
    `is_deep_gemm_e8m0_used` in `vllm.utils.deep_gemm`.
    """
    found = set()
    for module in model_of(worker).modules():
        # compressed-tensors keeps it with the layer.
        for method in (getattr(module, "quant_method", None), getattr(module, "scheme", None)):
            for attribute in ("fp8_linear", "kernel", "linear_kernel", "fp8_backend"):
                kernel = getattr(method, attribute, None)
                if kernel is not None:
                    found.add(kernel.name if isinstance(kernel, Enum) else type(kernel).__name__)
    if any("deepgemm" in name.lower().replace("_", "") for name in found):
        from vllm.utils.deep_gemm import is_deep_gemm_e8m0_used

        if is_deep_gemm_e8m0_used():
            found.add("E8M0")
    return "+".join(sorted(found))


def float8_layers(worker: Any) -> list[str]:
    """The layers that vLLM takes for float8 in the checkpoint, by the files' `common_name`.

    Source: `Fp8Config` and its methods in `vllm.model_executor.layers.quantization.fp8`, and
    `packed_modules_mapping` of the models: what is joined has several names.
    """
    if not getattr(worker.vllm_config.quant_config, "is_checkpoint_fp8_serialized", False):
        return []
    from vllm.model_executor.layers.quantization.fp8 import Fp8LinearMethod, Fp8MoEMethod

    model, found = model_of(worker), []
    for name, module in model.named_modules():
        if isinstance(getattr(module, "quant_method", None), Fp8LinearMethod | Fp8MoEMethod):
            parent, _, last = name.rpartition(".")
            joined = model.packed_modules_mapping.get(last, [last])
            found += [common_name(f"{parent}.{each}") for each in joined]
    return found


def kv_groups(worker: Any, block_table_width: int) -> list[KVGroup]:
    """The groups of attention layers, each with a metadata builder of its own.

    A builder is made as vLLM made the live one (same class, same spec, so the same block size as
    the kernels have); `block_table_width` is the blocks that a sequence has at most.

    Source: `AttentionGroup` in `vllm.v1.worker.utils`, `attn_groups` of the model runners,
    `AttentionMetadataBuilder` in `vllm.v1.attention.backend`.
    """
    found = []
    for group in (each for groups in worker.model_runner.attn_groups for each in groups):
        if getattr(group, "kernel_block_size", None) is not None:  # since 0.32
            raise NotImplementedError("packed KV caches with blocks smaller than their pages")
        live = group.get_metadata_builder(0)
        width = (
            {"block_table_width": block_table_width}
            if getattr(type(live), "requires_block_table_width", False)
            else {}
        )
        builder = type(live)(
            live.kv_cache_spec, group.layer_names, worker.vllm_config, worker.device, **width
        )
        found.append(KVGroup(tuple(group.layer_names), builder, live.kv_cache_spec.block_size))
    return found


def kv_layers(worker: Any) -> dict[str, Any]:
    """The attention layers by name; each reads its pages from its attribute `kv_cache`.

    Source: `CompilationConfig.static_forward_context` in `vllm.config.compilation`; who reads it is
    `get_attention_context` in `vllm.model_executor.layers.attention`. Raises
    `NotImplementedError` for layers that read pages which another layer wrote.
    """
    context = worker.vllm_config.compilation_config.static_forward_context
    names = [
        name
        for groups in worker.model_runner.attn_groups
        for group in groups
        for name in group.layer_names
    ]
    layers = {name: context[name] for name in names}
    for name, layer in layers.items():
        if layer.kv_sharing_target_layer_name:
            raise NotImplementedError(f"{name} shares the KV cache of another layer")
    return layers


def scratch_like(live: Tensor, live_blocks: int, blocks: int) -> Tensor:
    """Zeroed pages with the layout of `live` (of one layer, `live_blocks` blocks) but `blocks`.

    Layouts differ between backends and versions ([blocks, heads, tokens, 2 * width], ...), and
    logical order is not memory order; what they have in common is that one of the first two
    dimensions counts blocks. Sizes and the order of strides are taken from `live`.

    Source: `allocate_kv_cache` and its kin in the model runners.
    """
    dimension = next((i for i in (0, 1) if live.shape[i] == live_blocks), None)
    if dimension is None:
        raise NotImplementedError(f"a KV cache of shape {tuple(live.shape)}, {live_blocks} blocks")
    shape = [*live.shape]
    shape[dimension] = blocks
    # Outermost first; sorted is stable, so dimensions of equal stride keep their order.
    order = sorted(range(live.dim()), key=live.stride, reverse=True)
    pages = torch.zeros([shape[i] for i in order], dtype=live.dtype, device=live.device)
    return pages.permute([order.index(i) for i in range(live.dim())])


def live_blocks(worker: Any, group: KVGroup) -> int:
    """Blocks in the live cache of each layer of `group`, as the attention kernels count them.

    Source: `kv_cache_config` of the model runners (`vllm.v1.kv_cache_interface.KVCacheConfig`).
    """
    config = worker.model_runner.kv_cache_config
    spec = next(
        each.kv_cache_spec for each in config.kv_cache_groups if group.layers[0] in each.layer_names
    )
    return int(config.num_blocks * (spec.block_size // group.block_size))


def direct_attention(layers: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of each layer an attention over keys and values as they are computed, without any pages.

    It is the layer's own, taken for an encoder's, whose way this is; a window without a right
    side makes that causal. None if one of the layers has a backend, a kernel or a cache without
    this way: that of FlashAttention 4 for heads of 256 takes windows with pages only.

    Source: `FlashAttentionImpl` in `vllm.v1.attention.backends.flash_attn`, its `forward`,
    `_forward_encoder_attention` and `do_kv_cache_update`.
    """
    found = {}
    for name, layer in layers.items():
        impl = layer.impl
        if type(impl).__name__ != "FlashAttentionImpl" or impl.kv_cache_dtype != "auto":
            return None
        if getattr(impl, "fa4_hd256", False):
            return None
        found[name] = copy.copy(impl)
        found[name].attn_type = AttentionType.ENCODER_ONLY
        found[name].sliding_window = (impl.sliding_window[0], 0)
    return found


@contextmanager
def swapped(layers: Mapping[str, Any], attribute: str, values: Mapping[str, Any]) -> Iterator[None]:
    """Let `attribute` of each of `layers` be what `values` has for it, whatever happens in it.

    `kv_cache` are the pages, `impl` is the attention. Nothing else runs meanwhile: vLLM's worker
    process calls one method at a time.
    """
    live = {name: getattr(layer, attribute) for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            setattr(layer, attribute, values[name])
        yield
    finally:
        for name, layer in layers.items():
            setattr(layer, attribute, live[name])


def prefill_metadata(
    group: KVGroup, sequences: int, seq_len: int, device: Any
) -> tuple[Any, Tensor]:
    """Metadata and slot mapping of a causal prefill of `sequences` prompts, nothing cached.

    Each sequence has blocks of its own, from block 1 on (0 is vLLM's null block). Slots are
    int64 [sequences * seq_len]. All tensors are the caller's alone: no later call touches them.

    Source: `CommonAttentionMetadata` in `vllm.v1.attention.backend`, filled in as by
    `_build_attention_metadata` of the model runners.
    """
    tokens, each = sequences * seq_len, -(-seq_len // group.block_size)
    table = 1 + torch.arange(sequences * each, dtype=torch.int32, device=device)
    table = table.view(sequences, each)
    at = torch.arange(seq_len, device=device)
    slots = table[:, at // group.block_size].long() * group.block_size + at % group.block_size
    common = CommonAttentionMetadata(
        # Made there, not copied: a copy from pageable memory may wait for what runs there.
        query_start_loc=torch.arange(0, tokens + 1, seq_len, dtype=torch.int32, device=device),
        query_start_loc_cpu=torch.arange(0, tokens + 1, seq_len, dtype=torch.int32),
        seq_lens=torch.full((sequences,), seq_len, dtype=torch.int32, device=device),
        seq_lens_cpu_upper_bound=torch.full((sequences,), seq_len, dtype=torch.int32),
        num_reqs=sequences,
        num_actual_tokens=tokens,
        max_query_len=seq_len,
        max_seq_len=seq_len,
        block_table_tensor=table,
        slot_mapping=slots.reshape(-1),
        causal=True,
    )
    built = group.builder.build(common_prefix_len=0, common_attn_metadata=common)
    # FlashAttention 3 hands out a view of one buffer that its builder fills anew each time. On a
    # CPU the schedule is a structure with addresses in it, fresh each time: a copy of it crashes.
    for name, value in vars(built).items():
        if not isinstance(value, Tensor):
            continue
        if value.device.type != "cpu" or name != "scheduler_metadata":
            setattr(built, name, value.clone())
    return built, common.slot_mapping


def last_hidden(
    worker: Any,
    embeddings: Tensor,
    groups: Sequence[KVGroup],
    metadata: Sequence[tuple[Any, Tensor]],
    hidden_at: HiddenAt | None = None,
) -> Tensor:
    """Hidden states after the final norm at each sequence's last position.

    `embeddings` [sequences, seq_len, hidden_size] are overwritten: the eager forward adds its
    residuals in place. `metadata` is of each group. Returns [sequences, hidden_size]. `hidden_at`
    takes the place of vLLM's own forward.

    Source: `set_forward_context` in `vllm.forward_context`, and how `execute_model` of the
    model runners calls the model.
    """
    sequences, seq_len, _ = embeddings.shape
    device, tokens = embeddings.device, sequences * seq_len
    attention, slots = {}, {}
    for group, (built, mapping) in zip(groups, metadata, strict=True):
        attention.update(dict.fromkeys(group.layers, built))
        slots.update(dict.fromkeys(group.layers, mapping))
    positions = torch.arange(seq_len, device=device).repeat(sequences)
    last = torch.arange(seq_len - 1, tokens, seq_len, device=device)
    forward = hidden_at or partial(_whole, worker)
    with set_forward_context(attention, worker.vllm_config, num_tokens=tokens, slot_mapping=slots):
        return forward(embeddings.view(tokens, -1), positions, last)


def logits_of(worker: Any, hidden: Tensor) -> Tensor | None:
    """The model's own logits of normed hidden states [rows, hidden_size].

    Returns [rows, at least vocab_size], or None on a rank of a tensor parallel group that has none.

    Source: `compute_logits` of the causal models in `vllm.model_executor.models`.
    """
    logits: Tensor | None = model_of(worker).compute_logits(hidden)
    return logits


def _whole(worker: Any, embeddings: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
    """What vLLM's own forward gives for `rows`."""
    hidden: Tensor = model_of(worker)(
        input_ids=None,
        positions=positions,
        intermediate_tensors=None,
        inputs_embeds=embeddings,
    )
    return hidden[rows]


def import_engine() -> None:
    """Import what a process of vLLM's engine imports, without starting CUDA.

    Source: `vllm.v1.engine.core` and what it imports by name, as configured.
    """
    for name in ("engine.core", "executor.uniproc_executor", "worker.gpu_worker"):
        importlib.import_module(f"vllm.v1.{name}")


@contextmanager
def processes_from(context: Any) -> Iterator[None]:
    """Let vLLM take the process of its engine from `context`, of `multiprocessing`.

    Source: `CoreEngineProcManager` in `vllm.v1.engine.utils`.
    """
    from vllm.v1.engine import utils

    before = utils.get_mp_context
    utils.get_mp_context = lambda: context
    try:
        yield
    finally:
        utils.get_mp_context = before


def platform() -> tuple[str, int]:
    """The kind of device that the installed vLLM computes on here, and the bytes it has.

    `cuda`, `cpu`, ..., or an empty name where this vLLM finds no device of its kind. Does not
    start CUDA in this process.

    Source: `vllm.platforms.current_platform`.
    """
    from vllm.platforms import current_platform

    if current_platform.is_unspecified():
        return "", 0
    return current_platform.device_type, int(current_platform.get_device_total_memory())


def deep_gemm_instead_of_triton() -> bool:
    """Whether DeepGEMM can compute experts in float8 on a device where vLLM takes Triton: Hopper.

    It must be possible to import it, and none of vLLM's switches may be against it. Without scales
    that are powers of two vLLM would still take Triton for some numbers of tokens.

    Source: `is_deep_gemm_e8m0_used` in `vllm.utils.deep_gemm`, `select_fp8_moe_backend` in
    `vllm.model_executor.layers.fused_moe.oracle.fp8`, and the experts that it chooses from.
    """
    from vllm import envs
    from vllm.platforms import current_platform
    from vllm.utils.deep_gemm import is_deep_gemm_e8m0_used

    return bool(
        current_platform.is_device_capability(90)
        and envs.VLLM_MOE_USE_DEEP_GEMM
        and not envs.VLLM_BATCH_INVARIANT
        and is_deep_gemm_e8m0_used()
    )


async def openai_app(llm: Any, directory: str, name: str) -> Any:
    """The OpenAI-compatible application of vLLM over `llm`, with its model served as `name`.

    Source: `build_app` and `init_app_state` in `vllm.entrypoints.openai.api_server`, arguments
    as `vllm serve` has them (`vllm.entrypoints.cli.serve`, since what it takes them from moved).
    """
    from vllm.entrypoints.cli.serve import make_arg_parser
    from vllm.entrypoints.openai.api_server import build_app, init_app_state
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    args = parser.parse_args(["--model", directory, "--served-model-name", name])
    tasks = await llm.get_supported_tasks()
    app = build_app(args, tasks, llm.model_config)
    await init_app_state(llm, app.state, args, tasks)
    return app
