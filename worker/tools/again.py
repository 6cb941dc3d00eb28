"""`poc` once more, as a child of this process."""

from __future__ import annotations

import sys
from pathlib import Path


def poc(*words: str) -> list[str]:
    """The command line of a child that runs the same code as this process.

    It looks for no modules in the directory that it happens to run in, which may have others of
    these names, unless that is where ours are.
    """
    safe = [] if Path.cwd() == Path(__file__).parents[2] else ["-P"]
    # Not by its name: installed, it is in another package.
    return [sys.executable, *safe, "-m", __name__.replace("tools.again", "cli"), *words]
