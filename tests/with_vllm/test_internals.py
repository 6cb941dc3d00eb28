"""What `worker.engines.vllm.internals` leans on in vLLM, beyond names."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from contract import sources

from shared.errors import EngineError
from support import ROOT
from worker.engines.vllm import options

pytestmark = pytest.mark.vllm

Answers = Callable[[Exception], None]


@pytest.mark.parametrize("source", sources(), ids=str)
@pytest.mark.parametrize(
    "looked_up",
    [
        "kv_cache = attn_layer.kv_cache\n",
        "attn_layer.impl.do_kv_cache_update(",
        "_ = get_attention_context(layer_name)\n\n    self.impl.forward(\n        self,\n",
    ],
    ids=["pages", "impl of a write", "impl of a read"],
)
def test_layers_look_up_what_is_swapped_when_they_run(looked_up: str, source: Path) -> None:
    """Both attributes count in each call, so that live pages are neither read nor written."""
    text = (source / "model_executor/layers/attention/attention.py").read_text()
    assert looked_up in text


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


class CutlassKernel: ...


class DeepGemmKernel: ...


class Backend(Enum):
    DEEPGEMM = 1
    TRITON = 2


def model_with(*methods: tuple[str, Any]) -> Any:
    """A worker whose model has layers that are quantized so; each names the attribute it is in."""
    layers = [SimpleNamespace(**{name: method}) for name, method in methods]
    return worker_of(SimpleNamespace(modules=lambda: [SimpleNamespace(), *layers]))


def worker_of(model: Any) -> Any:
    """VLLM's worker, as far as it is looked at here."""
    return SimpleNamespace(model_runner=SimpleNamespace(get_model=lambda: model))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("methods", "e8m0", "says"),
    [
        ([], True, ""),
        ([("quant_method", SimpleNamespace())], True, ""),
        (
            [("quant_method", SimpleNamespace(fp8_linear=CutlassKernel()))] * 2,
            True,
            "CutlassKernel",
        ),
        ([("scheme", SimpleNamespace(kernel=CutlassKernel()))], False, "CutlassKernel"),
        (
            [
                ("quant_method", SimpleNamespace(fp8_backend=Backend.TRITON)),
                ("quant_method", SimpleNamespace(fp8_linear=CutlassKernel())),
            ],
            False,
            "CutlassKernel+TRITON",
        ),
        ([("quant_method", SimpleNamespace(fp8_linear=DeepGemmKernel()))], False, "DeepGemmKernel"),
        (
            [("quant_method", SimpleNamespace(fp8_linear=DeepGemmKernel()))],
            True,
            "DeepGemmKernel+E8M0",
        ),
        ([("quant_method", SimpleNamespace(fp8_backend=Backend.DEEPGEMM))], True, "DEEPGEMM+E8M0"),
    ],
)
def test_the_kernels_of_quantized_products_are_named(
    methods: list[Any], e8m0: bool, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each family once, and of DeepGEMM whether its scales are powers of two: it moves numbers."""
    from worker.engines.vllm import internals

    monkeypatch.setattr("vllm.utils.deep_gemm.is_deep_gemm_e8m0_used", lambda: e8m0)
    assert internals.kernels(model_with(*methods)) == says


@pytest.mark.parametrize(
    ("is_hopper", "e8m0", "switch", "expected"),
    [
        (True, True, {}, True),
        (False, True, {}, False),
        (True, False, {}, False),
        (True, True, {"VLLM_MOE_USE_DEEP_GEMM": "0"}, False),
        (True, True, {"VLLM_BATCH_INVARIANT": "1"}, False),
    ],
    ids=["Hopper", "another card", "not there", "switched off", "batch invariant"],
)
def test_where_experts_are_left_to_deep_gemm(
    *,
    is_hopper: bool,
    e8m0: bool,
    switch: dict[str, str],
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vllm.platforms import current_platform

    from worker.engines.vllm import internals

    kind = type(current_platform)
    monkeypatch.setattr(kind, "is_device_capability", lambda *_: is_hopper)
    monkeypatch.setattr("vllm.utils.deep_gemm.is_deep_gemm_e8m0_used", lambda: e8m0)
    for name, value in switch.items():
        monkeypatch.setenv(name, value)
    assert internals.deep_gemm_instead_of_triton() is expected


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Lets the process that is asked for DeepGEMM raise."""

    def answers(error: Exception) -> None:
        def submit(*_: Any) -> Any:
            raise error

        monkeypatch.setattr(options.ProcessPoolExecutor, "submit", submit)

    return answers


def test_deep_gemm_is_asked_for_in_another_process() -> None:
    """Since its import starts CUDA; here there is none."""
    assert options._deep_gemm_is_better() is False


def test_what_dies_of_the_import_of_deep_gemm_does_without(answers: Answers) -> None:
    answers(BrokenProcessPool())
    assert options._deep_gemm_is_better() is False


def test_a_switch_of_vllms_that_is_no_number_is_said(answers: Answers) -> None:
    answers(ValueError("'off'"))
    with pytest.raises(EngineError, match=r"VLLM_.* \('off'\)"):
        options._deep_gemm_is_better()


@pytest.mark.parametrize("serialized", [True, False])
def test_layers_that_vllm_takes_for_float8_are_named_as_the_files_name_them(
    serialized: bool,
) -> None:
    """What is joined by each of its names, experts by one; nothing where vLLM makes float8."""
    from vllm.model_executor.layers.quantization.fp8 import Fp8LinearMethod, Fp8MoEMethod

    from worker.engines.vllm import internals

    methods = {
        "qkv_proj": Fp8LinearMethod, "o_proj": Fp8LinearMethod, "experts": Fp8MoEMethod, "gate": str
    }  # fmt: skip
    layer = torch.nn.Module()
    for name, method in methods.items():
        part = torch.nn.Module()
        part.quant_method = object.__new__(method) if method is not str else ""
        layer.add_module(name, part)
    model = torch.nn.ModuleDict({"layer": layer})
    model.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
    worker = worker_of(model)
    config = SimpleNamespace(is_checkpoint_fp8_serialized=serialized)
    worker.vllm_config = SimpleNamespace(quant_config=config)
    expected = ["q_proj", "k_proj", "v_proj", "o_proj", "experts"] if serialized else []
    assert internals.float8_layers(worker) == [f"layer.{each}" for each in expected]


class FlashAttentionImpl:
    """What `direct_attention` looks at in the attention of a layer."""

    def __init__(self, kv_cache_dtype: str = "auto", *, fa4_hd256: bool = False) -> None:
        self.kv_cache_dtype, self.fa4_hd256 = kv_cache_dtype, fa4_hd256
        self.attn_type, self.sliding_window = "decoder", (7, 0)


class PagedImpl(FlashAttentionImpl):
    """Another backend's."""


class TestDirectAttention:
    """Keys and values as they are computed, where that is known to be possible."""

    def test_it_is_the_layers_own_with_its_window(self) -> None:
        """The deployed one stays as it is."""
        from worker.engines.vllm import internals

        deployed = FlashAttentionImpl()
        found = internals.direct_attention({"l": SimpleNamespace(impl=deployed)})
        assert found is not None
        assert (found["l"].attn_type, found["l"].sliding_window) == ("encoder_only", (7, 0))
        assert deployed.attn_type == "decoder"

    @pytest.mark.parametrize(
        "other",
        [PagedImpl(), FlashAttentionImpl("fp8"), FlashAttentionImpl(fa4_hd256=True)],
        ids=["backend", "cache", "kernel"],
    )
    def test_one_layer_without_this_way_leaves_all_to_pages(
        self, other: FlashAttentionImpl
    ) -> None:
        from worker.engines.vllm import internals

        layers = {"a": SimpleNamespace(impl=FlashAttentionImpl())}
        assert internals.direct_attention(layers | {"b": SimpleNamespace(impl=other)}) is None
