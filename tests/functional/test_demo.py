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

import psutil
import pytest

import preloaded
from caller import caller
from preloaded import Fork
from shared.client import PoCClient
from shared.config import PoCConfig
from shared.settings import load_settings
from support import ROOT, clean_environment, running, wait_until

pytestmark = [pytest.mark.functional, pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[psutil.Process]:
    """A demo that would go on for long, all of whose processes have begun."""
    env, log = os.environ | {"TMPDIR": str(tmp_path)}, tmp_path / "out"
    process = Fork(["demo", "--seconds=100"], env=env, cwd=ROOT, log_path=log)
    try:
        wait_until(
            lambda: process.poll() is not None or len(_descendants(process.pid)) >= 4,
            timeout=120,
            description="a server, two workers and an API",
            every=0.2,
        )
        assert process.poll() is None, log.read_text()
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
    with (
        running(
            [sys.executable, "-m", "worker.cli", "demo", "--seconds=2", "--stay"],
            r"watch them at (http://\S+)",
            log,
            timeout=150,
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(tmp_path)},
        ) as (process, found),
        caller(found[1]) as page,
    ):
        children = _descendants(process.pid)
        assert len(children) >= 4, "a server, two workers and an API"
        assert "<title>Proof of Compute</title>" in page.get("").text

        def seen() -> dict[str, Any]:
            return dict(page.get("api/v1/pow/overview").json())

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


@pytest.mark.parametrize(
    ("words", "variables"),
    [(["--model=/nowhere/model"], {}), ([], {"POC_MODEL": "/nowhere/model"})],
    ids=["option", "variable"],
)
def test_the_benchmark_of_a_model_that_is_not_there(
    words: list[str], variables: dict[str, str]
) -> None:
    """It is an option that is wrong: status 2, one line."""
    done = preloaded.run(["bench", *words], env=clean_environment(**variables), cwd=ROOT)
    assert done.returncode == 2, done.stderr
    assert "error: /nowhere/model: there is no such directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_benchmark_prints_its_figures(tmp_path: Path) -> None:
    """A round through Celery and Redis beside its forward, its engine, and both opponents."""
    picture = tmp_path / "bench.svg"
    words = ["bench", "--seconds=0.1", "--rounds=2", "--batch-size=8", "--seq-len=8"]
    words += ["--against=published,limit", f"--picture={picture}", "--json"]
    done = preloaded.run(words, env=clean_environment(), cwd=ROOT, timeout=150)
    assert done.returncode == 0, done.stderr
    (figures,) = json.loads(done.stdout)["points"]
    candidates = {"forward", "engine", "round", "published", "published_our_forward", "limit"}
    assert set(figures["nonces_per_second"]) == candidates
    assert all(len(each["turns"]) == 2 for each in figures["nonces_per_second"].values())
    assert set(figures["ratios"]) >= {"round/forward", "round/published"}
    assert 0 < figures["engine_busy_share"] <= 1
    assert figures["batches"] > 0
    assert picture.read_text().startswith("<svg")


def test_a_benchmark_that_is_killed_leaves_no_model(tmp_path: Path) -> None:
    """It may be large."""
    env = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-m", "worker.cli", "bench"], cwd=ROOT, env=env, stderr=subprocess.DEVNULL
    ) as process:
        wait_until(lambda: [*tmp_path.glob("poc-bench-*/model/*.json")], 60, "a model")
        process.kill()
    wait_until(lambda: not [*tmp_path.glob("poc-*")], 10, "it to be gone")


def test_a_benchmark_ends_with_its_redis(tmp_path: Path) -> None:
    """Nobody could start that again."""
    log = tmp_path / "log"
    command = [sys.executable, "-m", "worker.cli", "bench", "--model=fake", "--seconds=30"]
    env = with_fake_engine()
    with log.open("w") as said, subprocess.Popen(command, cwd=ROOT, env=env, stderr=said) as bench:

        def in_use() -> psutil.Process | None:
            found = psutil.Process(bench.pid).children()
            server = next((each for each in found if "valkey" in each.name()), None)
            return server if server and len(server.net_connections()) > 3 else None

        wait_until(in_use, 60, "a worker on its Redis").kill()
        assert bench.wait(10) == -signal.SIGTERM
    assert "the embedded Redis has ended" in log.read_text()


def test_a_benchmark_whose_round_is_full_says_so() -> None:
    words = ["bench", "--model=fake?seconds=0.01", "--seconds=1", "--rounds=1"]
    words += ["--batch-size=4096"]
    env = with_fake_engine(POC_MAX_VALID="1")
    done = preloaded.run(words, env=env, cwd=ROOT, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "a round was full before its turn was over: take shorter turns" in done.stderr


def test_a_benchmark_over_tiles_loads_an_engine_for_each() -> None:
    """One worker after the other in one process; and an engine of one's own need not do it all."""
    words = ["bench", "--model=fake?seconds=0.01", "--seconds=0.1", "--rounds=2"]
    words += ["--sweep=tile=4,8", "--json"]
    env = with_fake_engine()
    done = preloaded.run(words, env=env, cwd=ROOT, timeout=100)
    assert done.returncode == 0, done.stderr
    points = json.loads(done.stdout)["points"]
    assert len(points) == 2
    for figures in points:
        assert set(figures["nonces_per_second"]) == {"engine", "round"}
        assert figures["not_measured"] == {"forward": "this engine has no time_forwards"}


def with_fake_engine(**variables: str) -> dict[str, str]:
    """The environment of a benchmark that needs no model."""
    path = os.pathsep.join((str(ROOT), f"{ROOT}/tests"))
    return clean_environment(POC_ENGINE="fake_engine:load", PYTHONPATH=path, **variables)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
