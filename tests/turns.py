"""What a thread does in its turns, as a test scripts it."""

from __future__ import annotations

import threading

import pytest


class Turns:
    """Does what the script says, one a turn, then sets `closing`; None is a turn that is done."""

    def __init__(self, closing: threading.Event, *script: Exception | None) -> None:
        self._closing, self._script = closing, list(script)
        self.count = 0

    def __call__(self) -> int:
        self.count += 1
        outcome = self._script.pop(0)
        if not self._script:
            self._closing.set()
        if outcome:
            raise outcome
        return self.count


def levels(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.levelname for record in caplog.records]
