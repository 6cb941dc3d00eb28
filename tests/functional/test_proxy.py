"""deploy/Caddyfile, as Caddy runs it: before the real gateway, and workers that only chat.

The round is real, too: its worker has the fake engine.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from caddy import proxy
from chat import FIRST, LAST, Chat
from preloaded import Fork
from serving_api import serving_gateway
from shared.client import PoCClient
from shared.config import PoCConfig
from shared.settings import Settings
from support import free_port, wait_until
from worker.tools.embedded import EmbeddedRedis

pytestmark = [
    pytest.mark.functional,
    pytest.mark.skipif(not shutil.which("caddy"), reason="caddy is not installed"),
]

ROUND = PoCConfig(block_hash="b", block_height=1, public_key="k", r_target=1.9, seq_len=8)
ASKED = {"model": "m", "messages": [], "stream": True}
CHAT = "/v1/chat/completions"
GATED = {"POC_GATE_CHAT": "true"}
#: How long the proxy waits for the gateway.
GATE = timedelta(seconds=1)

StartWorker = Callable[..., Any]
StartGateway = Callable[..., Fork]


@pytest.fixture
def chat() -> Iterator[Chat]:
    with Chat() as chat:
        yield chat


@pytest.fixture
def port() -> int:
    """Of the gateway, also of one that is started again."""
    return free_port()


@pytest.fixture
def start_gateway(settings: Settings, port: int, tmp_path: Path) -> Iterator[StartGateway]:
    logs = (tmp_path / f"gateway-{n}.log" for n in itertools.count())
    with contextlib.ExitStack() as stack:

        def start(**variables: str) -> Fork:
            fixed = {"POC_GATEWAY_PORT": str(port), **variables}
            process, _ = stack.enter_context(
                serving_gateway(settings.redis_url, next(logs), **fixed)
            )
            return process

        yield start


@pytest.fixture
def through(port: int, chat: Chat, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of the proxy before the gateway's port and one worker."""
    with proxy(port, tmp_path, chat.address) as client:
        yield client


@pytest.fixture
def generate(client: PoCClient, start_worker: StartWorker) -> Callable[[], None]:
    """Begin a round that generates until somebody stops it."""

    def generate() -> None:
        start_worker(seconds=0.02)
        client.generate(ROUND)

    return generate


def refused(client: httpx.Client) -> bool:
    """Whether chat is answered as the network's nodes do while they generate.

    Other tests may take so much of the processor that the gateway is too late, and chat goes on: it
    is asked again, then.
    """
    for _ in range(10):
        answer = client.post(CHAT, json=ASKED)
        if answer.elapsed < GATE:
            break
    if answer.status_code != 503:
        return False
    said = answer.json()
    assert said["error"] == "poc_generation_active"
    assert said["retry_after_ms"] == 1000
    assert answer.headers["Retry-After"] == "1"
    return True


@contextlib.contextmanager
def answering(port: int, directory: Path) -> Iterator[tuple[httpx.Client, Chat, Iterator[bytes]]]:
    """An answer whose first piece has come, and whose last one the worker holds."""
    with (
        Chat(held=True) as chat,
        proxy(port, directory, chat.address) as client,
        client.stream("POST", CHAT, json=ASKED) as answer,
    ):
        pieces = answer.iter_raw()
        assert next(pieces) == FIRST
        yield client, chat, pieces


def passed(answer: httpx.Response) -> bool:
    return answer.status_code == 200 and answer.content == FIRST + LAST


def test_what_is_not_the_network_s_stays_inside(
    through: httpx.Client, start_gateway: StartGateway, chat: Chat
) -> None:
    """What the gateway has goes there, chat goes to a worker, and all else goes nowhere."""
    start_gateway()
    assert through.get("/livez").json() == {"status": "alive"}
    assert through.get("/api/v1/pow/status").json()["status"] == "NO_BACKENDS"
    assert through.get("/v1/models").status_code == 503
    for path in ("/invocations", "/metrics", "/tokenize", "/"):
        assert through.post(path, json=ASKED).content == b"", path
    assert not chat.requests
    assert passed(through.post(CHAT, json=ASKED, headers={"Authorization": "Bearer its-key"}))
    ((path, headers, _),) = chat.requests
    assert (path, headers["Authorization"]) == (CHAT, "Bearer its-key")


def test_a_version_before_the_path_is_passed_over(
    through: httpx.Client, start_gateway: StartGateway, chat: Chat
) -> None:
    """Controllers put one there when the network has named it; chat has none for the worker."""
    start_gateway()
    assert through.get("/v3.0.13-alpha1/api/v1/state").json()["state"] == "STOPPED"
    assert through.get("/v3.0.8/livez").json() == {"status": "alive"}
    assert passed(through.post(f"/v3.0.8{CHAT}", json=ASKED))
    assert [path for path, _, _ in chat.requests] == [CHAT]
    assert through.post("/v3.0.8/metrics").content == b""


def test_an_answer_is_passed_on_piece_by_piece(
    port: int, start_gateway: StartGateway, tmp_path: Path
) -> None:
    """Given a worker that holds the last piece, then the first one is there all the same."""
    start_gateway()
    with answering(port, tmp_path) as (_, chat, pieces):
        chat.let_go.set()
        assert b"".join(pieces) == LAST


def test_who_leaves_is_computed_for_no_longer(
    port: int, start_gateway: StartGateway, tmp_path: Path
) -> None:
    """Given a caller that hangs up, then the worker hears of it, and takes the next one."""
    start_gateway()
    with Chat(held=True) as chat, proxy(port, tmp_path, chat.address) as client:
        with client.stream("POST", CHAT, json=ASKED) as answer:
            assert next(answer.iter_raw()) == FIRST
        assert chat.left.wait(10)
        chat.let_go.set()
        assert passed(client.post(CHAT, json=ASKED))


def test_chat_is_refused_while_a_round_generates(
    through: httpx.Client,
    start_gateway: StartGateway,
    generate: Callable[[], None],
    client: PoCClient,
) -> None:
    """And is open before, and after the stop."""
    start_gateway(**GATED)
    assert passed(through.post(CHAT, json=ASKED))
    generate()
    assert refused(through)
    client.stop()
    assert passed(through.post(CHAT, json=ASKED))


def test_chat_goes_on_unless_that_is_asked_for(
    through: httpx.Client, start_gateway: StartGateway, generate: Callable[[], None]
) -> None:
    start_gateway()
    generate()
    assert passed(through.post(CHAT, json=ASKED))


def test_an_answer_under_way_is_not_cut_when_a_round_begins(
    port: int, start_gateway: StartGateway, generate: Callable[[], None], tmp_path: Path
) -> None:
    start_gateway(**GATED)
    with answering(port, tmp_path) as (client, chat, pieces):
        generate()
        assert refused(client)
        chat.let_go.set()
        assert b"".join(pieces) == LAST


def test_who_has_no_token_of_the_gateway_is_asked_the_same(
    through: httpx.Client, start_gateway: StartGateway, generate: Callable[[], None]
) -> None:
    """Those who chat have a key of vLLM's, if any."""
    start_gateway(**GATED, POC_GATEWAY_TOKENS="a-token-for-commands", POC_GATEWAY_RATE="1")
    generate()
    for _ in range(5):
        assert refused(through)


def test_a_killed_gateway_shuts_nothing(
    through: httpx.Client,
    start_gateway: StartGateway,
    generate: Callable[[], None],
    client: PoCClient,
    chat: Chat,
) -> None:
    """Chat is open while it is away, even in a round; it is as before when it is there again."""
    gateway = start_gateway(**GATED)
    generate()
    assert refused(through)
    gateway.kill()
    gateway.wait()
    long = ASKED | {"messages": ["x" * 2_000_000]}
    assert passed(through.post(CHAT, json=long))
    assert len(chat.requests[-1][2]) > 2_000_000
    assert through.get("/api/v1/pow/status").status_code == 502
    start_gateway(**GATED)
    assert refused(through)
    client.stop()
    assert passed(through.post(CHAT, json=long))
    assert len(chat.requests[-1][2]) > 2_000_000


def test_an_outage_of_redis_shuts_nothing(
    through: httpx.Client,
    start_gateway: StartGateway,
    generate: Callable[[], None],
    redis_server: EmbeddedRedis,
) -> None:
    start_gateway(**GATED)
    generate()
    assert refused(through)
    redis_server.kill()
    wait_until(lambda: passed(through.post(CHAT, json=ASKED)), 5, "chat to be open")


def test_a_gateway_that_hangs_costs_a_second(
    through: httpx.Client, start_gateway: StartGateway
) -> None:
    gateway = start_gateway(**GATED)
    gateway.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    assert passed(through.post(CHAT, json=ASKED))
    assert 0.5 < time.monotonic() - began < 3
    gateway.send_signal(signal.SIGCONT)


def test_a_worker_that_is_not_well_is_passed_over(
    port: int, start_gateway: StartGateway, tmp_path: Path
) -> None:
    """Given two that are gone and one that loads, then every call finds the fourth.

    One that loads has its port already, and answers nothing.
    """
    start_gateway()
    with Chat() as chat, socket.create_server(("127.0.0.1", 0)) as loads:
        others = [f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"]
        others.append(f"127.0.0.1:{loads.getsockname()[1]}")
        with proxy(port, tmp_path, *others, chat.address) as client:
            log = tmp_path / "caddy.log"
            wait_until(lambda: all(each in log.read_text() for each in others), 20, "it to know")
            for _ in range(20):
                assert passed(client.post(CHAT, json=ASKED))


def test_without_any_worker_a_caller_is_told_soon(
    port: int, start_gateway: StartGateway, tmp_path: Path
) -> None:
    start_gateway()
    with proxy(port, tmp_path, f"127.0.0.1:{free_port()}") as client:
        began = time.monotonic()
        assert client.post(CHAT, json=ASKED).status_code in (502, 503)
        assert time.monotonic() - began < 3


def test_answers_under_way_are_spread(
    port: int, start_gateway: StartGateway, tmp_path: Path
) -> None:
    """Given eight workers and eight callers at a time, then each worker has one."""
    start_gateway()
    with contextlib.ExitStack() as stack:
        chats = [stack.enter_context(Chat(held=True)) for _ in range(8)]
        client = stack.enter_context(proxy(port, tmp_path, *[each.address for each in chats]))
        open_answers = []
        for _ in chats:
            answer = stack.enter_context(client.stream("POST", CHAT, json=ASKED))
            open_answers.append(answer.iter_raw())
            assert next(open_answers[-1]) == FIRST
        assert [len(each.requests) for each in chats] == [1] * 8
