"""`poc` and its commands. Each imports what it needs itself, so that `--help` is fast."""

from __future__ import annotations

import errno
import logging
import os
import sys
from io import TextIOWrapper
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from shared import logs
from shared.errors import (
    ConfigError,
    InvalidRequest,
    PoCError,
    RoundInProgress,
    RoundNotInitialized,
    StoreFailed,
    StoreUnavailable,
)
from shared.requests import explain
from shared.version import installed
from worker.cli import measures, processes, receipts, rounds, views
from worker.cli.sections import Command, Group

log = logging.getLogger(__name__)

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(installed() or "not installed: run from a source tree")
        raise typer.Exit


@app.callback()
def _poc(
    show_version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version."),
    ] = False,
) -> None:
    """Proof of Compute rounds on a worker that is pinned to one GPU.

    First steps: `poc demo` runs a whole round, `poc doctor` finds what is missing.

    A node: `poc worker --gpu all` computes, `poc api` serves its status, `poc generate` begins a
    round, `poc status --watch` follows it and `poc stop` ends it.

    An option that is a setting can be a variable too: --redis-url is POC_REDIS_URL. A secret may be
    in a file: POC_REDIS_URL_FILE names it.

    Tab completes commands and options in the next shell after `poc --install-completion`.

    Exit status: 0 done, 1 refused or failed, 2 wrong options, settings or files, 3 fraud.
    """


_WORK, _ROUNDS, _MEASURES, _TOOLS = "Processes", "Rounds", "Measures", "Tools"
for _panel, _commands in {
    _WORK: (processes.worker, processes.api, processes.gateway, processes.callbacks),
    _ROUNDS: (
        rounds.init,
        rounds.generate,
        rounds.validate,
        rounds.stop,
        rounds.cancel,
        views.status,
        views.rounds,
        views.proofs,
        receipts.receipt,
    ),
    _MEASURES: (
        measures.calibrate,
        measures.power,
        measures.selfcheck,
        measures.selftest,
        measures.evidence,
    ),
    _TOOLS: (
        processes.demo,
        processes.simulate_epoch,
        processes.doctor,
        processes.make_model,
        processes.bench,
    ),
}.items():
    for _command in _commands:
        app.command(cls=Command, rich_help_panel=_panel)(_command)


#: What to do about an error, in words of this command line.
_HINTS: dict[type[PoCError], str] = {
    RoundInProgress: "; `poc stop` ends it, --replace puts the new one in its place",
    RoundNotInitialized: "; open one, see `poc generate --help`",
    StoreUnavailable: "; `poc doctor` looks into it",
    StoreFailed: "; `poc doctor` looks into it",
}


#: What the system says of output that nobody can take.
_CANT_WRITE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def run() -> None:
    """Run `poc` and exit; expected trouble is one line, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a locale may lack what we show
    try:
        try:
            app(prog_name="poc")
        except ValidationError as error:  # of a config that a command made of its options
            raise InvalidRequest(explain(error)) from None
        finally:
            sys.stdout.flush()
    except PoCError as error:
        hint = _HINTS.get(type(error), "")
        text = str(error).rstrip(".") if hint else str(error)
        _complain(f"{text}{hint}")
        sys.exit(2 if isinstance(error, ConfigError | InvalidRequest) else 1)
    except OSError as error:
        if error.errno not in _CANT_WRITE:
            raise
        _complain(f"the output can't be written: {error.strerror}")
        # What is left of it would fail once more as the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _complain(text: str) -> None:
    if logs.are_json():
        log.critical("%s", text)
        return
    Console(stderr=True).print(
        f"[bold red]error:[/] {escape(text)}", soft_wrap=True, highlight=False
    )
