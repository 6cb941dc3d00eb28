"""Log lines as JSON: what is in them, and what is not."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest

from shared import logs
from shared.about import About, at, note
from shared.settings import load_settings

log = logging.getLogger("test.logs")


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process' log is that of the tests again afterwards."""
    root = logging.root
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(logs, "_worker", "")
    root.handlers[:] = []
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives what this process has said so far, a dictionary a line."""
    stream = StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    assert logs.as_json(load_settings({"POC_LOG_FORMAT": "JSON"}))
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_an_object(lines: Any) -> None:
    """With what everybody looks for; its time is of RFC 3339, in UTC."""
    log.info("%d nonces\nin two lines", 4)
    (line,) = lines()
    at = line.pop("time")
    assert at[10] == "T"
    assert at.endswith("Z")
    assert line == {
        "level": "INFO",
        "logger": "test.logs",
        "message": "4 nonces\nin two lines",
    }


def test_half_a_character_is_no_trouble() -> None:
    """A path in another encoding has some."""
    line = logs.JsonLines().format(logging.makeLogRecord({"msg": "at \ud800"}))
    assert json.loads(line)["message"] == "at \ud800"


def test_a_line_tells_its_round_and_its_worker(lines: Any) -> None:
    """Where they are known, and with no call of the log naming them."""
    logs.call_process("w@host")
    with at(About("r1")):
        log.info("in a round")
    log.info("in none")
    first, second = lines()
    assert (first["worker"], first["round_id"]) == ("w@host", "r1")
    assert second["worker"] == "w@host"
    assert "round_id" not in second


def test_threads_are_at_their_own_rounds(lines: Any) -> None:
    note(About("r1"))
    other = threading.Thread(target=log.info, args=("of another thread",))
    other.start()
    other.join()
    log.info("of this one")
    note(About())
    assert [line.get("round_id") for line in lines()] == [None, "r1"]


def test_an_exception_is_a_field(lines: Any) -> None:
    """The whole traceback, on the line of what was said."""
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("it failed")
    (line,) = lines()
    assert line["message"] == "it failed"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: why")


def test_what_hangs_on_a_line_besides_is_left_out(lines: Any) -> None:
    """Celery hangs arguments on its lines: megabytes, or a URL whose path is secret."""
    log.info("received", extra={"data": {"kwargs": "https://example.org/secret"}})
    assert "secret" not in json.dumps(lines())


def test_lines_below_the_level_are_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    logs.as_json(load_settings({"POC_LOG_FORMAT": "json", "POC_LOG_LEVEL": "warning"}))
    log.info("no")
    logs.say_at_once("no")
    log.warning("yes")
    (line,) = capfd.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "yes"


def test_what_ends_a_thread_is_a_line(lines: Any) -> None:
    """Not a traceback of a dozen lines."""
    thread = threading.Thread(target=lambda: [][0], name="poc-x")
    thread.start()
    thread.join()
    (line,) = lines()
    assert line["message"].startswith("thread poc-x ends: IndexError(")
    assert "Traceback" in line["exception"]


def test_what_ends_the_process_is_a_line(lines: Any) -> None:
    try:
        raise ValueError("why")
    except ValueError as error:
        sys.excepthook(ValueError, error, error.__traceback__)
    (line,) = lines()
    assert (line["level"], line["message"]) == ("CRITICAL", "the process ends: ValueError('why')")


def test_text_is_left_to_those_who_make_it() -> None:
    """It is the default."""
    assert not logs.as_json(load_settings({}))
    assert not logs.are_json()
