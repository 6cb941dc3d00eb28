"""The Celery application of a worker, before it runs."""

from __future__ import annotations

import os
import socket

from shared.settings import load_settings
from worker.queue.app import worker_name


def test_names_by_default_are_unique() -> None:
    """Also of processes with one id on hosts of one name, as in containers."""
    settings = load_settings({})
    assert worker_name(settings) != worker_name(settings)
    assert worker_name(settings).startswith(f"poc-{os.getpid()}-")
    chosen = load_settings({}, worker_name="mine")
    assert worker_name(chosen) == f"mine@{socket.gethostname()}"
