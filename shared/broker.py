"""The Celery application that controllers and workers have in common."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from celery import Celery
from kombu import Queue

from shared.settings import Settings


def celery_app(settings: Settings, **conf: Any) -> Celery:
    """An application on the namespace's broker and queue, with `conf` on top of celeryconfig.py.

    It knows no tasks: send them by name, or let `worker.queue.app` register them.
    """
    app = Celery("poc", set_as_current=False)
    app.config_from_object(_celeryconfig())
    url = settings.redis
    if url.name:
        app.conf.broker_transport_options = app.conf.broker_transport_options | url.celery_options
        app.conf.result_backend_transport_options = url.celery_options
        if url.tls:
            app.conf.broker_use_ssl = app.conf.redis_backend_use_ssl = url.tls
    app.conf.update(
        {
            "broker_url": url.celery,
            "result_backend": url.celery,
            "result_expires": settings.command_memory_s,
            "task_default_queue": settings.queue,
            "task_queues": [Queue(settings.queue)],
        }
        | conf
    )
    return app


@cache
def _celeryconfig() -> ModuleType:
    """The file beside this package: by the name alone a controller's own would be found first."""
    path = Path(__file__).parents[1] / "celeryconfig.py"
    spec = importlib.util.spec_from_file_location("poc_celeryconfig", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is missing: install poc-worker again")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
