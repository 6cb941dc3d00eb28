"""The status API in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support import clean_environment, wait_until
from worker.children import end, spawn

ROOT = Path(__file__).parents[1]
SERVE = "from shared.api import serve; from shared.settings import load_settings; "


@contextmanager
def serving_api(
    redis_url: str, log_path: Path, **variables: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The process and its URL, on a port that the kernel chose; with these variables on top."""
    process = spawn(
        [sys.executable, "-c", SERVE + "serve(load_settings())"],
        env=clean_environment()
        | {
            "POC_REDIS_URL": redis_url,
            "POC_NAMESPACE": "test",
            "POC_API_PORT": "0",
            "POC_API_RATE": "10000",
            **variables,
        },
        cwd=ROOT,
        log_path=log_path,
    )
    try:
        found = wait_until(
            lambda: re.search(r"listens on (http://[\d.]+:\d+)", log_path.read_text()),
            timeout=60,
            description="the API to listen",
        )
        yield process, found[1]
    finally:
        end(process)
