"""Commands that only look: they read the store, and need no worker."""

from __future__ import annotations

import json
import time
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live

from shared.errors import RoundMismatch, RoundNotInitialized, StoreRefused, StoreUnavailable
from shared.settings import Settings
from shared.wire import MAX_PROOF_NONCES
from worker.cli.options import Json, takes_settings
from worker.tools import show
from worker.tools.live import LiveView

if TYPE_CHECKING:
    from shared.store import Store

#: Valid nonces that a status shows.
NEWEST = 10
#: Seconds between two looks of `poc status --watch`.
WATCH_S = 1.0

_client = takes_settings("redis_url", "namespace")


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
            typer.echo(_as_json(seen))
        else:
            show.out.print(show.node_view(seen))


@_client
def rounds(
    settings: Settings,
    newest: Annotated[
        int, typer.Option(min=1, max=1000, metavar="<int>", help="Rounds at most.")
    ] = 20,
    as_json: Json = False,
) -> None:
    """List the rounds that are kept, newest first; needs Redis, but no worker.

    poc rounds
    """
    from shared.store import Store

    with closing(Store(settings)) as store:
        kept = store.rounds.kept(newest)
    if as_json:
        typer.echo(json.dumps([each.model_dump(mode="json") for each in kept]))
    else:
        show.out.print(show.rounds_table(kept))


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
        nonces, proofs = store.rounds.found(found.round_id, start, count, found.scheme)
    if (end := start + len(nonces)) < found.total_valid:
        show.news.print(
            f"printed {len(nonces):,} of {found.total_valid:,} valid nonces; the next: "
            f"--start {end}",
            soft_wrap=True,
        )
    config = found.config  # the round's own is not for everybody who may look
    batch = config.terms.batch_of(config, nonces, proofs)
    typer.echo(batch.model_dump_json())


def _look(store: Store, round_id: str | None) -> show.Seen:
    found = store.rounds.status(round_id, newest=NEWEST)
    if found is None:
        raise RoundMismatch(f"no round {round_id} is kept; `poc rounds` lists those that are")
    return show.Seen(found, store.workers.listing(), store.workers.incidents(), store.callbacks())


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
                        typer.echo(_as_json(seen))
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


def _as_json(seen: show.Seen) -> str:
    return json.dumps(
        {
            "round": seen.round.model_dump(mode="json"),
            "workers": [each.model_dump(mode="json") for each in seen.workers],
            "incidents": [each.model_dump(mode="json") for each in seen.incidents],
            "callbacks": seen.callbacks.model_dump(mode="json"),
        }
    )
