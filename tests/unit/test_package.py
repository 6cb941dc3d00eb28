"""What is packed is what a user of the archive needs."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packed = set(project["tool"]["hatch"]["build"]["targets"]["sdist"]["only-include"])
    assert {Path(each).parts[0] for each in tracked} == packed | ALWAYS | OURS
