"""`poc api` and `poc gateway`, each in a process of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from preloaded import Fork
from support import ROOT, clean_environment, wait_until
from worker.children import end


@contextmanager
def serving_api(
    redis_url: str, log_path: Path, *, part: str = "api", **variables: str
) -> Iterator[tuple[Fork, str]]:
    """The process and its URL, on a port that the kernel chose; with these variables on top.

    `part` is its command.
    """
    prefix = f"POC_{part.upper()}"
    variables = {
        "POC_REDIS_URL": redis_url,
        "POC_NAMESPACE": "test",
        f"{prefix}_PORT": "0",
        f"{prefix}_RATE": "10000",
        **variables,
    }
    process = Fork([part], env=clean_environment(**variables), cwd=ROOT, log_path=log_path)

    def listens() -> re.Match[str] | None:
        ended = process.poll()  # before its log is read, so that its last words are there
        found = re.search(r"listens on (https?://[\d.]+:\d+)", log_path.read_text())
        assert found or ended is None, f"it ended with {ended}: {log_path.read_text()}"
        return found

    try:
        yield process, wait_until(listens, 60, f"`poc {part}` to listen")[1]
    finally:
        end(process)
