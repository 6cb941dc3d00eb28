"""The contract with vLLM: every name that `worker.engines.vllm` leans on is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from contract import names_of, sources

pytestmark = pytest.mark.vllm


RUNNER = {"get_model", "attn_groups", "kv_cache_config"}
#: Of `internals`, with the functions that need them.
INTERNALS = [
    ("v1/worker/worker_base.py", "WorkerBase", {"device", "vllm_config", "model_runner"}),
    # model_of, directory_of, facts, kv_groups, live_blocks
    ("v1/worker/gpu_model_runner.py", "GPUModelRunner", RUNNER),
    ("v1/worker/gpu/model_runner.py", "GPUModelRunner", RUNNER),
    (
        "config/model.py",
        "ModelConfig",
        {"hf_text_config", "get_hidden_size", "dtype", "max_model_len", "quantization"}
        | {"enforce_eager", "enable_prompt_embeds", "model"},
    ),
    ("config/scheduler.py", "SchedulerConfig", {"max_num_batched_tokens"}),
    ("config/parallel.py", "ParallelConfig", {"tensor_parallel_size", "worker_extension_cls"}),
    # kernels
    ("model_executor/layers/quantization/fp8.py", "Fp8LinearMethod", {"fp8_linear"}),
    ("model_executor/layers/quantization/fp8.py", "Fp8MoEMethod", {"fp8_backend"}),
    ("utils/deep_gemm.py", "", {"is_deep_gemm_e8m0_used"}),
    # float8_layers
    ("model_executor/layers/quantization/fp8.py", "Fp8Config", {"is_checkpoint_fp8_serialized"}),
    ("model_executor/models/qwen3_moe.py", "Qwen3MoeForCausalLM", {"packed_modules_mapping"}),
    ("config/vllm.py", "VllmConfig", {"quant_config"}),
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
        {"impl", "kv_cache", "kv_sharing_target_layer_name"},
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
    # deep_gemm_instead_of_triton
    ("platforms/interface.py", "Platform", {"is_device_capability"}),
    (
        "envs.py",
        "",
        {"VLLM_MOE_USE_DEEP_GEMM", "VLLM_DEEP_GEMM_WARMUP", "VLLM_BATCH_INVARIANT"},
    ),
    (
        "model_executor/layers/fused_moe/oracle/fp8.py",
        "_get_priority_backends",
        {"is_device_capability", "TRITON"},
    ),
    ("model_executor/layers/fused_moe/oracle/fp8.py", "map_fp8_backend", {"DEEPGEMM"}),
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
#: Of `parts`.
PARTS = [
    # own_layers
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
    # parts_of
    (
        "model_executor/layers/linear.py",
        "UnquantizedLinearMethod.apply",
        {"layer", "x", "bias", "weight", "VLLM_BATCH_INVARIANT"},
    ),
    ("model_executor/layers/activation.py", "", {"SiluAndMul"}),
    ("model_executor/models/mistral.py", "MistralDecoderLayer", {"ada_rms_norm_t_cond"}),
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
    ("model_executor/custom_op.py", "CustomOp.forward", {"_forward_method"}),
    # compiled
    ("config/compilation.py", "CompilationConfig", {"inductor_compile_config"}),
    ("ir/__init__.py", "", {"enable_torch_wrap"}),
    ("ir/op.py", "IrOp.__call__", {"_ENABLE_TORCH_WRAP", "_inner_call"}),
]


@pytest.mark.parametrize("source", sources(), ids=str)
@pytest.mark.parametrize(
    ("file", "where", "names"),
    [*INTERNALS, *PARTS],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_is_leaned_on_is_there(
    file: str, where: str, names: set[str] | list[str], source: Path
) -> None:
    """A name that is missing here breaks the engine: read the function that the list names."""
    assert set(names) - names_of(source / file, where) == set()
