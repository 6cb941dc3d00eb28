"""Only what Celery shows of its own troubles is expected in a log."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.traces import ROOT, Trace, traces

CELERY = "/venv/lib/python3.11/site-packages/celery/app/trace.py"
#: Theirs, though a folder of it is named as ours.
CONSUMER = "/venv/lib/python3.11/site-packages/celery/worker/consumer/consumer.py"
REDIS = "/venv/lib/python3.11/site-packages/redis/connection.py"
TASKS = f"{ROOT}/worker/queue/tasks.py"
TRANSPORT = f"{ROOT}/worker/queue/transport.py"
REFUSED = "redis.exceptions.ConnectionError: Error 111 connecting to 127.0.0.1:6379."


def text(error: str, *files: str) -> str:
    """A traceback through `files`, as Python prints it."""
    frames = "".join(f'  File "{file}", line 7, in f\n    g()\n    ^^^\n' for file in files)
    return f"Traceback (most recent call last):\n{frames}{error}\n"


def trace(*files: str, error: str = REFUSED) -> Trace:
    """What a log with one traceback through `files` holds."""
    log = f"a line\n{text(error, *files)}another line\n"
    (found,) = traces(log.splitlines(keepends=True))
    return found


@pytest.mark.parametrize(
    "files",
    [
        pytest.param((CELERY, TASKS, REDIS), id="a task lets it through"),
        pytest.param((TASKS, REDIS), id="we caught it and show it"),
        pytest.param((CELERY, f"{ROOT}/shared/store/rounds.py", REDIS), id="the store"),
        pytest.param((CELERY, TRANSPORT, TASKS, REDIS), id="beside the transport"),
        pytest.param(("/usr/lib/python3.11/threading.py", REDIS), id="the end of a thread"),
        pytest.param((), id="without frames"),
    ],
)
def test_what_our_code_ought_to_have_handled_is_a_surprise(files: tuple[str, ...]) -> None:
    """Given an error of Redis, it is, unless only Celery had to do with it."""
    assert not trace(*files).is_expected


@pytest.mark.parametrize("files", [(CONSUMER, REDIS), (CELERY, TRANSPORT, REDIS)])
def test_what_celery_shows_of_a_lost_redis_is_expected(files: tuple[str, ...]) -> None:
    """Given no code of ours, or the transport, through which it has to reach Celery."""
    assert trace(*files).is_expected


def test_another_error_is_a_surprise_wherever_it_shows() -> None:
    """Given one that is not of Redis."""
    assert not trace(CELERY, error="AttributeError: 'NoneType'").is_expected


def test_an_engine_without_memory_is_expected() -> None:
    """Given the error of the fake engine; any other lack of memory is none of its doing."""
    asked = "MemoryError: the fake engine was asked to run out of memory"
    assert trace(TASKS, error=asked).is_expected
    assert not trace(TASKS, error="MemoryError").is_expected


def chain(*links: Trace) -> list[Trace]:
    """What a log holds of errors that were each raised while the one before was handled."""
    between = "\nDuring handling of the above exception, another exception occurred:\n\n"
    log = between.join(text(link.error, *map(str, link.files)) for link in links)
    return list(traces((log + "a line\n" + text("OSError: another")).splitlines(keepends=True)))


def test_a_chain_is_one_traceback_with_the_last_error() -> None:
    """Given a reset connection that redis shows as an error of its own, then that is expected."""
    whole, _ = chain(trace(REDIS, error="ConnectionResetError: gone"), trace(CELERY, REDIS))
    assert whole == Trace((Path(CELERY), Path(REDIS), Path(REDIS)), REFUSED)
    assert whole.is_expected


def test_no_link_of_a_chain_hides_our_code() -> None:
    """Given a defect of ours that Celery could not report because Redis was away."""
    whole, _ = chain(trace(CELERY, TASKS, error="AttributeError: 'x'"), trace(CELERY, REDIS))
    assert not whole.is_expected


def test_tracebacks_that_follow_each_other_are_no_chain() -> None:
    """Given another one later in the log."""
    assert [each.error for each in chain(trace(CELERY, REDIS))] == [REFUSED, "OSError: another"]
