"""The Celery application of a worker, before it runs."""

from __future__ import annotations

import contextlib
import os
import socket

from shared.settings import load_settings
from worker.queue.app import create_app, worker_name

UNACKED = ("unacked", "unacked_index", "unacked_mutex")


def test_what_a_worker_took_is_noted_in_its_namespace() -> None:
    """Who shares a Redis has Celery's own names in common, and could give a message back."""
    settings = load_settings({}, namespace="test", engine="fake_engine:load")
    with contextlib.closing(create_app(settings)) as app:
        channel = app.connection_for_read().transport.Channel
        options = app.conf.broker_transport_options
    names = {f"{name}_key": f"poc:test:{name}" for name in UNACKED}
    assert names.items() <= options.items()
    assert names.keys() <= set(channel.from_transport_options)


def test_names_by_default_are_unique() -> None:
    """Also of processes with one id on hosts of one name, as in containers."""
    settings = load_settings({})
    assert worker_name(settings) != worker_name(settings)
    assert worker_name(settings).startswith(f"poc-{os.getpid()}-")
    chosen = load_settings({}, worker_name="mine")
    assert worker_name(chosen) == f"mine@{socket.gethostname()}"
