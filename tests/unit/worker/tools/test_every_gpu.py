"""Which GPUs there are, and what can't be had on each of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import ConfigError
from shared.settings import load_settings
from worker.queue.app import pin
from worker.tools.every_gpu import Gpu, find_gpus, run_every_gpu


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only program on the PATH, once it is written."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path / "nvidia-smi"


def write(smi: Path, *lines: str, status: int = 0) -> None:
    """An nvidia-smi that says this."""
    quoted = "\n".join(lines)
    smi.write_text(f"#!/bin/sh\nif test \"$*\" = -L; then echo '{quoted}'; fi\nexit {status}\n")
    smi.chmod(0o755)


def test_gpus_are_those_that_nvidia_smi_lists(smi: Path) -> None:
    write(
        smi,
        "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0a1b-2c)",
        "GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-3d4e-5f)",
    )
    assert find_gpus() == [Gpu("gpu0", "GPU-0a1b-2c"), Gpu("gpu1", "GPU-3d4e-5f")]


def test_a_gpu_in_mig_mode_is_its_parts(smi: Path) -> None:
    """CUDA can't use the whole of it."""
    write(
        smi,
        "GPU 0: NVIDIA A100 (UUID: GPU-0)",
        "  MIG 3g.20gb     Device  0: (UUID: MIG-a)",
        "  MIG 3g.20gb     Device  1: (UUID: MIG-b)",
        "GPU 1: NVIDIA A100 (UUID: GPU-1)",
    )
    found = [Gpu("gpu0-mig0", "MIG-a"), Gpu("gpu0-mig1", "MIG-b"), Gpu("gpu1", "GPU-1")]
    assert find_gpus() == found


@pytest.mark.parametrize(
    ("said", "status", "reason"),
    [
        (None, 0, "there is no nvidia-smi here"),
        ("No devices found.", 0, "nvidia-smi lists none"),
        ("couldn't reach the driver.", 9, "nvidia-smi fails: couldn't reach the driver;"),
        ("", 9, "nvidia-smi fails: status 9;"),
    ],
)
def test_without_a_gpu_one_sentence_says_why(
    smi: Path, said: str | None, status: int, reason: str
) -> None:
    """And what to do."""
    if said is not None:
        write(smi, said.replace("'", "'\\''"), status=status)
    with pytest.raises(ConfigError) as refused:
        find_gpus()
    assert str(refused.value).startswith("POC_GPU=all: no GPU was found: ")
    assert reason in str(refused.value)
    assert "leave it out to compute on the CPU" in str(refused.value)


@pytest.mark.parametrize("setting", [{"tensor_parallel": "2"}, {"device": "cpu"}])
def test_what_only_one_worker_can_have_is_refused(setting: dict[str, str]) -> None:
    """Before any worker is started."""
    ((name, value),) = setting.items()
    with pytest.raises(ConfigError, match=f"^POC_{name.upper()}={value} can't be with POC_GPU=all"):
        run_every_gpu(load_settings({}, gpu="all", **setting), {})


def test_a_single_worker_is_no_worker_for_all() -> None:
    """Such as one of Celery's own command line, which starts no others."""
    with pytest.raises(ConfigError, match="POC_GPU=all is for `poc worker`"):
        pin(load_settings({}, gpu="all"))
