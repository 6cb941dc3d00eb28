"""The tasks: each reads its arguments, calls the manager once and returns.

Long work (a generation, the validation of a batch) is a ticket: the task ends without a result,
and the workers' clerks report its progress and its end. None ever waits for the engine.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from celery import Celery, Task
from celery.exceptions import Ignore

from shared import requests, tracing
from shared.about import About, note_round
from shared.config import Strict
from shared.errors import CommandMismatch, InvalidRequest, PoCError, StoreUnavailable
from shared.status import Cancellation, RoundStatus
from worker.node.node import Node
from worker.queue.results import PATIENCE_S

T = TypeVar("T")
Request = TypeVar("Request", bound=Strict)

log = logging.getLogger(__name__)


class _Task(Task):  # type: ignore[misc]
    """Takes an argument of any name: also one called `self`, which is then refused like others."""

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        name, request = str(self.name), self.request
        with tracing.step(
            f"process {name}",
            "CONSUMER",
            About(traceparent=request.get("traceparent") or ""),
            {"messaging.operation.type": "process", "messaging.message.id": request.id or ""},
        ):
            try:
                return self.run(*args, **kwargs)
            except Ignore as error:  # the end of a task whose ticket goes on: no failure
                ignored = error
        raise ignored


def register(app: Celery) -> None:
    """Register the tasks, to run on the application's `node` and `manager`, and no others."""
    # Celery's own (starmap, chord_unlock, ...) would run for whoever may enqueue.
    app.finalize()
    for name in [name for name in app.tasks if name.startswith("celery.")]:
        app.tasks.unregister(name)

    def task(name: str) -> Callable[[Callable[..., Any]], Task]:
        # typing: arguments are checked by our models, whose messages help. shared: other
        # applications of this process would run it on our node.
        return app.task(  # type: ignore[no-any-return]
            base=_Task, bind=True, name=name, throws=(PoCError,), typing=False, shared=False
        )

    def until_answered(call: Callable[[], T]) -> T:
        node: Node = app.node
        try:
            return node.outage.until_answered(call, node.closing, PATIENCE_S)
        except StoreUnavailable as error:
            # It may have been carried out. Tried again under its id it has the right answer; a
            # failure would be final.
            log.warning("not answered yet, and tried again later: %s", error)
            app.current_worker_task.request.unanswered = True
            raise Ignore from None
        except CommandMismatch as error:
            # What is stored under the id is the answer of the command that had it first.
            log.warning("not carried out, and left unanswered: %s", error)
            raise Ignore from None

    def ticket(command: str, progress: dict[str, Any], open_in: str) -> NoReturn:
        until_answered(lambda: app.node.sink.progress(command, progress, open_in))
        raise Ignore

    @task("poc.init")
    def init(self: Task, /, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Open a round: `config`, `round_id`, `replace`. Gives the status."""
        asked = _read(requests.InitRequest, args, kwargs)
        return _reply(until_answered(lambda: app.manager.init_round(asked, self.request.id)))

    @task("poc.generate")
    def generate(self: Task, /, *args: Any, **kwargs: Any) -> None:
        """Generate: `config` opens a round first. Ends when the round does, with its status."""
        asked = _read(requests.GenerateRequest, args, kwargs)
        status = until_answered(lambda: app.manager.start_generate(asked, self.request.id))
        note_round(status.round_id)
        log.info("task %s waits for the end of round %s", self.request.id, status.round_id)
        ticket(self.request.id, {"round_id": status.round_id}, status.round_id)

    @task("poc.validate")
    def validate(self: Task, /, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """End generation and give the status; with a `batch`, recompute it and give a verdict."""
        asked = _read(requests.ValidateRequest, args, kwargs)
        if asked.batch is not None:  # an empty one is false, and has a verdict as well
            until_answered(lambda: app.manager.open_validation(asked, self.request.id))
            log.info("validation %s: %d nonces to recompute", self.request.id, len(asked.batch))
            ticket(self.request.id, {"done": 0, "total": len(asked.batch)}, "")
        return _reply(until_answered(lambda: app.manager.start_validate(asked, self.request.id)))

    @task("poc.stop")
    def stop(self: Task, /, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Stop the round, at once. Gives the status."""
        asked = _read(requests.StopRequest, args, kwargs)
        return _reply(until_answered(lambda: app.manager.stop_round(asked, self.request.id)))

    @task("poc.cancel")
    def cancel(self: Task, /, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """End a validation before it has a verdict. Gives whether it was still open."""
        asked = _read(requests.CancelRequest, args, kwargs)
        done: Cancellation = until_answered(
            lambda: app.manager.cancel_validation(asked, self.request.id)
        )
        log.info("validation %s: %s", done.validation, "cancelled" if done.cancelled else "ended")
        return done.model_dump(mode="json")


def _read(model: type[Request], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Request:
    if args:
        names = ", ".join(model.model_fields)
        raise InvalidRequest(f"positional arguments are not taken; name them: {names}")
    return requests.read(model, kwargs)


def _reply(status: RoundStatus) -> dict[str, Any]:
    note_round(status.round_id)
    log.info("%s: %d checked, %d valid", status.title, status.total_checked, status.total_valid)
    return status.model_dump(mode="json")
