"""How a run of `tests/conformance` ends that can't examine the node it is told of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from serving_api import serving_gateway
from support import ROOT, clean_environment, free_port

pytestmark = pytest.mark.functional


def ended(*options: str, **variables: str) -> tuple[int, str]:
    """The exit status of a run with these options, and its last words."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:xdist", "-q", "tests/conformance", *options],
        cwd=ROOT,
        env=clean_environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stdout + done.stderr


def test_where_nothing_listens_it_says_so() -> None:
    node = f"http://127.0.0.1:{free_port()}"
    status, said = ended(f"--node={node}")
    assert status == 2
    assert f"no node can be examined: {node}: All connection attempts failed; see --node" in said


def test_a_wrong_token_is_told_as_one(redis_url: str, tmp_path: Path) -> None:
    """Of an option as of the environment; where it is right the gateway says what it lacks."""
    right = 32 * "t"
    log = tmp_path / "gateway.log"
    with serving_gateway(redis_url, log, POC_GATEWAY_TOKENS=right) as (_, url):
        status, said = ended(f"--node={url}", "--node-token=wrong")
        assert (status, "/v1/models answered 401" in said) == (2, True)
        status, said = ended(f"--node={url}", NODE_TOKEN=right)
        assert (status, "no worker is ready" in said) == (2, True)


def test_files_that_are_none_are_named() -> None:
    status, said = ended("--node=http://127.0.0.1", "--node-ca=/nowhere/ca.pem")
    assert status == 2
    assert "/nowhere/ca.pem: no certificates" in said
