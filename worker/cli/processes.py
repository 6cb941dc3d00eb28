"""Commands that run something here: the node's processes, and tools."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from shared.errors import ConfigError
from shared.schemes import DEFAULT
from shared.settings import EVERY_GPU, Settings
from worker.cli.options import ENGINE, BatchSize, Json, Scheme, SeqLen, takes_settings
from worker.tools import show


@takes_settings(
    "redis_url",
    "namespace",
    *ENGINE,
    "serve_host",
    "serve_port",
    "model_fingerprint",
    "model_distances",
    "worker_name",
    "run_callbacks",
    "log_level",
    "log_format",
)
def worker(
    context: typer.Context,
    settings: Settings,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Start a Redis here that ends with this command.")
    ] = False,
) -> None:
    """Load the model and take part in rounds, until Ctrl-C, SIGTERM or the end of its terminal.

    It ends with 0 after a signal, with 2 if it could not start, with 3 if it failed and with 4 if
    its device gives wrong numbers.

    poc worker --model ./model --gpu 0

    poc worker --model ./model --gpu all   (one for each GPU, started again when it fails)

    poc make-model ./model && poc worker --model ./model --embedded
    """
    with _redis(settings, embedded) as ready:
        if ready.gpu == EVERY_GPU:
            from worker.tools.every_gpu import run_every_gpu

            given = {name: context.params.get(name) for name in Settings.model_fields}
            if embedded:
                given["redis_url"] = ready.redis_url
            raise typer.Exit(run_every_gpu(ready, given))
        from worker.queue.app import run_worker

        raise typer.Exit(run_worker(ready))


@takes_settings(
    "redis_url",
    "namespace",
    "api_host",
    "api_port",
    "api_root_path",
    "log_level",
    "log_format",
)
def api(settings: Settings) -> None:
    """Serve the status API, which only reads.

    poc api --api-port 8080
    """
    from shared.api import serve

    serve(settings)


@takes_settings(
    "redis_url",
    "namespace",
    *(name for name in Settings.model_fields if re.match(r"gateway_(?!.*tokens)|gate_", name)),
    "log_level",
    "log_format",
)
def gateway(
    settings: Settings,
    with_api: Annotated[
        bool,
        typer.Option("--with-api", help="Serve the status API and its page as well, below /node."),
    ] = False,
) -> None:
    """Serve the network's HTTP contract: rounds, jobs and status for an unchanged controller.

    poc gateway --gateway-port 8100 --gateway-model Qwen/Qwen3-8B

    Beyond this machine it asks for tokens (POC_GATEWAY_TOKENS, POC_GATEWAY_READ_TOKENS) or client
    certificates.
    """
    from shared.gateway import serve

    serve(settings, with_api=with_api)


@takes_settings("redis_url", "namespace", "callback_timeout_s", "log_level", "log_format")
def callbacks(settings: Settings) -> None:
    """Only deliver callbacks, for nodes whose workers do not (POC_RUN_CALLBACKS=false).

    poc callbacks
    """
    import logging

    from shared import logs, tracing
    from shared.store import Store
    from worker.children import on_end_signal
    from worker.outage import Outage
    from worker.sender import PoCCallbackSender

    if not logs.as_json(settings):
        logging.basicConfig(
            level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
        )
    ending = threading.Event()
    on_end_signal(lambda _: ending.set())
    name = f"callbacks-{os.getpid()}-{secrets.token_hex(2)}@{socket.gethostname()}"
    logs.call_process(name)
    tracing.start(name, settings.namespace)
    outage = Outage(settings)
    with closing(Store(settings)) as store:
        sender = PoCCallbackSender(store, name, settings, outage)
        outage.first_call(store.check_access)
        sender.run(ending)


def demo(
    seconds: Annotated[
        float, typer.Option(min=1, metavar="<seconds>", help="How long to generate.")
    ] = 20.0,
    stay: Annotated[
        bool, typer.Option("--stay", help="Then go on with rounds, and the page, until Ctrl-C.")
    ] = False,
    scheme: Scheme = DEFAULT,
    network: Annotated[
        bool, typer.Option("--network", help="An epoch of the network: see simulate-epoch.")
    ] = False,
) -> None:
    """Run a whole round on this machine: server, model, worker, API and callbacks.

    poc demo --seconds 10

    poc demo --stay

    poc demo --scheme artifact

    poc demo --network
    """
    if network:
        if stay or scheme != DEFAULT:
            raise ConfigError("--network goes with --seconds alone")
        from worker.tools.network.run import run as run_epoch

        raise typer.Exit(run_epoch(seconds))
    from worker.tools.demo import run

    raise typer.Exit(run(seconds=seconds, stay=stay, scheme=scheme))


def simulate_epoch(
    node: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<url>",
            help="A node's base URL, such as http://127.0.0.1:8100; may be given several times. "
            "Unless given: three nodes of this machine, one of which cheats.",
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=1, metavar="<seconds>", help="How long to generate.")
    ] = 20.0,
    seq_len: Annotated[
        int, typer.Option(min=1, metavar="<int>", help="Positions of one forward, of given nodes.")
    ] = 1024,
    host: Annotated[
        str, typer.Option(metavar="<address>", help="Address of this machine that nodes reach.")
    ] = "127.0.0.1",
    token: Annotated[
        str,
        typer.Option(
            metavar="<token>",
            envvar="NODE_TOKEN",
            help="The bearer token that given nodes want.",
        ),
    ] = "",
    ca: Annotated[
        Path | None,
        typer.Option(metavar="<file>", help="Whose certificates of given nodes are trusted."),
    ] = None,
    cert: Annotated[
        Path | None, typer.Option(metavar="<file>", help="The certificate that nodes are shown.")
    ] = None,
    key: Annotated[Path | None, typer.Option(metavar="<file>", help="Its key.")] = None,
    as_json: Json = False,
) -> None:
    """Be the network for some nodes, for an epoch: they generate, judge each other, and are paid.

    Exit status: 0 nothing was lost, and exactly the honest are paid; 1 otherwise.

    poc simulate-epoch

    poc simulate-epoch --node http://10.0.0.1:8100 --node http://10.0.0.2:8100 --host 10.0.0.9
    """
    from worker.tools.network.node import Credentials
    from worker.tools.network.run import run

    shown = Credentials.of(token, ca, cert, key)
    raise typer.Exit(run(seconds, node or (), shown, seq_len=seq_len, host=host, as_json=as_json))


@takes_settings("redis_url", "namespace", "engine", "model", "device", "gpu", build=dict)
def doctor(settings: dict[str, Any], as_json: Json = False) -> None:
    """Check Redis, workers, GPU, model and settings, and say how to mend what is wrong.

    poc doctor --model ./model
    """
    from worker.tools.doctor import FAIL, examine

    findings = examine(settings)
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in findings]))
    else:
        show.out.print(show.findings_table(findings))
    if failed := {each.name for each in findings if each.level == FAIL}:
        raise typer.Exit(2 if "settings" in failed else 1)


def make_model(
    path: Annotated[Path, typer.Argument(help="New or empty directory for the checkpoint.")],
    hidden_size: Annotated[int, typer.Option(help="Width of the model.")] = 64,
    layers: Annotated[int, typer.Option(help="Decoder layers.")] = 2,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = 2,
    kv_heads: Annotated[int, typer.Option(help="Key and value heads; divides heads.")] = 1,
    head_dim: Annotated[
        int | None, typer.Option(help="Width of a head; hidden-size / heads unless given.")
    ] = None,
    intermediate_size: Annotated[int, typer.Option(help="Width inside the MLP.")] = 128,
    vocab_size: Annotated[int, typer.Option(help="Tokens; the length of the logits.")] = 1024,
    max_seq_len: Annotated[int, typer.Option(help="Most positions of a sequence.")] = 4096,
    seed: Annotated[int, typer.Option(help="The same seed gives the same weights.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Write a small random model, for tests and demos without a download.

    poc make-model ./model --layers 4 --hidden-size 256
    """
    from worker.tools.make_model import make_model as make

    with show.news.status("loading torch, making the model"):
        made = make(
            path,
            hidden_size=hidden_size,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate_size=intermediate_size,
            vocab_size=vocab_size,
            max_seq_len=max_seq_len,
            seed=seed,
            dtype=dtype,
        )
    show.out.print(f"made {made}. Use it: poc worker --embedded --model {made}", soft_wrap=True)


def bench(
    model: Annotated[
        str | None,
        typer.Option(
            envvar="POC_MODEL",
            help="Directory or hub id. Unless given a random one: small, or with --gpu of the "
            "shape of Qwen3-0.6B.",
        ),
    ] = None,
    scheme: Scheme = DEFAULT,
    batch_size: BatchSize = 32,
    seq_len: SeqLen = 256,
    seconds: Annotated[
        float,
        typer.Option(
            min=0.1,
            max=86_400,
            metavar="<seconds>",
            help="How long to measure each candidate, in all its turns.",
        ),
    ] = 10.0,
    rounds: Annotated[
        int, typer.Option(min=1, metavar="<int>", help="Turns of each candidate.")
    ] = 5,
    against: Annotated[
        str,
        typer.Option(
            metavar="<names>",
            help="Opponents, with commas. published: the published algorithm, nonce by nonce, on "
            "transformers and on our forward. limit: forwards at the pace of one large matrix "
            "product. distance: beside another scheme, a round of that one.",
        ),
    ] = "",
    sweep: Annotated[
        str,
        typer.Option(
            metavar="<values>",
            help="Measure each of them: tile=32,64 loads the engine for each, seq_len=128,256 does "
            "not.",
        ),
    ] = "",
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the bars into an SVG.")
    ] = None,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="With all opponents, on a GPU or not at all.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure how many nonces a second this machine computes, and what keeps it from more.

    Candidates take short turns in one run, and ratios are of turns side by side:

    forward only (the engine's forward on random inputs), engine alone (with inputs and distances),
    end to end (a round through Celery and Redis), and the opponents that are asked for.

    Settings of the engine come from variables, such as POC_ENGINE and POC_TILE.

    poc bench --model ./model --against published,limit --picture bench.svg
    """
    from worker.tools.bench.run import Plan, run

    plan = Plan.of(
        model=model,
        scheme=scheme,
        batch_size=batch_size,
        seq_len=seq_len,
        seconds=seconds,
        rounds=rounds,
        against=against,
        sweep=sweep,
        gpu=gpu,
    )
    raise typer.Exit(run(plan, json=as_json, picture=picture))


@contextmanager
def _redis(settings: Settings, embedded: bool) -> Iterator[Settings]:
    """The settings with a Redis to use: the configured one, or one of our own."""
    if not embedded:
        yield settings
        return
    if "redis_url" in settings.model_fields_set:
        raise ConfigError(
            f"--embedded starts a Redis, but POC_REDIS_URL={settings.safe_redis_url} names one; "
            "unset it, or leave --embedded out"
        )
    from worker.tools.embedded import USUAL_PORT, EmbeddedRedis

    with EmbeddedRedis(usual_port=USUAL_PORT) as server:
        show.news.print("Redis runs. In another terminal:", soft_wrap=True)
        show.news.print(f"  export POC_REDIS_URL={server.url}", soft_wrap=True)
        advice = "this worker ends; run a Redis of your own where that must not happen"
        with server.ending_us(advice):
            yield settings.model_copy(update={"redis_url": server.url})
