"""The scripts of benchmarks/ help, and say in one line what they miss; tests/gpu has the rest."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import preloaded
from support import ROOT, clean_environment
from worker.engines.vllm.installed import distribution

pytestmark = pytest.mark.functional

#: What else lies there is for vLLM's process.
SCRIPTS = sorted(
    file.name for file in (ROOT / "benchmarks").glob("*.py") if "_extension" not in file.name
)


def run(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a script where torch sees no GPU."""
    env = clean_environment(PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES="")
    return preloaded.run(words, env=env, cwd=ROOT, script=ROOT / "benchmarks" / script)


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_helps_wherever_it_is(script: str) -> None:
    """Without vLLM and without a GPU."""
    done = run(script, "--help")
    assert done.returncode == 0, done.stderr
    assert f"python benchmarks/{script}" in done.stdout


@pytest.mark.parametrize(
    ("words", "figure", "right"),
    [
        (("rate", "--seconds", "0.2"), "scripts per batch", lambda n: n < 1.5),
        (
            ("workers", "--count", "4", "--seconds", "0.2", "--batch-seconds", "0.1"),
            "counted after the stop",
            lambda n: n == 0,
        ),
        (("large", "--valid", "5000"), "valid nonces", lambda n: n == 5000),
        (("long", "--nonces", "10"), "nonces, by tenths", lambda counts: len(counts) == 10),
    ],
    ids=lambda word: word[0] if isinstance(word, tuple) else "",
)
def test_what_counting_costs(
    words: tuple[str, ...], figure: str, right: Callable[[Any], bool]
) -> None:
    """It needs no GPU, and says it as a table and as JSON; here in small."""
    done = run("bookkeeping.py", *words)
    assert done.returncode == 0, done.stderr
    *table, figures = done.stdout.splitlines()
    assert right(json.loads(figures)[figure])
    assert any(line.startswith(f"{figure} ") for line in table)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("gpu_round.py",), "sees no GPU"),
        (("gpu_round.py", "--make", "{tmp}/model"), "sees no GPU"),
        (("block_fp8.py", "{tmp}/model"), "sees no GPU"),
        (("gated.py",), "sees no GPU"),
        (("generator.py", "--device", "cuda"), "--device cuda: torch"),
        (("timeline.py", "--model", "{tmp}"), "vLLM is not installed, and 0.26 up to"),
        (("last_layer.py", "--model", "{tmp}"), "vLLM is not installed, and 0.26 up to"),
        (
            ("numerics.py", "compute", "{tmp}/o.json", "--engine", "vllm", "--model", "{tmp}"),
            "vLLM is not installed, and 0.26 up to",
        ),
        (("numerics.py", "compute", "{tmp}/o.json", "--model", "/none"), "no such directory"),
        (("numerics.py", "compute", "/none/o.json", "--model", "{tmp}"), "No such file"),
        (("numerics.py", "report", "/none.json"), "No such file"),
        (("numerics.py", "report", "pyproject.toml"), "`numerics.py compute` did not write it"),
        (("numerics.py", "report", "a/x.json", "b/x.json"), "two files are called x"),
        (("bookkeeping.py", "rate", "--batch-size", "5000"), "batch_size"),
    ],
)
def test_what_it_misses_is_one_line(words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    if "vLLM" in says and distribution():
        pytest.skip("vLLM is installed here")
    done = run(*(word.format(tmp=tmp_path) for word in words))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{words[0]}: ")
    assert says in line
