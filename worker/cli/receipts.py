"""The command that makes receipts of rounds, and checks them."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Annotated

import typer

from shared.errors import InvalidRequest, NotGenuine
from shared.settings import Settings
from worker.cli.options import read_text, takes_settings
from worker.tools import show


@takes_settings("redis_url", "namespace")
def receipt(
    settings: Settings,
    round_id: Annotated[
        str | None,
        typer.Argument(metavar="[ROUND]", help="A round that is kept; default the current one."),
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Check a receipt; - for standard input."),
    ] = None,
    signer: Annotated[
        str | None,
        typer.Option(metavar="<key>", help="With --verify: the public key that must have signed."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --verify: print all that the receipt tells.")
    ] = False,
) -> None:
    """Print a signed receipt of a round, or check one.

    poc receipt > receipt.json

    poc receipt --verify receipt.json --signer <its public key>

    It tells the config, counts, rates, callbacks and incidents of the round, and a digest of its
    valid nonces. POC_RECEIPT_KEY signs it. Exit status of a check: 0 genuine, 1 not.
    """
    if verify is not None:
        if round_id:
            raise InvalidRequest("--verify takes a file and no round")
        _check(verify, signer, as_json=as_json)
    elif signer:
        raise InvalidRequest("--signer goes with --verify; POC_RECEIPT_KEY is what signs")
    elif as_json:
        raise InvalidRequest("--json goes with --verify; a receipt is JSON in any case")
    else:
        _make(settings, round_id)


def _make(settings: Settings, round_id: str | None) -> None:
    from shared.envelope import Envelope
    from shared.receipt import PAYLOAD_TYPE
    from shared.store import Store
    from worker.tools.receipt import receipt_of

    with closing(Store(settings)) as store, show.news.status("reading the round") as status:
        made = receipt_of(store, round_id, status.update)
    key = settings.receipt_key.get_secret_value() if settings.receipt_key else None
    envelope = Envelope.seal(PAYLOAD_TYPE, made.payload(), key)
    typer.echo(envelope.model_dump_json(by_alias=True))
    if key:
        _say(f"signed; its public key is {envelope.verify()}")
    else:
        _say(
            "it is not signed, so it convinces nobody: set POC_RECEIPT_KEY, to be made with "
            "`openssl rand -base64 32`"
        )
    _say("`poc receipt --verify FILE` checks it and shows what is in it")


def _check(path: str, signer: str | None, *, as_json: bool) -> None:
    from shared.envelope import Envelope
    from shared.receipt import Receipt

    try:
        envelope = Envelope.read(read_text(path))
        checked = Receipt.of(envelope)
        key = envelope.verify(signer)
    except (InvalidRequest, NotGenuine) as error:
        raise type(error)(f"{path}: {error}") from None
    if as_json:
        # Made anew in ASCII: whoever wrote the file may have meant the terminal.
        typer.echo(json.dumps(json.loads(envelope.open(envelope.payload_type)), indent=1))
    else:
        show.out.print(show.receipt_table(checked, key))
    if not signer:
        _say(f"signed by {key}: see that this is the node's key, or give it by --signer")


def _say(text: str) -> None:
    show.news.print(text, soft_wrap=True, highlight=False, markup=False)
