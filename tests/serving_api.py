"""The status API in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support import ROOT, clean_environment, running

SERVE = "from shared.api import serve; from shared.settings import load_settings; "


@contextmanager
def serving_api(
    redis_url: str, log_path: Path, **variables: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The process and its URL, on a port that the kernel chose; with these variables on top."""
    variables = {
        "POC_REDIS_URL": redis_url,
        "POC_NAMESPACE": "test",
        "POC_API_PORT": "0",
        "POC_API_RATE": "10000",
        **variables,
    }
    with running(
        [sys.executable, "-c", SERVE + "serve(load_settings())"],
        r"listens on (http://[\d.]+:\d+)",
        log_path,
        env=clean_environment(**variables),
        cwd=ROOT,
    ) as (process, found):
        yield process, found[1]
