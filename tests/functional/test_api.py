"""The status API as a process of its own, against a real server that comes and goes."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from caller import caller
from preloaded import Fork
from serving_api import serving_api
from shared.config import MAX_NONCE, PoCConfig
from shared.requests import GenerateRequest
from shared.serving import MAX_CONNECTIONS
from shared.settings import load_settings
from shared.store import Computed, Store
from support import wait_until
from worker.tools.embedded import EmbeddedRedis

pytestmark = pytest.mark.functional

STATUS = "/api/v1/pow/status"
OVERVIEW = "/api/v1/pow/overview"
EVENTS = "/api/v1/pow/events"
NONCES = "/api/v1/pow/nonces"
CONFIG = PoCConfig(block_hash="b10c", block_height=7, public_key="node", r_target=1.4, batch_size=4)


@dataclass(frozen=True)
class Api:
    """A process that serves the API, and a client of it."""

    process: Fork
    client: httpx.Client
    log_path: Path

    def status_code(self, url: str) -> int:
        """The status code that `url` answers with."""
        return self.client.get(url).status_code

    def body(self, url: str, **params: Any) -> dict[str, Any]:
        """The JSON of an answer that is no error."""
        response = self.client.get(url, params=params)
        response.raise_for_status()
        found: dict[str, Any] = response.json()
        return found


@pytest.fixture
def store(redis_url: str) -> Iterator[Store]:
    """A store on the same Redis, which plays the worker."""
    with closing(Store(load_settings({}, redis_url=redis_url, namespace="test"))) as store:
        yield store


@pytest.fixture
def api(redis_url: str, tmp_path: Path) -> Iterator[Api]:
    """The API on a port that the kernel chose."""
    with serving(redis_url, tmp_path) as api:
        yield api


@contextmanager
def serving(redis_url: str, tmp_path: Path, **variables: str) -> Iterator[Api]:
    """The API with these variables on top."""
    log_path = tmp_path / "api.log"
    with (
        serving_api(redis_url, log_path, **variables) as (process, url),
        caller(url) as client,
    ):
        yield Api(process, client, log_path)


def generate(store: Store, round_id: str) -> None:
    """Find two nonces in a new round, with a live worker."""
    store.workers.heartbeat("w", {"fingerprint": "f"}, {"state": "generating"}, tokens=[])
    store.rounds.generate(f"generate-{round_id}", GenerateRequest(config=CONFIG, round_id=round_id))
    claim = store.rounds.claim("w", f"claim-{round_id}")
    assert claim
    store.rounds.commit(claim, Computed(checked=4, valid=[(3, "1.25"), (MAX_NONCE, "0.1")]))


def test_a_round_is_followed(api: Api, store: Store) -> None:
    """Given a round that another process drives, each change is there at the next look."""
    assert api.body(STATUS)["state"] == "IDLE"
    assert api.status_code("/readyz") == 503

    generate(store, "r1")

    found = api.body(STATUS)
    assert (found["state"], found["round_id"], found["total_checked"]) == ("GENERATING", "r1", 4)
    assert (found["valid_nonces"], found["valid_distances"]) == ([3, MAX_NONCE], [1.25, 0.1])
    assert [worker["name"] for worker in found["workers"]] == ["w"]
    assert api.body(NONCES, round_id="r1", start=1)["nonces"] == [MAX_NONCE]
    assert api.status_code("/readyz") == 200

    store.rounds.stop("stop")
    assert api.body("/api/v1/pow/rounds/r1")["state"] == "STOPPED"


def test_every_route_answers_head(api: Api, store: Store) -> None:
    """As it does GET, without the body: load balancers probe with it."""
    generate(store, "r1")
    pages = ["/", "/static/page.js", "/docs", "/redoc", "/openapi.json"]
    reads = [STATUS, OVERVIEW, f"{NONCES}?limit=1", "/api/v1/pow/rounds/r1", "/metrics"]
    assert api.client.head(EVENTS).status_code == 200
    for url in (*reads, "/livez", "/readyz", *pages, "/static-offline-docs/swagger-ui.css"):
        get, head = api.client.get(url), api.client.head(url)
        assert (head.status_code, head.content) == (200, b""), url
        assert head.headers["Content-Type"] == get.headers["Content-Type"]
    assert api.client.head("/api/v1/pow/rounds/never").status_code == 404
    assert api.client.head(f"{NONCES}?limit=0").status_code == 422


@pytest.mark.parametrize(
    ("prefix", "taken_away"), [("", True), ("/below/this", True), ("/below/this", False)]
)
def test_the_documentation_needs_no_internet(
    prefix: str, taken_away: bool, redis_url: str, tmp_path: Path
) -> None:
    """Also below a prefix, whether or not the proxy takes that away; a header of it is ignored."""
    with serving(redis_url, tmp_path, POC_API_ROOT_PATH=prefix) as api:

        def get(path: str) -> httpx.Response:
            asked = path.removeprefix(prefix) if taken_away else path
            return api.client.get(asked, headers={"X-Forwarded-Prefix": "/elsewhere"})

        for page in ("/docs", "/redoc"):
            shown = get(f"{prefix}{page}").text
            assert "elsewhere" not in shown
            needed = re.findall(r"""(?:src|href|url)['"]?\s*[=:]\s*['"]([^'"]+)['"]""", shown)
            assert len(needed) >= 3
            for path in needed:
                assert path.startswith(f"{prefix}/"), path
                assert get(path).status_code == 200, path
        servers = get(f"{prefix}/openapi.json").json().get("servers", [])
        assert [each["url"] for each in servers] == ([prefix] if prefix else [])


def test_redis_goes_and_comes_back(api: Api, store: Store, redis_server: EmbeddedRedis) -> None:
    """Given connections in use, when Redis is killed and started, 503 turns into 200 again."""
    assert api.status_code(STATUS) == 200
    redis_server.kill()

    for url in (STATUS, OVERVIEW, "/api/v1/pow/rounds/r1", NONCES, "/readyz"):
        response = api.client.get(url)
        assert response.status_code == 503
        assert response.json()["detail"].startswith("Redis: ")
        assert "Retry-After" in response.headers
    assert api.status_code("/livez") == 200

    redis_server.start()
    wait_until(lambda: api.status_code(STATUS) == 200, description="the API to find Redis again")
    generate(store, "r2")
    assert api.body(STATUS)["round_id"] == "r2"
    assert "Traceback" not in api.log_path.read_text()


def test_a_redis_that_hangs_is_unavailable(api: Api, redis_server: EmbeddedRedis) -> None:
    """Given a Redis that holds connections but is silent, askers are told, not kept waiting."""
    assert api.status_code(STATUS) == 200
    pid = redis_server.pid
    assert pid
    os.kill(pid, signal.SIGSTOP)
    try:
        assert api.status_code("/livez") == 200
        assert api.status_code(STATUS) == 503  # the client gives up long before retries would
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: api.status_code(STATUS) == 200, description="the API to find Redis again")


def test_many_ask_at_once(api: Api, store: Store) -> None:
    """Threads share one store: every asker gets the whole answer."""
    generate(store, "r1")
    with ThreadPoolExecutor(16) as askers:
        answers = list(askers.map(lambda _: api.body(NONCES)["nonces"], range(200)))
    assert answers == [[3, MAX_NONCE]] * 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it(number: int, api: Api) -> None:
    """With status 0 and without a traceback, though a client holds its connection open."""
    assert api.status_code(STATUS) == 200
    api.process.send_signal(number)
    assert api.process.wait(30) == 0
    log = api.log_path.read_text()
    assert "Application shutdown complete" in log
    assert "Traceback" not in log


def test_with_tokens_it_listens_to_all_and_answers_some(redis_url: str, tmp_path: Path) -> None:
    """Given tokens from a file, then 0.0.0.0 is allowed, and no log has a token."""
    tokens = tmp_path / "tokens"
    tokens.write_text("first-token-0123456789,second-token-0123456789\n")
    variables = {"POC_API_HOST": "0.0.0.0", "POC_API_TOKENS_FILE": str(tokens)}
    with serving(redis_url, tmp_path, **variables, POC_LOG_LEVEL="DEBUG") as api:
        assert api.status_code(STATUS) == 401
        headers = {"Authorization": "Bearer second-token-0123456789"}
        assert api.client.get(STATUS, headers=headers).status_code == 200
        assert api.status_code("/livez") == 200
        assert "-token-" not in api.log_path.read_text()


def test_a_body_without_end_is_cut_off(api: Api) -> None:
    """Given a client that says it sends a terabyte, it is answered and hung up on at once."""
    url = api.client.base_url
    with socket.create_connection((url.host, url.port or 0), timeout=20) as client:
        client.sendall(
            f"POST {STATUS} HTTP/1.1\r\nHost: x\r\nContent-Length: {10**12}\r\n\r\n".encode()
        )
        sent, answer = 0, b""
        with suppress(ConnectionError):
            while sent < 10**8:
                sent += client.send(b"x" * 65_536)
        with suppress(ConnectionError):
            while chunk := client.recv(65_536):
                answer += chunk
    assert sent < 10**8
    # What it was told may be lost with the connection that was reset under it.
    assert answer == b"" or b" 413 " in answer
    assert api.status_code(STATUS) == 200


def test_too_many_connections_are_told_to_come_back(api: Api) -> None:
    """Given one less than MAX_CONNECTIONS, all is well; with one more every request is a 503."""
    url = api.client.base_url
    assert api.status_code(STATUS) == 200  # on a connection that counts as well
    with ExitStack() as connections:

        def connect() -> None:
            there = (url.host, url.port or 0)
            connections.enter_context(socket.create_connection(there, timeout=20))

        for _ in range(MAX_CONNECTIONS - 2):
            connect()
        assert api.status_code(STATUS) == 200
        connect()
        wait_until(lambda: api.status_code(STATUS) == 503, description="a refusal")
        assert api.status_code("/livez") == 503
    wait_until(lambda: api.status_code(STATUS) == 200, description="an answer again")


def test_only_loopback_says_for_whom_it_asks(redis_url: str, tmp_path: Path) -> None:
    """Given an X-Forwarded-For from 127.0.0.1, that address is who asks; else the sender is.

    Uvicorn believes 127.0.0.1 and ::1. So 127.0.0.2, also an address of this machine, stands for
    a stranger.
    """

    def answers(source: str) -> set[int]:
        transport = httpx.HTTPTransport(local_address=source)
        with httpx.Client(transport=transport, base_url=api.client.base_url) as client:
            return {
                client.get(STATUS, headers={"X-Forwarded-For": f"192.0.2.{n}"}).status_code
                for n in range(20)
            }

    with serving(redis_url, tmp_path, POC_API_RATE="2") as api:
        assert answers("127.0.0.1") == {200}
        assert answers("127.0.0.2") == {200, 429}
