"""Tracebacks in the processes' logs: whose they are, and which are no surprise."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from support import ROOT

#: Our code.
OURS = (ROOT / "shared", ROOT / "worker")
#: Classes of Celery's with a change: what passes through them has to reach Celery.
CELERYS = (ROOT / "worker/queue/transport.py", ROOT / "worker/queue/results.py")
#: How Celery and kombu show, with a traceback of theirs, that Redis refuses them; they try again.
THEIR_ERRORS = ("redis.exceptions.", "billiard.exceptions.RestartFreqExceeded")
#: The defect of an engine that is there on purpose.
ENGINES_ERROR = "MemoryError: the fake engine"

#: Between an error and one that was raised while it was handled.
CHAINED = ("During handling of the above exception", "The above exception was the direct cause")

_FRAME = re.compile(r'\s+File "(.+?)", line ')


@dataclass(frozen=True)
class Trace:
    """One traceback: the files of its frames, from the one that caught it, and its error.

    Errors that were being handled when it was raised are part of it: their frames come last.
    """

    files: tuple[Path, ...]
    error: str

    @property
    def is_ours(self) -> bool:
        """Whether our code caught it, or let it through to whoever did."""
        return any(
            file not in CELERYS and any(file.is_relative_to(top) for top in OURS)
            for file in self.files
        )

    @property
    def is_expected(self) -> bool:
        """Whether it may show when what it tells of was injected."""
        if self.error.startswith(ENGINES_ERROR):
            return True
        caught_by_theirs = bool(self.files) and "site-packages" in self.files[0].parts
        return caught_by_theirs and not self.is_ours and self.error.startswith(THEIR_ERRORS)


def traces(log: Iterable[str]) -> Iterator[Trace]:
    """All tracebacks among the lines of a log."""
    found: Trace | None = None
    context: tuple[Path, ...] = ()
    files: list[Path] | None = None
    for line in log:
        if line.startswith("Traceback"):
            if found:
                yield found
            found, files = None, []
        elif files is not None and line.startswith(" "):
            if frame := _FRAME.match(line):
                files.append(Path(frame[1]))
        elif files is not None:
            found = Trace((*files, *context), line.strip()[:200])
            context, files = (), None
        elif found and line.startswith(CHAINED):
            context, found = found.files, None
    if found:
        yield found
