"""`poc api` and `poc gateway` in processes of their own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from preloaded import Fork
from support import ROOT, clean_environment, wait_until
from worker.children import end


def serving_api(
    redis_url: str, log_path: Path, **variables: str
) -> AbstractContextManager[tuple[Fork, str]]:
    """The status API's process and its URL; with these variables on top."""
    return _serving("api", redis_url, log_path, variables)


def serving_gateway(
    redis_url: str, log_path: Path, *options: str, **variables: str
) -> AbstractContextManager[tuple[Fork, str]]:
    """The gateway's."""
    return _serving("gateway", redis_url, log_path, variables, options)


@contextmanager
def _serving(
    command: str,
    redis_url: str,
    log_path: Path,
    variables: dict[str, str],
    options: Sequence[str] = (),
) -> Iterator[tuple[Fork, str]]:
    """On a port that the kernel chose, unless the variables name one."""
    part = f"POC_{command.upper()}"
    variables = {
        "POC_REDIS_URL": redis_url,
        "POC_NAMESPACE": "test",
        f"{part}_PORT": "0",
        f"{part}_RATE": "10000",
        **variables,
    }
    words = [command, *options]
    process = Fork(words, env=clean_environment(**variables), cwd=ROOT, log_path=log_path)

    def listens() -> re.Match[str] | None:
        ended = process.poll()  # before its log is read, so that its last words are there
        found = re.search(r"listens on (https?://[\d.]+:\d+)", log_path.read_text())
        assert found or ended is None, f"it ended with {ended}: {log_path.read_text()}"
        return found

    try:
        yield process, wait_until(listens, 60, f"the {command} to listen")[1]
    finally:
        end(process)
