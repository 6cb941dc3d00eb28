"""A real worker whose model computes, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from preloaded import Fork
from support import ROOT, clean_environment, wait_until
from worker.children import end


@contextmanager
def computing(redis_url: str, model: Path, log: Path, **variables: str) -> Iterator[Fork]:
    """A worker of the namespace `test` that is ready; with these variables on top."""
    usual = {
        "POC_REDIS_URL": redis_url,
        "POC_NAMESPACE": "test",
        "POC_LEASE_S": "2",
        "POC_HEARTBEAT_S": "0.5",
        "POC_ENGINE": "transformers",
        "POC_MODEL": str(model),
        "POC_DEVICE": "cpu",
    }
    env = clean_environment(**usual | variables)
    process = Fork(["worker"], env=env, cwd=ROOT, log_path=log)

    def ready() -> bool:
        said = log.read_text(errors="replace")
        assert process.poll() is None, said
        return "ready." in said

    try:
        wait_until(ready, 240, "the worker to be ready", every=0.05)
        yield process
    finally:
        end(process, timeout=10)
