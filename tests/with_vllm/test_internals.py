"""The contract with vLLM: every name of it that `worker.engines.vllm.internals` leans on is there.

Read from its source, so that a version for another machine can be checked, too: unpack its wheel
and name the folder that holds `vllm/` in VLLM_SOURCES (several with colons between them).
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from support import ROOT

pytestmark = pytest.mark.vllm


RUNNER = {"get_model", "attn_groups", "kv_cache_config"}
CONTRACTS = [
    ("v1/worker/worker_base.py", "WorkerBase", {"device", "vllm_config", "model_runner"}),
    # model_of, facts, kv_groups, live_blocks
    ("v1/worker/gpu_model_runner.py", "GPUModelRunner", RUNNER),
    ("v1/worker/gpu/model_runner.py", "GPUModelRunner", RUNNER),
    (
        "config/model.py",
        "ModelConfig",
        {"hf_text_config", "get_hidden_size", "dtype", "max_model_len", "quantization"}
        | {"enforce_eager", "enable_prompt_embeds"},
    ),
    ("config/scheduler.py", "SchedulerConfig", {"max_num_batched_tokens"}),
    ("config/parallel.py", "ParallelConfig", {"tensor_parallel_size", "worker_extension_cls"}),
    # kernels
    ("model_executor/layers/quantization/fp8.py", "Fp8LinearMethod", {"fp8_linear"}),
    ("model_executor/layers/quantization/fp8.py", "Fp8MoEMethod", {"fp8_backend"}),
    ("utils/deep_gemm.py", "", {"is_deep_gemm_e8m0_used"}),
    # kv_groups
    (
        "v1/worker/utils.py",
        "AttentionGroup",
        {"backend", "layer_names", "get_metadata_builder"},
    ),
    (
        "v1/attention/backend.py",
        "AttentionMetadataBuilder.__init__",
        ["self", "kv_cache_spec", "layer_names", "vllm_config", "device"],
    ),
    ("v1/attention/backend.py", "AttentionMetadataBuilder", {"kv_cache_spec"}),
    ("v1/attention/backend.py", "AttentionBackend", {"get_name"}),
    # kv_layers, swapped
    ("config/compilation.py", "CompilationConfig", {"static_forward_context"}),
    (
        "model_executor/layers/attention/attention.py",
        "Attention",
        {"kv_cache", "kv_sharing_target_layer_name"},
    ),
    ("model_executor/layers/attention/attention.py", "get_attention_context", {"kv_cache"}),
    # direct_attention
    (
        "v1/attention/backends/flash_attn.py",
        "FlashAttentionImpl",
        {"attn_type", "sliding_window", "kv_cache_dtype", "_forward_encoder_attention"},
    ),
    (
        "v1/attention/backends/flash_attn.py",
        "FlashAttentionImpl.do_kv_cache_update",
        {"attn_type", "ENCODER_ONLY"},
    ),
    ("v1/attention/backend.py", "AttentionType", {"ENCODER_ONLY"}),
    # live_blocks
    ("v1/kv_cache_interface.py", "KVCacheConfig", {"num_blocks", "kv_cache_groups"}),
    ("v1/kv_cache_interface.py", "KVCacheGroupSpec", {"layer_names", "kv_cache_spec"}),
    ("v1/kv_cache_interface.py", "KVCacheSpec", {"block_size"}),
    # prefill_metadata
    (
        "v1/attention/backend.py",
        "CommonAttentionMetadata",
        {"query_start_loc", "query_start_loc_cpu", "seq_lens", "seq_lens_cpu_upper_bound"}
        | {"num_reqs", "num_actual_tokens", "max_query_len", "max_seq_len", "causal"}
        | {"block_table_tensor", "slot_mapping"},
    ),
    (
        "v1/attention/backend.py",
        "AttentionMetadataBuilder.build",
        {"common_prefix_len", "common_attn_metadata"},
    ),
    # last_hidden
    (
        "forward_context.py",
        "set_forward_context",
        {"attn_metadata", "vllm_config", "num_tokens", "slot_mapping"},
    ),
    (
        "model_executor/models/qwen3.py",
        "Qwen3ForCausalLM.forward",
        {"input_ids", "positions", "intermediate_tensors", "inputs_embeds"},
    ),
    ("model_executor/models/qwen3.py", "Qwen3ForCausalLM.compute_logits", {"hidden_states"}),
    # inner_model, own_layers
    (
        "model_executor/models/qwen2.py",
        "Qwen2Model",
        {"layers", "norm", "input_ids", "positions", "intermediate_tensors", "inputs_embeds"},
    ),
    (
        "model_executor/models/llama.py",
        "LlamaModel",
        {"layers", "norm", "input_ids", "positions", "intermediate_tensors", "inputs_embeds"},
    ),
    # Turns
    (
        "model_executor/layers/rotary_embedding/base.py",
        "RotaryEmbedding.forward_native",
        {"positions", "_match_cos_sin_cache_dtype", "forward_static"},
    ),
    (
        "model_executor/layers/rotary_embedding/base.py",
        "RotaryEmbedding.forward_static",
        {"cos_sin_cache", "index_select"},
    ),
    # compiled
    ("config/compilation.py", "CompilationConfig", {"inductor_compile_config"}),
    ("ir/__init__.py", "", {"enable_torch_wrap"}),
    ("ir/op.py", "IrOp.__call__", {"_ENABLE_TORCH_WRAP", "_inner_call"}),
    # What its engine's process imports, and where that is started.
    ("v1/engine/core.py", "EngineCoreProc", {"run_engine_core"}),
    ("v1/executor/uniproc_executor.py", "", {"UniProcExecutor"}),
    ("v1/worker/gpu_worker.py", "", {"Worker"}),
    ("v1/engine/utils.py", "CoreEngineProcManager.__init__", {"get_mp_context", "Process"}),
    # platform
    (
        "platforms/interface.py",
        "Platform",
        {"is_unspecified", "device_type", "get_device_total_memory"},
    ),
    # openai_app
    ("entrypoints/openai/api_server.py", "", {"build_app", "init_app_state"}),
    ("entrypoints/cli/serve.py", "", {"make_arg_parser"}),
    ("utils/argparse_utils.py", "", {"FlexibleArgumentParser"}),
    # The public face that the engine itself uses.
    (
        "v1/engine/async_llm.py",
        "AsyncLLM",
        {"from_engine_args", "errored", "shutdown", "get_supported_tasks", "model_config"},
    ),
    ("v1/engine/async_llm.py", "AsyncLLM.collective_rpc", {"method", "args"}),
    (
        "engine/arg_utils.py",
        "EngineArgs",
        {"model", "served_model_name", "dtype", "quantization", "tensor_parallel_size"}
        | {"max_model_len", "max_num_batched_tokens", "gpu_memory_utilization"}
        | {"kv_cache_memory_bytes", "skip_tokenizer_init", "trust_remote_code"}
        | {"enable_prompt_embeds", "worker_extension_cls", "disable_log_stats"},
    ),
    ("__init__.py", "", {"AsyncEngineArgs", "AsyncLLMEngine"}),
    ("envs.py", "", {"VLLM_WORKER_MULTIPROC_METHOD"}),
]


def sources() -> list[Path]:
    """The installed vLLM, and what VLLM_SOURCES names."""
    spec = importlib.util.find_spec("vllm")
    installed = [Path(spec.origin).parent] if spec and spec.origin else []
    named = filter(None, os.environ.get("VLLM_SOURCES", "").split(":"))
    return [*installed, *(Path(each) / "vllm" for each in named)]


@functools.cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def names_of(file: Path, where: str) -> set[str]:
    """Of a module, a class or a function: what it defines, takes and sets."""
    node: ast.AST = _parsed(file)
    for part in filter(None, where.split(".")):
        node = next(
            each
            for each in ast.iter_child_nodes(node)
            if isinstance(each, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and each.name == part
        )
    found: set[str] = set()
    for each in ast.walk(node):
        match each:
            case ast.arg(arg=name) | ast.Name(id=name) | ast.Attribute(attr=name):
                found.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.ClassDef(name=name):
                found.add(name)
            case ast.ImportFrom(names=names):
                found.update(alias.asname or alias.name for alias in names)
            case _:
                pass
    return found


@pytest.mark.parametrize("source", sources(), ids=str)
@pytest.mark.parametrize(
    ("file", "where", "names"), CONTRACTS, ids=lambda each: each if isinstance(each, str) else ""
)
def test_what_is_leaned_on_is_there(
    file: str, where: str, names: set[str] | list[str], source: Path
) -> None:
    """A name that is missing here breaks the engine: read the function that the list names."""
    assert set(names) - names_of(source / file, where) == set()


#: What a plain decoder layer does with its residual, word by word.
ADDS = "hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)"


@pytest.mark.parametrize("source", sources(), ids=str)
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
def test_plain_layers_are_plain(name: str, source: Path) -> None:
    """`parts_of` puts other parts into them: all that they do must be done by these parts."""
    models = _parsed(source / f"model_executor/models/{name}.py")
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
def test_layers_read_their_pages_when_they_run(source: Path) -> None:
    """`kv_cache` is looked up in each call, so that what is swapped in counts."""
    text = (source / "model_executor/layers/attention/attention.py").read_text()
    assert "kv_cache = attn_layer.kv_cache\n" in text


class _OneBuffer:
    """Hands out a view of one buffer, as FlashAttention 3's builder does."""

    def __init__(self) -> None:
        self.schedule = torch.zeros(8, dtype=torch.int32)

    def build(self, common_prefix_len: int, common_attn_metadata: Any) -> Any:
        self.schedule[:] = common_attn_metadata.max_seq_len
        return SimpleNamespace(schedule=self.schedule[:4])


@pytest.mark.filterwarnings("ignore")
def test_metadata_stays_as_it_was_built() -> None:
    """Whatever is built later: a recorded forward points at it."""
    from worker.engines.vllm import internals as vllm_internals

    group = vllm_internals.KVGroup(("layer",), _OneBuffer(), block_size=16)
    built, slots = vllm_internals.prefill_metadata(group, 2, 40, "cpu")
    seen = built.schedule.clone(), slots.clone()
    vllm_internals.prefill_metadata(group, 4, 20, "cpu")
    assert torch.equal(built.schedule, seen[0])
    assert torch.equal(slots, seen[1])


@pytest.mark.filterwarnings("ignore")
def test_a_layer_of_another_kind_is_not_parted() -> None:
    """Whatever it has, and though it is derived from a plain one."""
    from vllm.model_executor.models.gemma3 import Gemma3DecoderLayer
    from vllm.model_executor.models.qwen3 import Qwen3DecoderLayer
    from vllm.model_executor.models.qwen3_moe import Qwen3MoeDecoderLayer

    from worker.engines.vllm import internals as vllm_internals

    class Derived(Qwen3DecoderLayer):  # type: ignore[misc]
        pass

    for kind in (Gemma3DecoderLayer, Qwen3MoeDecoderLayer, Derived):
        assert vllm_internals.parts_of(kind.__new__(kind), None) is None


def test_the_stages_of_the_time_line_are_there() -> None:
    """Given a name of ours that changed, benchmarks/timeline.py would be found broken on a GPU."""
    look = "import timeline_extension as t; [getattr(*stage) for stage in t.STAGES.values()]"
    paths = os.pathsep.join((str(ROOT), str(ROOT / "benchmarks")))
    env = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", look], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
