"""The contract with vLLM: every name that `worker.engines.vllm.internals` leans on is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from contract import names_of, sources

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
    # inner_model
    ("model_executor/models/qwen2.py", "Qwen2Model", {"layers", "norm"}),
    ("model_executor/models/llama.py", "LlamaModel", {"layers", "norm"}),
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


@pytest.mark.parametrize("source", sources(), ids=str)
@pytest.mark.parametrize(
    ("file", "where", "names"), CONTRACTS, ids=lambda each: each if isinstance(each, str) else ""
)
def test_what_is_leaned_on_is_there(
    file: str, where: str, names: set[str] | list[str], source: Path
) -> None:
    """A name that is missing here breaks the engine: read the function that the list names."""
    assert set(names) - names_of(source / file, where) == set()


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


def test_the_stages_of_the_time_line_are_there() -> None:
    """Given a name of ours that changed, benchmarks/timeline.py would be found broken on a GPU."""
    look = "import timeline_extension as t; [getattr(*stage) for stage in t.STAGES.values()]"
    paths = os.pathsep.join((str(ROOT), str(ROOT / "benchmarks")))
    env = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", look], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
