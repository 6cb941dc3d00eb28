"""What vLLM is started with, and which of it is refused: without vLLM itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from qwen3_8b import CONFIG
from shared.errors import EngineError
from shared.settings import load_settings
from worker.engines.vllm import options as module
from worker.engines.vllm.installed import Device
from worker.engines.vllm.options import check_options, engine_arguments


@pytest.mark.parametrize(
    "options", [{"seed": 7}, {"linear_backend": "triton"}, {"moe_backend": "deep_gemm"}]
)
def test_an_option_of_the_operators(options: dict[str, Any]) -> None:
    settings = load_settings({}, engine="vllm", vllm_options=json.dumps(options))
    assert check_options(settings) == options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float32"}, "dtype is a setting; use POC_DTYPE"),
        ({"trust_remote_code": True}, "trust_remote_code can't be set; what can is .*block_size"),
        ({"max_num_batched_tokens": True}, "max_num_batched_tokens is no number of 64 or more"),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens is no number of 64 or more"),
        ({"max_num_seqs": "8"}, "max_num_seqs is no number of 1 or more"),
    ],
)
def test_options_that_are_not_the_operators(options: dict[str, Any], message: str) -> None:
    """Seen before vLLM is imported."""
    settings = load_settings({}, engine="vllm", vllm_options=json.dumps(options))
    with pytest.raises(EngineError, match=f"^POC_VLLM_OPTIONS: {message}"):
        check_options(settings)


def test_a_scheme_that_there_is_not() -> None:
    """Refused before minutes are spent on loading."""
    settings = load_settings({}, engine="vllm", scheme="artefact")
    with pytest.raises(EngineError, match="POC_SCHEME: there is no scheme 'artefact'; there are d"):
        check_options(settings)


#: Float8 with a scale for each block.
BLOCKS = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}


def experts_in(**quantization: Any) -> dict[str, Any]:
    """Fields of a config of experts in such blocks, but for what is given."""
    blocks = BLOCKS["quantization_config"] | quantization
    return {"quantization_config": blocks, "moe_intermediate_size": 768}


class TestArguments:
    """What vLLM is started with, seen without it."""

    @pytest.fixture
    def arguments(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
        """Of settings, for a tile."""
        vllm = ModuleType("vllm")
        vllm.AsyncEngineArgs = dict  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "vllm", vllm)

        def arguments(
            tile: int = 32,
            config: dict[str, Any] | None = None,
            dtype: str = "bfloat16",
            **more: Any,
        ) -> dict[str, Any]:
            model = SimpleNamespace(**vars(CONFIG), **(config or {}))
            settings = load_settings({}, engine="vllm", **more)
            options = check_options(settings)
            device = Device("cuda", 80 << 30, 2)
            given: dict[str, Any] = engine_arguments(
                settings, options, Path(), model, device, dtype, tile
            )
            return given

        return arguments

    def test_a_tile_has_the_budgets_that_it_needs(
        self, arguments: Callable[..., dict[str, Any]]
    ) -> None:
        """For the positions that most rounds have; what the operator set stays."""
        assert arguments(32)["max_num_batched_tokens"] == 8192
        large = arguments(256)
        assert (large["max_num_batched_tokens"], large["max_num_seqs"]) == (65_536, 256)
        mine = arguments(256, vllm_options='{"max_num_seqs": 300}')
        assert mine["max_num_seqs"] == 300

    def test_graphs_are_captured_for_requests_only(
        self, arguments: Callable[..., dict[str, Any]]
    ) -> None:
        """Rounds have their own; what the operator says of them counts."""
        assert arguments()["cudagraph_capture_sizes"] == [1]
        assert "cudagraph_capture_sizes" not in arguments(serve_port=8000)
        mine = arguments(vllm_options='{"max_cudagraph_capture_size": 8}')
        assert "cudagraph_capture_sizes" not in mine

    def test_float8_in_blocks_is_quantized_by_what_is_compiled(
        self, arguments: Callable[..., dict[str, Any]]
    ) -> None:
        """Unless the operator says how to compile."""
        passes = {"fuse_norm_quant": False, "fuse_act_quant": False}
        assert arguments(config=BLOCKS)["compilation_config"]["pass_config"] == passes
        tensors = {"quantization_config": {"quant_method": "fp8"}}
        assert "compilation_config" not in arguments(config=tensors)
        mine = arguments(config=BLOCKS, vllm_options='{"compilation_config": {"mode": 3}}')
        assert mine["compilation_config"] == {"mode": 3}

    @pytest.mark.parametrize(
        ("quantization", "more"),
        [
            ({}, {}),
            ({"modules_to_not_convert": ["model.layers.0.mlp.gate", None]}, {}),
            ({"ignored_layers": ["model.layers.0.mlp.shared_experts.up_proj"]}, {}),
            ({}, {"tensor_parallel": 3}),
        ],
        ids=["plain", "a whole router", "whole shared experts", "whole blocks"],
    )
    def test_experts_in_blocks_are_left_to_deep_gemm(
        self,
        arguments: Callable[..., dict[str, Any]],
        quantization: dict[str, Any],
        more: dict[str, Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Unless the operator says something else."""
        monkeypatch.setattr(module, "_deep_gemm_is_better", lambda: True)
        experts = experts_in(**quantization)
        assert arguments(config=experts, **more)["moe_backend"] == "deep_gemm"
        mine = arguments(config=experts, vllm_options='{"moe_backend": "triton"}')
        assert mine["moe_backend"] == "triton"

    @pytest.mark.parametrize(
        ("quantization", "more", "is_better"),
        [
            ({}, {}, False),
            ({}, {"dtype": "float16"}, True),
            ({}, {"tensor_parallel": 4}, True),
            ({"weight_block_size": [128, 64]}, {}, True),
            ({"weight_block_size": 128}, {}, True),
            ({"modules_to_not_convert": ["model.layers.0.mlp.experts"]}, {}, True),
            ({"ignored_layers": ["model.layers.0.mlp.experts.0.up_proj"]}, {}, True),
        ],
        ids=[
            *("no DeepGEMM", "float16", "parts of blocks", "other blocks", "no blocks"),
            *("experts left whole", "one left whole"),
        ],
    )
    def test_what_deep_gemm_can_not_compute_is_not_left_to_it(
        self,
        arguments: Callable[..., dict[str, Any]],
        quantization: dict[str, Any],
        more: dict[str, Any],
        is_better: bool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Else vLLM would refuse to start."""
        monkeypatch.setattr(module, "_deep_gemm_is_better", lambda: is_better)
        assert "moe_backend" not in arguments(config=experts_in(**quantization), **more)

    def test_dense_layers_are_left_to_vllm(
        self, arguments: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_deep_gemm_is_better", lambda: True)
        assert "moe_backend" not in arguments(config=BLOCKS)
