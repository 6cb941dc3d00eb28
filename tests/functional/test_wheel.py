"""The wheel, installed where others have packages that are called as ours in the source tree."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from hatch_build import PACKAGE, as_packed
from shared.client import PoCClient
from shared.settings import Settings
from shared.store import Store
from support import ROOT, clean_environment, running, wait_until

pytestmark = pytest.mark.functional

THEIRS = 'raise ImportError("this is another project")\n'


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As it is built from this source tree, with what is installed here."""
    directory = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", directory]
    pip(sys.executable, "wheel", *options, ROOT)
    (built,) = directory.iterdir()
    return built


def pip(python: str | Path, *words: str | Path) -> None:
    """Our pip, for the environment of `python`."""
    command = [sys.executable, "-m", "pip", "--python", python, "--quiet", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class Installed(NamedTuple):
    """An environment with the wheel, and a directory of another project to run it in."""

    bin: Path
    project: Path

    def environment(self, **variables: str) -> dict[str, str]:
        """Without a PYTHONPATH that would find the source tree."""
        env = clean_environment(**variables, PATH=f"{self.project}:{os.environ['PATH']}")
        env.pop("PYTHONPATH", None)
        return env

    def run(self, *words: str, **variables: str) -> str:
        """What a command says."""
        done = subprocess.run(
            [self.bin / words[0], *words[1:]],
            cwd=self.project,
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """With packages called `shared` and `worker` in its site-packages and in the directory.

    What ours depends on comes from the environment of the tests, which is searched last.
    """
    directory = tmp_path_factory.mktemp("installed")
    venv.create(directory / "env", symlinks=True)
    pip(directory / "env/bin/python", "install", "--no-deps", "--no-index", wheel)
    (site,) = (directory / "env/lib").glob("python*/site-packages")
    # A line of a .pth file is searched, but its own .pth files are not read: ours is one of them.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    engine = (ROOT / "tests/fake_engine.py").read_text(encoding="utf-8")
    (site / "fake_engine.py").write_text(as_packed(engine))
    project = directory / "project"
    for place in (project, site):
        (place / "shared").mkdir(parents=True)
        (place / "shared/__init__.py").write_text(THEIRS)
        (place / "worker.py").write_text(THEIRS)
        (place / "celeryconfig.py").write_text(THEIRS)
    smi = project / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: A Card (UUID: GPU-aa)'\n")
    smi.chmod(0o755)
    return Installed(directory / "env/bin", project)


def test_it_has_our_packages_in_one_and_nothing_else(wheel: Path) -> None:
    """Scripts of Redis and all else that lies there included."""
    places = [ROOT / name for name in ("shared", "worker")]
    files = [file for place in places for file in place.rglob("*") if file.is_file()]
    ours = {f"{PACKAGE}/{file.relative_to(ROOT)}" for file in files if file.suffix != ".pyc"}
    ours |= {f"{PACKAGE}/__init__.py", f"{PACKAGE}/celeryconfig.py"}
    with zipfile.ZipFile(wheel) as packed:
        names = {name for name in packed.namelist() if not re.match(r"[^/]+\.dist-info/", name)}
    assert names == ours
    assert f"{PACKAGE}/shared/store/lua/commit.lua" in names


def test_no_module_of_it_imports_by_the_names_of_the_source_tree(wheel: Path) -> None:
    """Nor has it such a name in a text, which something might import: `"worker.cli"`."""
    left = []
    with zipfile.ZipFile(wheel) as packed:
        for name in packed.namelist():
            if not name.endswith(".py"):
                continue
            for node in ast.walk(ast.parse(packed.read(name))):
                match node:
                    case ast.Import(names=aliases):
                        imported = [alias.name for alias in aliases]
                    case ast.ImportFrom(module=str(module), level=0):
                        imported = [module]
                    case ast.Constant(value=str(text)) if re.match(r"\w+\.\w[\w.:]*$", text):
                        imported = [text]
                    case _:
                        continue
                left += [(name, each) for each in imported if re.match(r"(shared|worker)\b", each)]
    # A module of vLLM, below a name that is put in front of it.
    assert left == [(f"{PACKAGE}/worker/engines/vllm/internals.py", "worker.gpu_worker")]


def test_other_projects_of_these_names_are_left_alone(
    installed: Installed, settings: Settings, store: Store, client: PoCClient, tmp_path: Path
) -> None:
    """Given another project's packages in its way, then the command works, and so does a worker.

    It takes commands, and the process that it starts for the GPU is of the same code.
    """
    variables = {
        "POC_REDIS_URL": settings.redis_url,
        "POC_NAMESPACE": settings.namespace,
        "POC_ENGINE": "fake_engine:load",
    }
    assert installed.run("poc", "--version") == "0.1.0\n"
    shown = json.loads(installed.run("poc", "status", "--json", **variables))
    assert shown["workers"] == []
    with running(
        [installed.bin / "poc", "worker", "--gpu", "all"],
        r"gpu0 \| .*ready: worker",
        tmp_path / "log",
        cwd=installed.project,
        env=installed.environment(**variables),
    ) as (process, _):
        installed.run(
            *("poc", "generate", "--block-hash=b", "--block-height=1", "--public-key=k"),
            *("--r-target=2", "--seq-len=8"),
            **variables,
        )
        wait_until(lambda: store.status().total_valid, 20, "a batch")
        process.terminate()
        assert process.wait(30) == 0
        assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_controller_imports_it_beside_its_own(installed: Installed) -> None:
    """Given a project whose own `shared` is imported first, then our client is still ours."""
    (installed.project / "shared/__init__.py").write_text("")
    code = (
        "import shared, sys; from poc_worker.shared import client; client.PoCClient; "
        "print(shared.__file__, client.__name__, 'worker' in sys.modules)"
    )
    said = installed.run("python", "-c", code)
    (installed.project / "shared/__init__.py").write_text(THEIRS)
    assert said.split() == [
        str(installed.project / "shared/__init__.py"),
        "poc_worker.shared.client",
        "False",
    ]
