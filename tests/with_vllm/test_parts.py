"""What `worker.engines.vllm.parts` leans on in the layers of vLLM, beyond names."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
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
        assert parts_of(kind.__new__(kind), Turns()) is None
