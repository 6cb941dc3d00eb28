"""The command `poc`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run `poc` and exit; a Ctrl-C while it is still being imported ends it without a traceback."""
    try:
        from worker.cli.app import run

        run()
    except KeyboardInterrupt:
        sys.exit(130)
