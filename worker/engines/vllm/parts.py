"""A deployed model's layers, taken apart and put together again for a forward of our own.

This page and `internals` are the only ones that know how vLLM's modules are made, and contract
tests hold them to it (`tests/with_vllm/test_contract.py`). What it makes are shallow copies on the
deployed weights, and they run in vLLM's worker process: `worker` is as in `internals`. Which
forwards are made of it, `forwards` says. Read in vLLM 0.26.0, 0.32.0 and 0.33.0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import mark_dynamic
from vllm.ir import enable_torch_wrap

from worker.engines.vllm import internals
from worker.schemes.layers import twin

#: Embeddings [tokens, hidden_size] and positions int64 [tokens] to what the last layer gives:
#: hidden states and the residual that is to be added to them, both [tokens, hidden_size].
Layers = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

#: Tokens that kernels are chosen for, whatever the tile: what they sum must not depend on it.
_USUAL_ROWS = 32_768


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
    inner = internals.inner_model(worker)
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
    #: The layer itself, or its twin with a fused MLP, for `after_attention`.
    layer: Any


def parts_of(layer: Any, turns: Turns, *, fuses: bool) -> Parts | None:
    """The parts of a layer; None if it is of an unknown kind. `turns` takes its positions in.

    With `fuses` the first half of its MLP is one kernel; None if it can't be.

    Source: the layers named above, in `vllm.model_executor.models`.
    """
    kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
    if kind.removeprefix("vllm.model_executor.models.") not in _PLAIN_LAYERS:
        return None
    if getattr(layer, "ada_rms_norm_t_cond", None) is not None:  # Mistral's, for audio
        return None
    if fuses:
        mlp = _fused(layer.mlp)
        if mlp is None:
            return None
        layer = twin(layer, mlp=mlp)
    rotary = turns.of(layer.self_attn.rotary_emb)
    stops = {"attn": _AsThree(), "o_proj": _NoProjection(), "rotary_emb": rotary}
    before = twin(
        layer,
        self_attn=twin(layer.self_attn, **stops),
        post_attention_layernorm=AsTwo(),
        mlp=nn.Identity(),
    )
    return Parts(before, layer.self_attn.attn, layer)


def _fused(mlp: Any) -> nn.Module | None:
    """The same with its first product and its activation in one kernel; None if it can't be.

    Source: `forward` of the `...MLP` classes beside the layers, `UnquantizedLinearMethod` in
    `vllm.model_executor.layers.linear`.
    """
    from vllm import envs
    from vllm.model_executor.layers.activation import SiluAndMul
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    wide = mlp.gate_up_proj
    if not wide.weight.is_cuda:  # nor need there be a Triton
        return None
    from worker.engines.vllm.gated import GatedProjection, fits

    if (
        type(mlp.act_fn) is not SiluAndMul
        or type(wide.quant_method) is not UnquantizedLinearMethod
        or wide.bias is not None
        or envs.VLLM_BATCH_INVARIANT
        or not fits(wide.weight)
    ):
        return None
    made: nn.Module = twin(mlp, gate_up_proj=GatedProjection(wide.weight), act_fn=nn.Identity())
    return made


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
