"""What was done to the node, in order: where to look first when an invariant is broken."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from pathlib import Path

#: Lines that are remembered, and that are shown of each kind.
KEPT, SHOWN = 5000, 8
#: Begins a line about what was broken or mended on purpose.
FAULT = "fault: "


class Journal:
    """A line for each command, fault, and start or end of a process. Thread-safe.

    All are written to `path`, under the local time as in the logs of the processes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._lines: deque[str] = deque(maxlen=KEPT)

    def note(self, what: str) -> None:
        """Write a line."""
        now = time.time()
        line = f"{time.strftime('%H:%M:%S', time.localtime(now))}.{now % 1 * 1000:03.0f} {what}"
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            self._lines.append(line)
            file.write(f"{line}\n")

    def about(self, detail: str) -> list[str]:
        """The last faults, and the last lines with a name that `detail` has, oldest first.

        A name has letters and digits: a round's, a task's, a block's, a process'.
        """
        names = re.findall(r"(?=[\w-]*[a-z])(?=[\w-]*\d)[\w-]+", detail)
        said = re.compile("|".join(rf"(?<![\w-]){re.escape(name)}(?![\w-])" for name in names))
        with self._lock:
            lines = list(enumerate(self._lines))
        faults = [each for each in lines if FAULT in each[1]]
        named = [each for each in lines if names and said.search(each[1])]
        both = [each for each in named if FAULT in each[1]]
        shown = {*faults[-SHOWN:], *named[-SHOWN:], *both[-SHOWN:]}
        return [line for _, line in sorted(shown)]
