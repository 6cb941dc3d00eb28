"""The command line of a script of benchmarks/: sizes that there can be, and errors in one line."""

from __future__ import annotations

import math
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from shared.errors import PoCError
from shared.requests import explain

#: Of a measurement: the shortest and the longest.
SECONDS = 0.1, 86_400


def size(text: str) -> int:
    """How many there are of something: 1 or more."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise ArgumentTypeError(f"{text!r} is no number of 1 or more")
    return int(text)


def sizes(text: str) -> list[int]:
    """Some of them, with commas between."""
    return [size(each) for each in text.split(",")]


def seconds(text: str) -> float:
    """A time in which something can be measured, and no endless one."""
    number = _number(text)
    if not SECONDS[0] <= number <= SECONDS[1]:
        raise ArgumentTypeError(f"{text!r} is no number of {SECONDS[0]:g} to {SECONDS[1]:g}")
    return number


def share(text: str) -> float:
    """A part of a whole: 0 to 1."""
    number = _number(text)
    if not 0.0 <= number <= 1.0:
        raise ArgumentTypeError(f"{text!r} is no number of 0 to 1")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def run(main: Callable[[], None]) -> None:
    """Run a script; what its user can mend ends it in one line."""
    try:
        main()
    # Of a config that was made of the options, or of a file that is not there, say.
    except (PoCError, ValidationError, OSError) as error:
        why = explain(error) if isinstance(error, ValidationError) else error
        sys.exit(f"{Path(sys.argv[0]).name}: {why}")
