"""Log lines for machines: one JSON object a line, with what the line is about.

    {"time": "2026-01-31T12:00:00.123Z", "level": "INFO", "logger": "worker.node.rounds",
     "message": "...", "worker": "gpu0@host", "round_id": "...", "trace_id": "..."}

Only these fields, and `exception`: what libraries hang on their lines besides may be megabytes, or
a callback's URL, whose path may be secret.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType

from shared.about import about
from shared.settings import Settings

log = logging.getLogger(__name__)

#: What this process is called in the status and in Flower, once it has a name.
_worker = ""


def call_process(worker: str) -> None:
    """Let each line of this process tell `worker`."""
    global _worker
    _worker = worker


class JsonLines(logging.Formatter):
    """Makes a JSON object of a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The object, on one line, in ASCII."""
        at = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        now = about()
        context = {"worker": _worker, "round_id": now.round_id, "trace_id": now.trace_id}
        line |= {name: value for name, value in context.items() if value}
        if record.exc_info and record.exc_info[0]:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line)


def as_json(settings: Settings) -> bool:
    """Whether `settings` ask for JSON; from then on all that this process says is that."""
    if settings.log_format != "json":
        return False
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    sys.excepthook = _ended
    threading.excepthook = _thread_ended
    return True


def say_at_once(text: str) -> None:
    """Write a line from a signal's handler, where no lock may be waited for."""
    if log.isEnabledFor(logging.INFO):
        fields = {"name": __name__, "levelname": "INFO", "levelno": logging.INFO, "msg": text}
        line = JsonLines().format(logging.makeLogRecord(fields))
        with suppress(OSError):
            os.write(2, f"{line}\n".encode())


def are_json() -> bool:
    """Whether this process' lines are JSON."""
    return any(isinstance(each.formatter, JsonLines) for each in logging.root.handlers)


def _ended(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    log.critical("the process ends: %r", error, exc_info=(kind, error, trace))


def _thread_ended(ended: threading.ExceptHookArgs) -> None:
    name = ended.thread.name if ended.thread else "?"
    # Python's own hook leaves these out as well.
    if ended.exc_type is not SystemExit:
        error = ended.exc_value or ended.exc_type()
        log.critical(
            "thread %s ends: %r", name, error, exc_info=(ended.exc_type, error, ended.exc_traceback)
        )
