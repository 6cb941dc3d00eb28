"""Packs `shared` and `worker` into a wheel as `poc_worker.shared` and `poc_worker.worker`.

By their own names, which are those of the source tree, they would take the place of another
project's packages in the environment that they are installed in, or give theirs to a directory
that is called so. An editable install leaves them as they are.
"""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "poc_worker"
SOURCES = ("shared", "worker", "celeryconfig.py")

#: How one module of ours imports another; tests/functional/test_wheel.py sees that there is no
#: other way.
IMPORT = re.compile(r"^(\s*from )(shared|worker)\b", re.MULTILINE)


def as_packed(code: str) -> str:
    """The code of a module as the wheel has it."""
    return IMPORT.sub(rf"\1{PACKAGE}.\2", code)


class OnePackage(BuildHookInterface):  # type: ignore[type-arg]
    """The hook that hatchling finds in this file."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Copy everything into a directory that becomes the package."""
        if version == "editable":
            return
        self._directory = TemporaryDirectory()
        package = Path(self._directory.name)
        (package / "__init__.py").write_text(f'"""{self.metadata.core.description}."""\n')
        for path in _files(Path(self.root)):
            target = package / path.relative_to(self.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".py":
                target.write_text(as_packed(path.read_text(encoding="utf-8")), encoding="utf-8")
            else:
                target.write_bytes(path.read_bytes())
        build_data["force_include"][str(package)] = PACKAGE
        scripts = self.metadata.core.scripts
        scripts.update({name: f"{PACKAGE}.{entry}" for name, entry in scripts.items()})

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the copy."""
        if version != "editable":
            self._directory.cleanup()


def _files(root: Path) -> list[Path]:
    found = [path for name in SOURCES for path in (root / name, *(root / name).rglob("*"))]
    return sorted(path for path in found if path.is_file() and path.suffix != ".pyc")
