"""Tab in a real shell completes commands and options."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT, clean_environment

pytestmark = pytest.mark.functional


def install(home: Path, shell: str) -> None:
    """As its user does: the command asks which shell called it, which must still be there."""
    in_shell(home, shell, "-c", "poc --install-completion; true")


def in_shell(home: Path, *words: str, **variables: str) -> str:
    """What a shell says that finds `poc`, and has this home."""
    env = clean_environment(HOME=str(home), **variables)
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    done = subprocess.run(
        words,
        cwd=home,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_bash(tmp_path: Path) -> None:
    """From the next shell on; where nothing of ours fits, files are offered."""
    install(tmp_path, "bash")
    tab = "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _poc_completion poc; echo ${COMPREPLY[@]}; "
    typed = ("poc st", "poc worker --gp")
    script = "complete -p poc; " + "".join(f"COMP_WORDS=({words}); {tab}" for words in typed)
    rule, *found = in_shell(tmp_path, "bash", "--rcfile", ".bashrc", "-ic", script).splitlines()
    assert rule == "complete -o default -F _poc_completion poc"
    assert found == ["stop status", "--gpu --gpu-memory-utilization"]


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
def test_fish(tmp_path: Path) -> None:
    """With what each is."""
    install(tmp_path, "fish")
    found = in_shell(tmp_path, "fish", "-c", "complete -C 'poc wor'; complete -C 'poc status --js'")
    assert [line.split("\t")[0] for line in found.splitlines()] == ["worker", "--json"]
    assert "Load the model and take part in rounds" in found


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
def test_zsh(tmp_path: Path) -> None:
    """Its own completion takes the file, and what our command answers."""
    install(tmp_path, "zsh")
    assert in_shell(tmp_path, "zsh", "-c", "source ~/.zshrc; print $_comps[poc]") == "_poc\n"
    asked = {"_POC_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "poc wor"}
    assert '"worker":"Load the model' in in_shell(tmp_path, "poc", **asked)


def test_it_needs_nothing_heavy() -> None:
    """Whoever presses a key does not wait for torch, Celery or Redis."""
    heavy = ["torch", "celery", "transformers", "fastapi", "redis", "scipy"]
    code = (
        "import sys, worker.cli\n"
        "try: worker.cli.main()\n"
        f"finally: print([m for m in {heavy} if m in sys.modules], file=sys.stderr)"
    )
    env = os.environ | {
        "_POC_COMPLETE": "complete_bash",
        "COMP_WORDS": "poc generate --r-t",
        "COMP_CWORD": "2",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr.strip()) == ("--r-target\n", "[]")
