"""Which node is examined: that of --node, or else our gateway with a worker on the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from computing import computing
from controller import Controller, Inbox
from serving_api import serving_gateway
from shared.errors import ConfigError, PoCError
from worker.tools.embedded import EmbeddedRedis
from worker.tools.make_model import make_model
from worker.tools.network.node import Credentials, Node

if TYPE_CHECKING:
    from plain_artifacts import PlainModel

#: Of our own node: its model's name on the network, positions of a forward, and its token.
MODEL, SEQ_LEN, TOKEN = "net/model", 16, "a-token-of-the-controller-0123456789"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance", "the node that tests/conformance examines")
    group.addoption("--node", metavar="URL", help="its address; our own gateway without it")
    group.addoption(
        "--node-token",
        default=os.environ.get("NODE_TOKEN", ""),
        help="the bearer token that it wants; else that of NODE_TOKEN",
    )
    group.addoption("--node-ca", type=Path, help="whose certificates are trusted, in PEM")
    group.addoption("--node-cert", type=Path, help="the certificate that the node is shown")
    group.addoption("--node-key", type=Path, help="its key")
    group.addoption("--node-model", help="its model's name; else the first of its /v1/models")
    group.addoption("--node-model-path", type=Path, help="a copy of the model here, to check by")
    group.addoption("--node-seq-len", type=int, default=1024, help="positions that it deployed")
    group.addoption("--receiver-host", default="127.0.0.1", help="this machine, seen by the node")
    group.addoption("--receiver-port", type=int, default=0, help="of callbacks; else any free one")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What nodes of today do otherwise does not fail a run against one of them: it is named."""
    if not config.getoption("node", None):
        return
    for item in items:
        if deviation := item.get_closest_marker("deviation"):
            why = f"theirs fails this: {deviation.args[0]}"
            item.add_marker(pytest.mark.xfail(reason=why, strict=False))


@dataclass(frozen=True)
class Examined:
    """A node, as it is told of on the command line."""

    url: str
    credentials: Credentials
    model: str
    seq_len: int
    #: The model itself, if it is here.
    path: Path | None


@pytest.fixture(scope="module")
def examined(request: pytest.FixtureRequest) -> Iterator[Examined]:
    option = request.config.getoption
    if url := option("node", None):
        files = (option(f"node_{name}") for name in ("ca", "cert", "key"))
        try:
            shown = Credentials.of(option("node_token"), *files)
        except ConfigError as error:
            pytest.exit(f"{error} (here they are --node-ca, --node-cert and --node-key)", 2)
        name, path = option("node_model") or "", option("node_model_path")
        yield Examined(url, shown, name, option("node_seq_len"), path)
        return
    server: EmbeddedRedis = request.getfixturevalue("redis_server")
    directory: Path = request.getfixturevalue("tmp_path_factory").mktemp("node")
    path = make_model(directory / "model", max_seq_len=64)
    with (
        computing(server.start().url, path, directory / "worker.log"),
        serving_gateway(
            server.url,
            directory / "gateway.log",
            POC_GATEWAY_TOKENS=TOKEN,
            POC_GATEWAY_MODEL=MODEL,
            POC_GATEWAY_SEQ_LEN=str(SEQ_LEN),
        ) as (_, url),
    ):
        yield Examined(url, Credentials(TOKEN), MODEL, SEQ_LEN, path)


@pytest.fixture(scope="module")
def controller(examined: Examined, request: pytest.FixtureRequest) -> Iterator[Controller]:
    name = request.config.getoption("receiver_host", "127.0.0.1")
    port = request.config.getoption("receiver_port", 0)
    # Another machine reaches us by an address that we may not have ourselves.
    host = "127.0.0.1" if name in ("127.0.0.1", "localhost") else "0.0.0.0"
    shown = examined.credentials
    named = model_named_by(examined)
    model = examined.model or named
    asks = httpx.Client(base_url=examined.url, headers=shown.headers, verify=shown.tls, timeout=90)
    with asks as client, Inbox(model, name, host, port) as inbox:
        yield Controller(client, model, examined.seq_len, inbox)


def model_named_by(examined: Examined) -> str:
    """What the node says that it deployed; ends the run with one sentence if it says nothing."""
    try:
        return Node(examined.url, examined.credentials).model()
    except PoCError as error:
        pytest.exit(f"no node can be examined: {error}; see --node, --node-token and --node-ca", 2)


@pytest.fixture(scope="module")
def plain(examined: Examined) -> PlainModel:
    """The node's model, computed in plain words."""
    if examined.path is None:
        pytest.skip("without --node-model-path nothing can be computed here")
    from plain_artifacts import PlainModel

    return PlainModel(examined.path)
