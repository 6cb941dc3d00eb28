"""Commands about rounds and validations: they ask workers, through the client."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from shared import tracing
from shared.config import MAX_VALID
from shared.errors import InvalidRequest, PoCError
from shared.requests import read
from shared.schemes import Batch, Verdict
from shared.settings import Settings, load_settings
from shared.status import RoundStatus, WorkerStatus, printable
from worker.cli.options import (
    FRAUD,
    Json,
    NewRoundId,
    Replace,
    Timeout,
    read_json,
    require,
    takes_config,
    takes_settings,
)
from worker.tools import show

if TYPE_CHECKING:
    from shared.client import PoCClient
    from shared.config import PoCConfig

#: Seconds between two looks at who works.
LOOK_S = 1.0


def _traced(**given: Any) -> Settings:
    settings = load_settings(**given)
    tracing.start("poc", settings.namespace)
    return settings


_client = takes_settings("redis_url", "namespace", build=_traced)


@_client
@takes_config
def init(
    settings: Settings,
    config: dict[str, Any] | None,
    round_id: NewRoundId = None,
    replace: Replace = False,
    timeout: Timeout = 30.0,
    as_json: Json = False,
) -> None:
    """Open a round without starting it.

    poc init --block-hash ab12 --block-height 7 --public-key me --r-target 1.4
    """
    from shared.client import PoCClient

    require(config or {})
    with _waiting():
        status = PoCClient(settings, timeout).init(config or {}, round_id, replace)
    _print_status(status, as_json)


@_client
@takes_config
def generate(
    settings: Settings,
    config: dict[str, Any] | None,
    round_id: NewRoundId = None,
    replace: Replace = False,
    until_valid: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_VALID, metavar="<int>", help="End at so many valid nonces."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(metavar="<float>", help="End after so many seconds.")
    ] = None,
    wait: Annotated[
        bool | None,
        typer.Option(
            "--wait/--no-wait",
            help="Follow the round to its end. (with --until-valid or --seconds)",
            show_default=False,
        ),
    ] = None,
    timeout: Timeout = 30.0,
    as_json: Json = False,
) -> None:
    """Generate in the current round or, with a config, in a new one.

    poc generate --config round.json --seconds 60

    With --until-valid or --seconds the workers end the round, at what comes first. Anybody may
    stop it before. Ctrl-C ends only the waiting; `poc stop` ends the round. Exit status: 0 when
    the round has ended, by whomever.
    """
    from shared.client import PoCClient

    with _waiting():
        ticket = PoCClient(settings, timeout).generate(
            config, round_id, replace, until_valid, seconds
        )
    generating, ends = ticket.round_id, bool(until_valid or seconds)
    if not (ends if wait is None else wait):
        if as_json:
            typer.echo(json.dumps({"task_id": ticket.id, "round_id": generating}))
        else:
            said = show.generating(generating, *_expected(settings, generating))
            show.out.print(said, soft_wrap=True)
        return
    show.news.print(f"generating in round {generating}; waiting for its end")
    how = "it ends by itself, or by `poc stop`" if ends else "`poc stop` ends it"
    with (
        _goes_on("the round", how),
        show.following_round(ends=ends) as progress,
        _telling_who_works(settings),
    ):
        status = ticket.wait(on_progress=progress.update)
    if ends and not status.is_due:
        show.news.print("it was ended by somebody else, before it came to its own end")
    _print_status(status, as_json)


@_client
@takes_config
def validate(
    settings: Settings,
    config: dict[str, Any] | None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Batch of proofs as JSON to judge, - for standard input."
        ),
    ] = None,
    evidence: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="What `poc evidence` printed: judge its batch again, and compare."
        ),
    ] = None,
    round_id: NewRoundId = None,
    replace: Replace = False,
    timeout: Timeout = 30.0,
    as_json: Json = False,
) -> None:
    """Judge a batch of proofs or, without one, end the generation of the round.

    poc validate --batch proofs.json --config round.json

    Without a config the current round's counts. Exit status: 0 honest, 3 fraud.

    poc validate --evidence evidence.json
    """
    from shared.client import PoCClient
    from shared.evidence import Evidence
    from worker.tools.replay import Replay

    client = PoCClient(settings, timeout)
    if evidence is not None and (batch is not None or config or round_id or replace):
        raise InvalidRequest("--evidence brings its batch and its config: give nothing else")
    kept = None if evidence is None else read(Evidence, read_json(evidence))
    if batch is None and kept is None:
        with _waiting():
            ended = client.validate(config, round_id, replace)
        _print_status(ended, as_json)
        return
    if round_id or replace:
        raise InvalidRequest("--batch is judged beside the rounds: no --round-id, no --replace")
    if kept:
        verdict = _judged(client, kept.batch, kept.config)
    else:
        verdict = _judged(client, read_json(batch or ""), config)
    if kept:
        Replay(kept, verdict).show(as_json=as_json)
    elif as_json:
        typer.echo(verdict.model_dump_json())
    else:
        show.out.print(show.verdict_table(verdict))
    if verdict.is_fraud:
        raise typer.Exit(FRAUD)


@_client
def stop(
    settings: Settings,
    round_id: Annotated[
        str | None, typer.Option(help="Only this round; if it is still to come, it is refused.")
    ] = None,
    timeout: Timeout = 30.0,
    as_json: Json = False,
) -> None:
    """Stop the round; `poc generate` goes on where it was.

    poc stop
    """
    from shared.client import PoCClient

    with _waiting():
        stopped = PoCClient(settings, timeout).stop(round_id)
    if round_id and stopped.round_id != round_id:
        show.news.print(
            f"there is no round {round_id}; if it still comes, it is refused. The current round "
            "is as it was:",
            soft_wrap=True,
        )
    _print_status(stopped, as_json)


@_client
def cancel(
    settings: Settings,
    validation: Annotated[str, typer.Argument(metavar="ID", help="The id of its task.")],
    timeout: Timeout = 30.0,
    as_json: Json = False,
) -> None:
    """End a validation before it has a verdict.

    poc cancel 3f0c2f4e-58c7-4c36-9bd2-0f8f5f6f7a11

    Its ticket then fails with Cancelled, and its callback says so. A round ends by `poc stop`.
    """
    from shared.client import PoCClient

    with _waiting():
        done = PoCClient(settings, timeout).cancel(validation)
    if as_json:
        typer.echo(done.model_dump_json())
    else:
        said = "was cancelled" if done.cancelled else "had ended before; nothing was changed"
        show.out.print(Text(f"validation {printable(validation)} {said}"), soft_wrap=True)


def _judged(
    client: PoCClient, batch: Batch | dict[str, Any], config: PoCConfig | dict[str, Any] | None
) -> Verdict:
    """The verdict on a batch, once it is there; the evidence of fraud is named."""
    with _waiting():
        ticket = client.validate_batch(batch, config)
    how = f"its verdict is posted; `poc cancel {ticket.id}` ends it"
    with _goes_on("the validation", how), show.following_batch() as progress:
        verdict = ticket.wait(on_progress=progress.update)
    if verdict.is_fraud:
        show.news.print(f"what it rests on: poc evidence {ticket.id}", soft_wrap=True)
    return verdict


def _expected(settings: Settings, round_id: str) -> tuple[RoundStatus, list[WorkerStatus]]:
    """The round and its workers, to guess by; empty where this user may not look."""
    from shared.store import Store

    with closing(Store(settings)) as store, suppress(PoCError):
        return store.rounds.status(round_id) or RoundStatus(), store.workers.listing()
    return RoundStatus(), []


def _print_status(status: RoundStatus, as_json: bool) -> None:
    if as_json:
        typer.echo(status.model_dump_json())
    else:
        show.out.print(show.round_table(status))


@contextmanager
def _telling_who_works(settings: Settings) -> Iterator[None]:
    """While the block runs, say when the last worker goes, and when one is there again."""
    from shared.store import Store

    ended = threading.Event()

    def watch() -> None:
        alone = False
        with closing(Store(settings)) as store:
            while not ended.wait(LOOK_S):
                with suppress(PoCError):  # Redis may be away, or not let this user look
                    now = not store.workers.listing()
                    if now and not alone:
                        show.news.print(
                            "no worker lives: the round stands still until one comes. Start one: "
                            "poc worker --help",
                            soft_wrap=True,
                        )
                    elif alone and not now:
                        show.news.print("a worker is back")
                    alone = now

    watching = threading.Thread(target=watch, name="who works", daemon=True)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()


def _waiting() -> AbstractContextManager[object]:
    """A sign of life on a terminal until a worker has answered."""
    return show.news.status("waiting for a worker's answer")


@contextmanager
def _goes_on(what: str, then: str) -> Iterator[None]:
    """A Ctrl-C in the block only ends the waiting, and says so."""
    try:
        yield
    except KeyboardInterrupt:
        show.news.print(f"no longer watching; {what} goes on: {then}")
        raise
