"""Every vLLM internal that this project touches, one function each, with where it comes from.

Nothing else in the project names them, so this is the page to read when vLLM changes; each has a
contract test (`tests/with_vllm/test_internals.py`). All but the last four functions run in vLLM's
worker process, where `worker` is vLLM's own (`vllm.v1.worker.gpu_worker.Worker`, or the CPU's).
Read in vLLM 0.26.0, 0.32.0 and 0.33.0.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import mark_dynamic
from vllm.forward_context import set_forward_context
from vllm.ir import enable_torch_wrap
from vllm.v1.attention.backend import AttentionType, CommonAttentionMetadata

from worker.schemes.layers import twin

#: Embeddings [tokens, hidden_size] and positions int64 [tokens] to what the last layer gives:
#: hidden states and the residual that is to be added to them, both [tokens, hidden_size].
Layers = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

#: The same, and rows int64 [sequences], to normed hidden states there, [sequences, hidden_size].
HiddenAt = Callable[[Tensor, Tensor, Tensor], Tensor]


#: Tokens that kernels are chosen for, whatever the tile: what they sum must not depend on it.
_USUAL_ROWS = 32_768


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
        "kernels": kernels(worker),
        "compiled": not model.enforce_eager,
        "tensor_parallel": config.parallel_config.tensor_parallel_size,
        "attention": "+".join(sorted(backends)),
        "runner": type(runner).__module__,
    }


def kernels(worker: Any) -> str:
    """What computes the quantized products, as vLLM names it; empty where nothing is quantized.

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
    side makes that causal. None if one of the layers has a backend or a cache without this way.

    Source: `FlashAttentionImpl` in `vllm.v1.attention.backends.flash_attn`, its `forward`,
    `_forward_encoder_attention` and `do_kv_cache_update`.
    """
    found = {}
    for name, layer in layers.items():
        impl = layer.impl
        if type(impl).__name__ != "FlashAttentionImpl" or impl.kv_cache_dtype != "auto":
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


def own_layers(worker: Any, wrap: Callable[[int, Any], nn.Module]) -> Layers:
    """A compiled forward of our own on the deployed weights, up to the final norm.

    Its layers are what `wrap` gives for the index and the module of each deployed one: that module
    itself, or another one of the same face. The deployed model stays as it is, and so do the
    graphs that vLLM made of it: ours is a shallow copy. It is called as the model is, within
    `set_forward_context`, and compiles at its first call. `wrap` may give a last layer whose two
    values are others: they come out as they are.

    Source: `forward` of the `...Model` classes; `support_torch_compile` in
    `vllm.compilation.decorators` takes the place of their `__call__` alone.
    """
    inner = inner_model(worker)
    layers = nn.ModuleList([wrap(index, layer) for index, layer in enumerate(inner.layers)])
    own = twin(inner, layers=layers, norm=_AsOne())

    # A function of our own: compiled code is kept with the function that was compiled. With vLLM's
    # there may be some without any guards, and a call with our model would be given that.
    def forward(embeddings: Tensor, positions: Tensor) -> Any:
        return type(inner).forward(
            own,
            input_ids=None,
            positions=positions,
            intermediate_tensors=None,
            inputs_embeds=embeddings,
        )

    return compiled(worker, forward)


def compiled(
    worker: Any, function: Callable[..., Any], *, dynamic: bool = True
) -> Callable[..., Any]:
    """`function` compiled as one graph, as vLLM has its pieces compiled; as it is if it has none.

    With `dynamic` its tensors may have any number of rows, and kernels are chosen for many.

    Source: `inductor_compile_config` of `CompilationConfig` in `vllm.config.compilation`;
    `enable_torch_wrap` in `vllm.ir`: without that wrap the compiler sees into vLLM's norms, as a
    pass of vLLM's own compiler lets it.
    """
    if worker.vllm_config.model_config.enforce_eager:
        return function
    options = dict(worker.vllm_config.compilation_config.inductor_compile_config)
    # vLLM turns it off for passes of its own. Without it attention's output would be copied.
    options.pop("enable_auto_functionalized_v2", None)
    run = torch.compile(function, fullgraph=True, dynamic=False, options=options)

    def call(*args: Any) -> Any:
        for each in args:
            if dynamic and isinstance(each, Tensor):
                mark_dynamic(each, 0, hint_override=_USUAL_ROWS)
        with enable_torch_wrap(False):
            return run(*args)

    return call


class _AsOne(nn.Module):
    """In a final norm's place: hidden states and residual as they come, as one value."""

    def forward(self, hidden: Tensor, residual: Tensor) -> tuple[tuple[Tensor, Tensor], None]:
        return (hidden, residual), None


class AsTwo(nn.Module):
    """In a norm's place: hidden states and residual as they come."""

    def forward(self, hidden: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Both."""
        return hidden, residual


class _NoProjection(nn.Module):
    """In a linear layer's place: what comes, and no bias."""

    def forward(self, values: Tensor) -> tuple[Tensor, None]:
        return values, None


#: Decoder layers of the plain kind: a norm, attention with its `o_proj`, a norm that adds the
#: residual (`post_attention_layernorm`), `mlp`. Each position is by itself from `o_proj` on.
_PLAIN_LAYERS = frozenset(
    {
        "llama.LlamaDecoderLayer",  # Phi-3 as well
        "mistral.MistralDecoderLayer",
        "qwen2.Qwen2DecoderLayer",
        "qwen3.Qwen3DecoderLayer",
    }
)


@dataclass(frozen=True, slots=True)
class Parts:
    """A decoder layer, parted at its attention: what each position does by itself, and what not."""

    #: With the face of a layer: positions, hidden states and residual to (q, k, v) and a residual.
    before: nn.Module
    #: Of q, k and v: [tokens, heads * head_dim].
    attend: nn.Module
    #: The layer itself, for `after_attention`.
    layer: Any


def parts_of(layer: Any, rotary: nn.Module) -> Parts | None:
    """The parts of a layer; None if it is of an unknown kind. `rotary` takes its positions in.

    Source: the layers named above, in `vllm.model_executor.models`.
    """
    kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
    if kind.removeprefix("vllm.model_executor.models.") not in _PLAIN_LAYERS:
        return None
    if getattr(layer, "ada_rms_norm_t_cond", None) is not None:  # Mistral's, for audio
        return None
    stops = {"attn": _AsThree(), "o_proj": _NoProjection(), "rotary_emb": rotary}
    before = twin(
        layer,
        self_attn=twin(layer.self_attn, **stops),
        post_attention_layernorm=AsTwo(),
        mlp=nn.Identity(),
    )
    return Parts(before, layer.self_attn.attn, layer)


def after_attention(layer: Any, attended: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer does behind its attention, for any rows: hidden states and residual.

    Source: as `parts_of`.
    """
    hidden, _ = layer.self_attn.o_proj(attended)
    hidden, residual = layer.post_attention_layernorm(hidden, residual)
    return layer.mlp(hidden), residual


class _AsThree(nn.Module):
    """In an attention's place: its inputs."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return q, k, v


class Turns:
    """Rotary embeddings that look up the turns of their positions once for all layers.

    A compiler that finds the look-up in each layer fuses it into slower kernels.

    Source: `RotaryEmbedding` in `vllm.model_executor.layers.rotary_embedding.base`: its
    `forward_native` selects rows of what `_match_cos_sin_cache_dtype` gives.
    """

    def __init__(self) -> None:
        self._made: dict[int, Any] = {}

    def of(self, rotary: Any) -> Any:
        """What takes the place of `rotary`; itself, if it is of another kind."""
        from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

        if type(rotary).forward_native is not RotaryEmbedding.forward_native:
            return rotary
        if id(rotary) not in self._made:
            kind = type("Turned", (type(rotary),), {"_match_cos_sin_cache_dtype": _rows})
            turned: Any = twin(rotary, kind)
            turned._forward_method = turned.forward_native  # noqa: SLF001 - which CustomOp bound
            self._made[id(rotary)] = turned
        return self._made[id(rotary)]

    def look_up(self, positions: Tensor, dtype: torch.dtype) -> None:
        """For the next forward."""
        for each in self._made.values():
            rows = each.cos_sin_cache.to(dtype).index_select(0, positions)
            mark_dynamic(rows, 0, hint_override=_USUAL_ROWS)
            each.poc_rows = rows


class _Rows:
    """Stands in for a table from which all rows were selected."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def index_select(self, _: int, __: Tensor) -> Tensor:
        return self.rows


def _rows(self: Any, _: Tensor) -> _Rows:
    return _Rows(self.poc_rows)


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
