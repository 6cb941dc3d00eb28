"""The command line of a script: sizes that there can be, and errors in one line."""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

from shared.errors import PoCError


def size(text: str) -> int:
    """How many there are of something: 1 or more."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise ArgumentTypeError(f"{text!r} is no number of 1 or more")
    return int(text)


def sizes(text: str) -> list[int]:
    """Some of them, with commas between."""
    return [size(each) for each in text.split(",")]


def seconds(text: str) -> float:
    """A time, and no endless one."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.0 < number < float("inf"):
        raise ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return number


def run(main: Callable[[], None]) -> None:
    """Run a script; what its user can mend ends it in one line."""
    try:
        main()
    except (PoCError, OSError) as error:  # the latter of a file that is not there, say
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
