"""Checkpoints in float8, with a scale for each block of weights, by kernels that are asked for."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from driver import Driver
from sizes import ARTIFACT, CONFIGS, SEQ_LEN, check_batches, job, l2
from torch import Tensor

from benchmarks.block_fp8 import BLOCK, parts, quantized, write
from plain_artifacts import PlainModel
from shared.errors import EngineError
from vectors import encoded

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(500),
]

NONCES = 64


class Kind(NamedTuple):
    """An architecture, the kernels that are asked for, and what the profile calls them."""

    architecture: str
    options: dict[str, str]
    kernels: str


KINDS = {
    "dense": Kind("qwen3", {"linear_backend": "cutlass"}, "CutlassFp8BlockScaledMMKernel"),
    "experts": Kind(
        "qwen3_moe",
        {"linear_backend": "triton", "moe_backend": "triton"},
        "TRITON+TritonFp8BlockScaledMMKernel",
    ),
    "experts by default": Kind("qwen3_moe", {}, ""),
}
#: How far artifacts are from exact ones on average, at most. With a router that chooses anything it
#: would be 0.08.
APART = 0.05


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """One after the other."""
    return KINDS[request.param]


@pytest.fixture(scope="module")
def model(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In float8; in `exact` beside it what its numbers are, in float32."""
    directory = tmp_path_factory.mktemp("float8")
    made = written(kind.architecture, directory / "float8").float()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            for each, part in parts(name, weight):
                if each.endswith("proj.weight"):
                    part.copy_(_seen_by_kernels(part))
    made.save_pretrained(directory / "exact")
    return directory / "float8"


def written(architecture: str, directory: Path) -> Any:
    """A random model in bfloat16, of which a checkpoint in float8 is written."""
    config = CONFIGS[architecture]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    write(made.state_dict(), config, directory)
    return made


def _seen_by_kernels(weight: Tensor) -> Tensor:
    small, scales = quantized(weight)
    wide = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return small.float() * wide[: len(weight), : weight.shape[1]]


@pytest.fixture(scope="module")
def driver(load: Callable[..., Driver], kind: Kind, model: Path) -> Driver:
    """An engine that is made ready for artifacts."""
    return load(model, kind.options, tile="32", scheme="artifact", gpu_memory_utilization=0.2)


def test_the_profile_names_the_kernels(driver: Driver, kind: Kind) -> None:
    profile = driver.engine.info.profile
    assert profile["quantization"] == "fp8"
    if kind.kernels:
        assert profile["kernels"] == kind.kernels
    else:
        from worker.engines.vllm.internals import deep_gemm_instead_of_triton

        experts = "DEEPGEMM" if deep_gemm_instead_of_triton() else "TRITON"
        assert experts in profile["kernels"].split("+")


@pytest.mark.parametrize("scheme", [{}, ARTIFACT], ids=["distance", "artifact"])
def test_a_nonce_does_not_feel_its_batch(driver: Driver, scheme: dict[str, Any]) -> None:
    together = driver.engine.submit(job(*range(33), **scheme)).result()
    check_batches(driver, together, **scheme)


def test_artifacts_are_those_of_the_same_weights_but_for_noise(
    driver: Driver, kind: Kind, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Products round what they multiply to float8; vectors of another block lie far away."""
    ours = driver.engine.submit(job(*range(NONCES), **ARTIFACT)).result()
    elsewhere = driver.engine.submit(job(*range(NONCES), **ARTIFACT, block_hash="other")).result()
    exact = PlainModel(model.with_name("exact")).vectors("b", "k", range(NONCES), SEQ_LEN)
    apart = l2(ours, [encoded(each) for each in exact])
    with capsys.disabled():
        mean, largest = statistics.mean(apart), max(apart)
        kernels = driver.engine.info.profile["kernels"]
        print(f"\n{kernels} / float32: L2 {mean:.3g}, largest {largest:.3g}")
    assert mean < APART
    assert statistics.mean(l2(ours, elsewhere)) > 1.0


def test_a_router_that_is_said_to_be_quantized_is_refused(
    load: Callable[..., Driver], tmp_path: Path
) -> None:
    """By itself vLLM serves it, with experts chosen by a scale that there is not."""
    written("qwen3_moe", tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    del fields["quantization_config"]["modules_to_not_convert"]
    (tmp_path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(EngineError, match=r"weights of .*mlp\.gate are in float8, and in"):
        load(tmp_path, {"enforce_eager": True}, tile="32", gpu_memory_utilization=0.2)
