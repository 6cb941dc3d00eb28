"""What `worker.engines.vllm.parts` leans on in the layers of vLLM, beyond names."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import parsed, sources

pytestmark = pytest.mark.vllm

#: What a plain decoder layer does with its residual, word by word.
ADDS = "hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)"


@pytest.mark.parametrize("source", sources(), ids=str)
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
def test_plain_layers_are_plain(name: str, source: Path) -> None:
    """`parts_of` puts other parts into them: all that they do must be done by these parts."""
    models = parsed(source / f"model_executor/models/{name}.py")
    kinds = {node.name: node for node in models.body if isinstance(node, ast.ClassDef)}
    layer = next(kinds[kind] for kind in kinds if kind.endswith("DecoderLayer"))
    forward = next(each for each in layer.body if getattr(each, "name", "") == "forward")
    *_, adds, mlp, last = [
        ast.unparse(each) for each in forward.body if not isinstance(each, ast.If)
    ]
    assert adds == ADDS
    assert mlp == "hidden_states = self.mlp(hidden_states)"
    assert last == "return (hidden_states, residual)"
    attention = next(kinds[kind] for kind in kinds if kind.endswith("Attention"))
    forward = next(each for each in attention.body if getattr(each, "name", "") == "forward")
    attends, projects, returns = map(ast.unparse, forward.body[-3:])
    assert attends == "attn_output = self.attn(q, k, v)"
    assert projects == "output, _ = self.o_proj(attn_output)"
    assert returns == "return output"


@pytest.mark.parametrize("source", sources(), ids=str)
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2"])
def test_mlps_are_plain(name: str, source: Path) -> None:
    """A product, its activation, a product: the first two may be one kernel."""
    models = parsed(source / f"model_executor/models/{name}.py")
    kinds = [node for node in models.body if isinstance(node, ast.ClassDef)]
    mlp = next(kind for kind in kinds if kind.name.endswith("MLP"))
    forward = next(each for each in mlp.body if getattr(each, "name", "") == "forward")
    widens, activates, narrows, returns = map(ast.unparse, forward.body)
    assert widens.endswith(", _ = self.gate_up_proj(x)")
    assert activates.startswith(("x = self.act_fn(", "x = maybe_fused_act_quant(self.act_fn, "))
    assert narrows == "x, _ = self.down_proj(x)"
    assert returns == "return x"


@pytest.mark.filterwarnings("ignore")
def test_a_layer_of_another_kind_is_not_parted() -> None:
    """Whatever it has, and though it is derived from a plain one."""
    from vllm.model_executor.models.gemma3 import Gemma3DecoderLayer
    from vllm.model_executor.models.qwen3 import Qwen3DecoderLayer
    from vllm.model_executor.models.qwen3_moe import Qwen3MoeDecoderLayer

    from worker.engines.vllm.parts import Turns, parts_of

    class Derived(Qwen3DecoderLayer):  # type: ignore[misc]
        pass

    for kind in (Gemma3DecoderLayer, Qwen3MoeDecoderLayer, Derived):
        assert parts_of(kind.__new__(kind), Turns(), fuses=False) is None


class OnGPU(torch.nn.Parameter):
    """A weight that says so."""

    is_cuda = True


@pytest.mark.parametrize(
    "change",
    ["", "bias", "act_fn", "quant_method", "weight", "VLLM_BATCH_INVARIANT"],
    ids=lambda change: change or "none",
)
def test_an_mlp_is_fused_if_it_is_plain(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a bias, with the one activation, on weights that the kernel is made for."""
    from vllm.model_executor.layers.activation import SiluAndMul
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    from worker.engines.vllm import gated
    from worker.engines.vllm.parts import _fused

    class Other(SiluAndMul):  # type: ignore[misc]
        pass

    class OtherMethod(UnquantizedLinearMethod):  # type: ignore[misc]
        pass

    monkeypatch.setattr(gated, "fits", lambda _: change != "weight")
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", str(int(change == "VLLM_BATCH_INVARIANT")))
    mlp = torch.nn.Module()
    wide = torch.nn.Module()
    wide.weight = OnGPU(torch.ones(4, 2))
    wide.bias = torch.nn.Parameter(torch.ones(4)) if change == "bias" else None
    method = OtherMethod if change == "quant_method" else UnquantizedLinearMethod
    wide.quant_method = method.__new__(method)
    activation = Other if change == "act_fn" else SiluAndMul
    mlp.act_fn = torch.nn.Module.__new__(activation)
    torch.nn.Module.__init__(mlp.act_fn)
    mlp.gate_up_proj, mlp.down_proj = wide, torch.nn.Linear(2, 2)
    fused: Any = _fused(mlp)
    if change:
        assert fused is None
    else:
        assert isinstance(fused.gate_up_proj, gated.GatedProjection)
        assert fused.gate_up_proj.weight is wide.weight
        assert fused.down_proj is mlp.down_proj
        assert mlp.gate_up_proj is wide
