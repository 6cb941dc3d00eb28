"""The command `poc`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run `poc` and exit; a Ctrl-C while it is still being imported ends it without a traceback."""
    _open_what_is_closed()
    try:
        from worker.cli.app import run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


def _open_what_is_closed() -> None:
    """Give /dev/null to each standard stream that a caller has closed (`poc worker 2>&-`).

    Else the next file that is opened takes its place, and what is said goes into that.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            stream = os.fdopen(descriptor, "w", closefd=False)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
