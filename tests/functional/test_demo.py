"""The demo and the benchmark, as a newcomer runs them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from shared.client import PoCClient
from shared.config import PoCConfig
from shared.settings import load_settings
from support import ROOT, clean_environment, running, wait_until

pytestmark = [pytest.mark.functional, pytest.mark.slow, pytest.mark.timeout(180)]

DEMO = [sys.executable, "-m", "worker.cli", "demo"]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[psutil.Process]:
    """A demo that would go on for long, all of whose processes have begun."""
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen(
            [*DEMO, "--seconds", "100"],
            cwd=ROOT,
            stdout=out,
            stderr=out,
            start_new_session=True,
            env=os.environ | {"TMPDIR": str(tmp_path)},
        )
    try:
        wait_until(
            lambda: process.poll() is not None or len(_descendants(process.pid)) >= 4,
            timeout=120,
            description="a server, two workers and an API",
            every=0.2,
        )
        assert process.poll() is None, (tmp_path / "out").read_text()
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def _try_a_round(children: list[psutil.Process]) -> None:
    """Replace the demo's round by one that ends soon."""
    worker = next(each for each in children if each.cmdline()[-1] == "worker")
    config = PoCConfig(block_hash="ab12", block_height=7, public_key="me", r_target=1.39, seq_len=8)
    with contextlib.closing(PoCClient(load_settings(worker.environ()))) as client:
        client.generate(config, replace=True, seconds=2).wait(timeout=60)


def test_the_demo_shows_a_round_stays_and_leaves_nothing_running(tmp_path: Path) -> None:
    """It ends with 0 only if the round, both verdicts and all callbacks were as they must be.

    Given --stay, rounds then go on, and the page is there, until Ctrl-C; somebody else's round
    does not end that.
    """
    log = tmp_path / "out"
    with running(
        [*DEMO, "--seconds", "2", "--stay"],
        r"watch them at (http://\S+)",
        log,
        timeout=150,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    ) as (process, found):
        children = _descendants(process.pid)
        assert len(children) >= 4, "a server, two workers and an API"
        assert "<title>Proof of Compute</title>" in httpx.get(found[1], trust_env=False).text
        overview = f"{found[1]}api/v1/pow/overview"

        def seen() -> dict[str, Any]:
            return dict(httpx.get(overview, trust_env=False).json())

        wait_until(
            lambda: seen()["node"]["block_height"] == 2 and seen()["node"]["total_checked"],
            timeout=60,
            description="nonces of another round",
        )
        assert seen()["totals"]["validations"] == {"honest": 1, "fraud": 1}
        _try_a_round(children)
        wait_until(
            lambda: seen()["node"]["block_height"] == 3,
            timeout=60,
            description="the next round, after one of somebody else's",
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, log.read_text()

    said = log.read_text()
    assert "FAIL" not in said
    assert not [child for child in children if child.is_running()]
    assert not list(tmp_path.glob("poc-*"))
    ending, after = said.split("ending what was started")[0], said.split("what next")[1]
    assert "what next" not in ending, "the prompt comes with it"
    assert "poc generate --block-hash" in after
    assert "poc demo --stay" in after


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_demo_that_is_ended_leaves_nothing_running(
    demo: psutil.Process, how: signal.Signals
) -> None:
    children = _descendants(demo.pid)
    assert len(children) >= 4, "a server, two workers and an API"
    demo.send_signal(how)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


def test_the_benchmark_of_a_model_that_is_not_there() -> None:
    """It is an option that is wrong: status 2, one line."""
    done = subprocess.run(
        [sys.executable, "-m", "worker.cli", "bench", "--model", "/nowhere/model"],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "error: /nowhere/model: there is no such directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_benchmark_prints_its_figures(tmp_path: Path) -> None:
    """A round through Celery and Redis beside its forward, its engine, and both opponents."""
    picture = tmp_path / "bench.svg"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "worker.cli",
            "bench",
            "--seconds",
            "0.1",
            "--rounds",
            "2",
            "--batch-size",
            "8",
            "--seq-len",
            "8",
            "--against",
            "published,limit",
            "--picture",
            str(picture),
            "--json",
        ],
        cwd=ROOT,
        # Threads that wait for each other would burn what the tests beside this one need.
        env=clean_environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=150,
        check=True,
    )
    (figures,) = json.loads(done.stdout)["points"]
    candidates = {"forward", "engine", "round", "published", "published_our_forward", "limit"}
    assert set(figures["nonces_per_second"]) == candidates
    assert all(len(each["turns"]) == 2 for each in figures["nonces_per_second"].values())
    assert set(figures["ratios"]) >= {"round/forward", "round/published"}
    assert 0 < figures["engine_busy_share"] <= 1
    assert figures["batches"] > 0
    assert picture.read_text().startswith("<svg")


def test_a_benchmark_over_tiles_loads_an_engine_for_each() -> None:
    """One worker after the other in one process; and an engine of one's own need not do it all."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "worker.cli",
            "bench",
            "--model",
            "fake?seconds=0.01",
            "--seconds",
            "0.1",
            "--rounds",
            "2",
            "--sweep",
            "tile=4,8",
            "--json",
        ],
        cwd=ROOT,
        env=clean_environment(
            POC_ENGINE="fake_engine:load", PYTHONPATH=os.pathsep.join((str(ROOT), f"{ROOT}/tests"))
        ),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    points = json.loads(done.stdout)["points"]
    assert len(points) == 2
    for figures in points:
        assert set(figures["nonces_per_second"]) == {"engine", "round"}
        assert figures["not_measured"] == {"forward": "this engine has no time_forwards"}


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
