"""What the vLLM engine refuses: with a message, at once, and without a process left behind."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file, save_file
from small import settings_of

from shared.errors import EngineError
from worker.engines.vllm.engine import VllmEngine
from worker.tools.make_model import make_model

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(300),
]


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A Qwen3 checkpoint of its own, to be written to."""
    return make_model(tmp_path / "model", head_dim=32, vocab_size=160, max_seq_len=256)


def stays(process: psutil.Process) -> bool:
    """Whether it is there until this process ends: what vLLM's are forks of, and what clears up."""
    command = " ".join(process.cmdline())
    return "multiprocessing.forkserver" in command or "resource_tracker" in command


def refusal(*args: Any, **more: Any) -> str:
    """Why the engine does not start; no process of it may be left."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with pytest.raises(EngineError) as caught:
        VllmEngine(settings_of(*args, **more))
    left = [
        process
        for process in psutil.Process().children(recursive=True)
        if process.pid not in before and not stays(process)
    ]
    assert left == []
    return str(caught.value)


def edit_config(directory: Path, **changes: Any) -> None:
    """Change the checkpoint's config."""
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2_moe"}, "'qwen2_moe' is not supported; use a model of"),
        ({"architectures": ["Qwen3Model"]}, "has no logits head"),
        (
            {"quantization_config": {"quant_method": "fp8", "kv_cache_scheme": {"num_bits": 8}}},
            "asks for a quantized KV cache",
        ),
    ],
)
def test_a_model_of_the_wrong_kind(changes: dict[str, Any], message: str, model_dir: Path) -> None:
    """Seen in its config, before anything is started."""
    edit_config(model_dir, **changes)
    assert message in refusal(model_dir)


@pytest.mark.parametrize("lost", ["q_proj", "mlp.down_proj", "embed_tokens"])
def test_a_weight_that_is_missing(lost: str, model_dir: Path) -> None:
    """It would compute with what its memory happens to hold."""
    file = model_dir / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if lost not in k}, file)
    assert re.search(r"[12] weights are missing, .*" + lost, refusal(model_dir))


def test_weights_of_other_shapes(model_dir: Path) -> None:
    """Seen before a process is started."""
    edit_config(model_dir, intermediate_size=48)
    assert "the weights can't be loaded" in refusal(model_dir)


def test_half_a_file(model_dir: Path) -> None:
    """As an interrupted download leaves it."""
    file = model_dir / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "it ends in the middle of a tensor" in refusal(model_dir)


def add(directory: Path, **tensors: Any) -> None:
    """Add tensors to a checkpoint, or put them in the place of others."""
    file = directory / "model.safetensors"
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file(load_file(file) | named, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "name",
    [
        "model__layers__0__mlp__down_proj__weight_scale",
        "model__layers__0__self_attn__o_proj__bias",
        "model__layers__7__input_layernorm__weight",
    ],
)
def test_tensors_that_one_engine_passes_over(name: str, model_dir: Path) -> None:
    """As the other engine refuses them, before a process is started."""
    import torch

    add(model_dir, **{name: torch.zeros(8)})
    assert "no place in the model" in refusal(model_dir)


FP8 = {"quantization_config": {"quant_method": "fp8"}}


def test_a_layer_too_many_of_a_quantized_model(model_dir: Path) -> None:
    """How its other tensors are called is up to the method, so they are left to vLLM."""
    import torch

    edit_config(model_dir, **FP8)
    add(model_dir, model__layers__7__input_layernorm__weight=torch.zeros(8))
    assert "no place in the model" in refusal(model_dir)


@pytest.mark.parametrize("quantization", [{}, FP8])
def test_a_head_of_its_own_in_a_tied_model(quantization: dict[str, Any], model_dir: Path) -> None:
    """Versions of vLLM take one or the other."""
    edit_config(model_dir, tie_word_embeddings=True, **quantization)
    assert "ties the head to the embedding" in refusal(model_dir)


def test_weights_whose_scales_lie_beside_them(model_dir: Path) -> None:
    """Given float8 that no config explains."""
    import torch

    name = "model.layers.0.mlp.down_proj.weight"
    plain = load_file(model_dir / "model.safetensors")[name]
    add(model_dir, **{name.replace(".", "__"): plain.to(torch.float8_e4m3fn)})
    assert "are quantized, model.layers.0.mlp.down_proj.weight (F8_E4M3)" in refusal(model_dir)


def test_an_adapter(model_dir: Path) -> None:
    (model_dir / "adapter_config.json").write_text("{}")
    assert "holds an adapter" in refusal(model_dir)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "rotary positions of type 'dynamic'"),
        (
            {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.3},
            "rotary positions with attention_factor",
        ),
    ],
)
def test_rotary_positions_that_engines_differ_in(
    rope: dict[str, Any], message: str, model_dir: Path
) -> None:
    edit_config(model_dir, rope_parameters={"rope_theta": 10_000.0, **rope})
    assert message in refusal(model_dir)


def test_more_positions_than_the_original_ones(model_dir: Path) -> None:
    """VLLM would take the long factors for short sequences as well."""
    factors = [1.0] * 16
    rope = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors}
    edit_config(
        model_dir,
        rope_parameters={
            "rope_theta": 10_000.0,
            "original_max_position_embeddings": 64,
            **rope,
        },
    )
    message = refusal(model_dir)
    assert "POC_MAX_MODEL_LEN=128: set 64 or less; beyond its original length" in message


def test_weights_that_vllm_cant_load(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processes start, fail and are gone, whatever was not seen before."""
    import torch

    monkeypatch.setattr("worker.engines.weights.check", lambda *_: None)
    save_file({"nothing": torch.zeros(1)}, model_dir / "model.safetensors")
    assert "vLLM can't start" in refusal(model_dir)


def test_more_positions_than_the_model_has(model_dir: Path) -> None:
    """VLLM would say so half a minute later, and with a way around it."""
    message = refusal(model_dir, max_model_len=4096)
    assert "POC_MAX_MODEL_LEN=4096: set 256 or less; the model has no more" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float32"}, "dtype is a setting; use POC_DTYPE"),
        ({"trust_remote_code": True}, "trust_remote_code can't be set"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype can't be set"),
        ({"hf_token": "secret"}, "hf_token can't be set; what can is .*block_size"),
        ({"max_num_batched_tokens": "1024"}, "max_num_batched_tokens is no number"),
        ({"compilation_config": {"no_such_option": 1}}, "POC_VLLM_OPTIONS: vLLM refuses them"),
    ],
)
def test_options_that_are_not_the_operators(
    options: dict[str, Any], message: str, model_dir: Path
) -> None:
    """Ours, unknown, or refused by vLLM itself."""
    assert re.search(message, refusal(model_dir, options))


def test_a_gpu_with_a_build_for_a_cpu(model_dir: Path) -> None:
    """It would be ignored."""
    assert "POC_GPU=0: the installed vLLM computes on the CPU" in refusal(model_dir, gpu="0")


def test_a_device_that_this_vllm_has_not(model_dir: Path) -> None:
    """The build for a CPU computes on a CPU."""
    assert "POC_DEVICE=cuda: " in refusal(model_dir, device="cuda")


def test_a_build_for_a_gpu_without_one(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What vLLM makes of a machine where it finds no device of its kind."""
    monkeypatch.setattr("worker.engines.vllm.internals.platform", lambda: ("", 0))
    assert "this vLLM sees no GPU" in refusal(model_dir)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "vLLM is not installed, and 0.26 up to, not including, 0.34 is supported; "),
        (("vllm", "0.25.1"), "vLLM 0.25.1 is not supported, 0.26 up to, not including, 0.34 is"),
        (("vllm", "0.34.0rc1"), "vLLM 0.34.0rc1 is not supported"),
    ],
)
def test_a_version_that_is_not_supported(
    found: Any, message: str, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything of it is imported."""
    monkeypatch.setattr("worker.engines.vllm.installed.distribution", lambda: found)
    assert message in refusal(model_dir)


def test_serving_without_a_tokenizer(checkpoint: Callable[[str], Path]) -> None:
    """It could not read a request."""
    assert "has no tokenizer" in refusal(checkpoint("qwen3"), serve_port=0)


def test_serving_on_a_port_that_is_taken(model_dir: Path) -> None:
    """Seen before minutes are spent on loading."""
    (model_dir / "tokenizer.json").write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"POC_SERVE_PORT={port}: can't listen" in refusal(model_dir, serve_port=port)
