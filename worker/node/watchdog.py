"""The watchdog: it ends a process in which nothing moves any more.

A thread that hangs, in a device, in a library or in a call that never returns, can't be
interrupted. So the process ends, once what it holds has been given back.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterator

from shared.errors import Hung

log = logging.getLogger(__name__)

#: Seconds between two looks, at most.
LOOK_S = 1.0
#: Seconds past the deadline that the watchdog itself may come to nothing: because something
#: keeps Python's lock, or because Redis hangs, too. The process then ends all the same.
GRACE_S = 60.0


class Watchdog(threading.Thread):
    """Calls `on_hung` when a step that is watched has not ended after `deadline_s` seconds.

    One at a time in a process. `setting` is the name of the one that has the deadline. `on_look` is
    called after each look that found nothing wrong.
    """

    def __init__(
        self,
        deadline_s: float,
        setting: str,
        on_hung: Callable[[Hung], None],
        on_look: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name="poc-watchdog", daemon=True)
        self._deadline_s, self._setting, self._on_hung = deadline_s, setting, on_hung
        self._on_look = on_look
        self._over = threading.Event()
        # The thread whose step is watched; a new tuple for each step.
        self._step: tuple[int] | None = None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the block, a step of the calling thread. One at a time."""
        self._step = (threading.get_ident(),)
        try:
            yield
        finally:
            self._step = None

    def stop(self) -> None:
        """Watch no more."""
        self._over.set()
        if self.is_alive() and self is not threading.current_thread():
            self.join()
        faulthandler.cancel_dump_traceback_later()

    def run(self) -> None:
        """The thread's body."""
        look_s = min(LOOK_S, self._deadline_s / 4)
        # Looks are counted, not seconds: a process that was frozen as a whole did not hang.
        silent_s, seen = 0.0, None
        while not self._over.wait(look_s):
            self._arm_hard_limit()
            step = self._step
            silent_s = silent_s + look_s if step is not None and step is seen else 0.0
            seen = step
            if step is not None and silent_s >= self._deadline_s:
                self._report_hang(step[0])
                return
            self._on_look()

    def _arm_hard_limit(self) -> None:
        """End the process unless this, or `stop`, is called in time; needs no lock of Python's."""
        if sys.__stderr__ is not None:
            faulthandler.dump_traceback_later(
                self._deadline_s + GRACE_S, exit=True, file=sys.__stderr__
            )

    def _report_hang(self, thread: int) -> None:
        error = Hung(f"no progress for {self._deadline_s:g} s ({self._setting})")
        frame = sys._current_frames().get(thread)  # noqa: SLF001 - the public way to it
        stack = "".join(traceback.format_stack(frame)) if frame else ""
        log.critical(
            "%s: what the worker holds is free, and it ends. Raise %s if that may take so long. It "
            "hangs in\n%s",
            error,
            self._setting,
            stack,
        )
        self._on_hung(error)
