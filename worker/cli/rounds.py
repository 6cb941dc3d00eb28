"""Commands about rounds: they ask workers through the client, or read the store."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.live import Live

from shared import tracing
from shared.data import MAX_PROOF_NONCES, ProofBatch
from shared.errors import (
    InvalidRequest,
    PoCError,
    RoundMismatch,
    RoundNotInitialized,
    StoreRefused,
    StoreUnavailable,
)
from shared.settings import Settings, load_settings
from shared.status import Incident, RoundStatus, WorkerStatus
from worker.cli.options import (
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
from worker.tools.live import LiveView

if TYPE_CHECKING:
    from shared.store import Store

#: Exit status of a validation that found fraud.
FRAUD = 3
#: Valid nonces that a status shows.
NEWEST = 10
#: Seconds between two looks of `poc status --watch`.
WATCH_S = 1.0


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
    wait: Annotated[bool, typer.Option("--wait", help="Follow the round to its end.")] = False,
    timeout: Timeout = 30.0,
    as_json: Json = False,
) -> None:
    """Generate in the current round or, with a config, in a new one.

    poc generate --config round.json --wait

    Ctrl-C while waiting ends only the waiting; `poc stop` ends the round.
    """
    from shared.client import PoCClient

    with _waiting():
        ticket = PoCClient(settings, timeout).generate(config, round_id, replace)
    generating = ticket.said.get("round_id", "")
    if not wait:
        if as_json:
            typer.echo(json.dumps({"task_id": ticket.id, "round_id": generating}))
        else:
            said = show.generating(generating, *_expected(settings, generating))
            show.out.print(said, soft_wrap=True)
        return
    show.news.print(f"generating in round {generating}; waiting for its end")
    with _goes_on("the round", "`poc stop` ends it"), show.following_round() as progress:
        status = ticket.wait(on_progress=progress.update)
    _print_status(status, as_json)


@_client
@takes_config
def validate(
    settings: Settings,
    config: dict[str, Any] | None,
    batch: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="ProofBatch as JSON to judge, - for standard input."),
    ] = None,
    round_id: NewRoundId = None,
    replace: Replace = False,
    timeout: Timeout = 30.0,
    as_json: Json = False,
) -> None:
    """Judge a batch of proofs or, without one, end the generation of the round.

    poc validate --batch proofs.json --config round.json

    Without a config the current round's counts. Exit status: 0 honest, 3 fraud.
    """
    from shared.client import PoCClient

    client = PoCClient(settings, timeout)
    if batch is None:
        with _waiting():
            ended = client.validate(config, round_id, replace)
        _print_status(ended, as_json)
        return
    if round_id or replace:
        raise InvalidRequest("--batch is judged beside the rounds: no --round-id, no --replace")
    given = read_json(batch)
    with _waiting():
        ticket = client.validate_batch(given, config)
    with _goes_on("the validation", "its verdict is posted"), show.following_batch() as progress:
        verdict = ticket.wait(on_progress=progress.update)
    if as_json:
        typer.echo(verdict.model_dump_json())
    else:
        show.out.print(show.verdict_table(verdict))
    if verdict.fraud_detected:
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
def status(
    settings: Settings,
    round_id: Annotated[
        str | None, typer.Option(help="A round that is kept, not the current one.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Again each second, until Ctrl-C.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the round and the workers; needs Redis, but no worker.

    poc status --watch
    """
    from shared.store import Store

    with closing(Store(settings)) as store:
        if watch:
            _watch(store, round_id, as_json)
            return
        seen = _look(store, round_id)
        if as_json:
            typer.echo(_as_json(*seen))
        else:
            show.out.print(show.node_view(seen))


@_client
def proofs(
    settings: Settings,
    round_id: Annotated[str | None, typer.Option(help="A round that is kept.")] = None,
    start: Annotated[
        int, typer.Option(min=0, metavar="<int>", help="Valid nonces to leave out.")
    ] = 0,
    count: Annotated[
        int,
        typer.Option(min=1, max=MAX_PROOF_NONCES, metavar="<int>", help="Valid nonces at most."),
    ] = MAX_PROOF_NONCES,
) -> None:
    """Print a round's valid nonces as the batch that `poc validate` takes.

    poc proofs > proofs.json
    """
    from shared.store import Store

    with closing(Store(settings)) as store:
        found, *_ = _look(store, round_id)
        if not found.round_id:
            raise RoundNotInitialized
        nonces, dist = store.rounds.found(found.round_id, start, count)
    if (end := start + len(nonces)) < found.total_valid:
        show.news.print(
            f"printed {len(nonces):,} of {found.total_valid:,} valid nonces; the next: "
            f"--start {end}",
            soft_wrap=True,
        )
    batch = ProofBatch(
        public_key=found.public_key,
        block_hash=found.block_hash,
        block_height=found.block_height,
        nonces=nonces,
        dist=dist,
        node_id=found.node_id,
    )
    typer.echo(batch.model_dump_json())


def _expected(settings: Settings, round_id: str) -> tuple[RoundStatus, list[WorkerStatus]]:
    """The round and its workers, to guess by; empty where this user may not look."""
    from shared.store import Store

    with closing(Store(settings)) as store, suppress(PoCError):
        return store.rounds.status(round_id) or RoundStatus(), store.workers.listing()
    return RoundStatus(), []


def _look(store: Store, round_id: str | None) -> show.Seen:
    found = store.rounds.status(round_id, newest=NEWEST)
    if found is None:
        raise RoundMismatch(f"no round {round_id} is kept; `poc status` shows the current one")
    return found, store.workers.listing(), store.workers.incidents()


def _watch(store: Store, round_id: str | None, as_json: bool) -> None:
    seen: show.Seen | None = None
    told = ""
    view = LiveView()
    try:
        with Live(console=show.news if as_json else show.out, auto_refresh=False) as live:
            while True:
                trouble = ""
                try:
                    seen = _look(store, round_id)
                    if as_json:
                        typer.echo(_as_json(*seen))
                except StoreRefused:  # waiting mends nothing
                    raise
                except StoreUnavailable as error:
                    trouble = str(error)
                if not as_json:
                    live.update(view.after(seen, trouble), refresh=True)
                elif trouble and trouble != told:
                    show.news.print(f"{trouble}; trying again", soft_wrap=True)
                told = trouble
                time.sleep(WATCH_S)
    except KeyboardInterrupt:  # the way to end it
        return


def _print_status(status: RoundStatus, as_json: bool) -> None:
    if as_json:
        typer.echo(status.model_dump_json())
    else:
        show.out.print(show.round_table(status))


def _as_json(
    status: RoundStatus, workers: Sequence[WorkerStatus], incidents: Sequence[Incident]
) -> str:
    return json.dumps(
        {
            "round": status.model_dump(mode="json"),
            "workers": [each.model_dump(mode="json") for each in workers],
            "incidents": [each.model_dump(mode="json") for each in incidents],
        }
    )


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
