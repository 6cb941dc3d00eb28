"""A whole worker in a thread of this process, for what measures it from beside its engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from celery.worker import state

from shared.errors import EngineError
from shared.settings import Settings
from worker.node.node import Node
from worker.queue.app import create_app, run_app

#: Seconds between two looks at whether it is ready.
_LOOK_S = 0.02


@contextmanager
def worker_beside(settings: Settings) -> Iterator[Node]:
    """The node of a worker that takes commands while the block runs, as `poc worker` does.

    One at a time: Celery keeps in the process whether its worker is to end. Raises what the worker
    could not start for. The worker's `closing` is set once it has failed.
    """
    app = create_app(settings)
    errors: list[Exception] = []
    app.on_start_error = errors.append
    thread = threading.Thread(target=run_app, args=(app,), name="poc-worker", daemon=True)
    thread.start()
    try:
        while app.manager is None:
            thread.join(_LOOK_S)
            if not thread.is_alive():
                raise errors[0] if errors else EngineError("the worker ended before it was ready")
        yield app.node
    finally:
        state.should_stop = 0
        thread.join()
        state.should_stop = None  # the next worker is to begin
