"""Scripts take sizes that there can be, and say in one line what a user can mend."""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import Any

import pytest

from shared.errors import ConfigError
from worker.tools import script


@pytest.mark.parametrize(
    ("kind", "text", "number"),
    [
        (script.size, "1", 1),
        (script.sizes, "1,7,32", [1, 7, 32]),
        (script.seconds, "0.25", 0.25),
        (script.share, "0", 0.0),
        (script.share, "1", 1.0),
    ],
)
def test_numbers(kind: Callable[[str], Any], text: str, number: Any) -> None:
    assert kind(text) == number


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *((script.size, text) for text in ("0", "-1", "1.5", "²", "")),
        *((script.sizes, text) for text in ("32,0", "32,", "")),
        *((script.seconds, text) for text in ("0", "0.01", "1e300", "inf", "nan", "soon")),
        *((script.share, text) for text in ("-0.1", "1.1", "nan", "half")),
    ],
)
def test_what_there_can_not_be(kind: Callable[[str], Any], text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is no number of"):
        kind(text)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ConfigError("POC_TILE: no"), "POC_TILE: no"),
        (FileNotFoundError(2, "No such file", "out.json"), "No such file: 'out.json'"),
    ],
)
def test_an_error_is_one_line(error: Exception, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def main() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["somewhere/pages.py"])
    with pytest.raises(SystemExit, match=rf"^pages\.py: .*{says}$"):
        script.run(main)


def test_a_defect_is_not_hidden() -> None:
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        script.run(main)
