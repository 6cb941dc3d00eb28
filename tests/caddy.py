"""Caddy with deploy/Caddyfile."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from caller import caller
from support import ROOT, free_port, running


@contextmanager
def proxy(gateway: int, directory: Path, *workers: str) -> Iterator[httpx.Client]:
    """A client of one before the gateway's port on this machine, and these addresses of vLLM's."""
    port = free_port()
    variables = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(directory),
        "PROXY_PORTS": f":{port}, :{free_port()}",
        "PROXY_GATEWAY": f"127.0.0.1:{gateway}",
        "PROXY_WORKERS": " ".join(workers),
    }
    command = [str(shutil.which("caddy")), "run", "--config", str(ROOT / "deploy/Caddyfile")]
    log = directory / "caddy.log"
    with (
        running(command, "serving initial configuration", log, env=variables, cwd=directory),
        caller(f"http://127.0.0.1:{port}", timeout=20) as client,
    ):
        yield client
