"""Server-sent events of a real process: open pages, a server that comes and goes, and an end."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from caller import caller
from serving_api import serving_api
from shared.config import PoCConfig
from shared.overview import Overview
from shared.requests import GenerateRequest
from shared.serving import GRACE_S
from shared.settings import load_settings
from shared.store import Store
from support import wait_until
from worker.tools.embedded import EmbeddedRedis

pytestmark = pytest.mark.functional

EVENTS = "/api/v1/pow/events"
OVERVIEW = "/api/v1/pow/overview"
CONFIG = PoCConfig(block_hash="b10c", block_height=7, public_key="node", r_target=1.4, batch_size=4)


class Page:
    """One open stream, read an event at a time; `overview` is what it has told so far."""

    def __init__(self, response: httpx.Response) -> None:
        assert response.status_code == 200
        self._lines = response.iter_lines()
        self.overview: dict[str, Any] = {}

    def next(self) -> tuple[str, dict[str, Any]]:
        """The next event and its data. Raises `StopIteration` at the end of the stream."""
        event = next(line for line in self._lines if line.startswith("event: "))[7:]
        data = json.loads(next(line for line in self._lines if line.startswith("data: "))[6:])
        if event != "problem":
            self.overview = data if event == "overview" else self.overview | data
        return event, data

    def until(self, event: str) -> dict[str, Any]:
        """The data of the next event of this name."""
        while (found := self.next())[0] != event:
            pass
        return found[1]


@contextmanager
def opened(url: str, **headers: str) -> Iterator[Page]:
    """A page on a connection of its own."""
    with (
        caller(url) as client,
        client.stream("GET", EVENTS, headers=headers) as response,
    ):
        yield Page(response)


@pytest.fixture
def store(redis_url: str) -> Iterator[Store]:
    """A store on the same Redis, which plays the worker."""
    with closing(Store(load_settings({}, redis_url=redis_url, namespace="test"))) as store:
        yield store


@pytest.fixture
def api(redis_url: str, tmp_path: Path) -> Iterator[str]:
    """The URL of a process that serves the API."""
    with serving_api(redis_url, tmp_path / "api.log") as (_, url):
        yield url


def test_pages_follow_a_round(api: str, store: Store) -> None:
    """Given two open pages, each change comes to both, and they know what the overview says."""
    with opened(api) as one, opened(api) as other:
        assert [page.next()[0] for page in (one, other)] == ["overview", "overview"]
        store.rounds.generate("g", GenerateRequest(config=CONFIG, round_id="r1"))
        for page in (one, other):
            assert page.until("changes")["node"]["round_id"] == "r1"
        store.rounds.stop("s")
        for page in (one, other):
            while page.overview["node"]["state"] != "STOPPED":
                page.next()
            now = httpx.get(api + OVERVIEW, trust_env=False).json()
            assert Overview(**page.overview | {"at": 0}) == Overview(**now | {"at": 0})


def test_redis_goes_and_comes_back(api: str, redis_server: EmbeddedRedis) -> None:
    """Given an open page, it is told, and goes on by itself when Redis does."""
    with opened(api) as page:
        page.until("overview")
        redis_server.kill()
        assert page.until("problem")["detail"].startswith("Redis: ")
        redis_server.start()
        page.until("overview")


def test_pages_are_no_requests_of_the_rate(redis_url: str, tmp_path: Path, store: Store) -> None:
    """Given an open page and a rate of one a second, events don't use it up."""
    with (
        serving_api(redis_url, tmp_path / "api.log", POC_API_RATE="1") as (_, url),
        opened(url) as page,
    ):
        page.until("overview")
        for round_id in ("r1", "r2"):
            request = GenerateRequest(config=CONFIG, round_id=round_id, replace=True)
            store.rounds.generate(round_id, request)
            page.until("changes")
        wait_until(
            lambda: httpx.get(url + OVERVIEW, trust_env=False).status_code == 200,
            description="an answer to a poller",
        )


def test_nobody_looks_and_redis_is_not_asked(api: str, redis_url: str) -> None:
    """Given pages that were closed, Redis hears nothing more of the API."""

    def asked() -> int:
        with closing(redis.Redis.from_url(redis_url)) as client:
            stats = client.info("commandstats")
        return int(stats["cmdstat_hgetall"]["calls"])

    with opened(api) as page:
        page.until("overview")
        before = asked()
        wait_until(lambda: asked() > before, description="another look")
    last = -1

    def rests() -> bool:
        nonlocal last
        found, last = last, asked()
        return found == last

    wait_until(rests, every=2.5, timeout=30, description="the end of looking")


def test_a_page_that_does_not_read_keeps_no_process(
    redis_url: str, store: Store, tmp_path: Path
) -> None:
    """Given more to tell than a connection holds, again and again, it is cut, and that is all."""

    def change(device: str) -> None:
        for number in range(100):
            fields = {"device": device * 100_000}
            store.workers.heartbeat(f"w{number}", {"fingerprint": "f"}, fields, [])

    change("a")
    log = tmp_path / "api.log"
    with serving_api(redis_url, log) as (process, url), opened(url) as page:
        address = httpx.URL(url)
        with socket.create_connection((address.host, address.port or 0)) as silent:
            silent.sendall(b"GET /api/v1/pow/events HTTP/1.1\r\nHost: x\r\n\r\n")
            assert silent.recv(1)
            page.until("overview")
            for device in "bcd":
                change(device)
                page.until("changes")
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            assert time.monotonic() - began < GRACE_S
    assert "Traceback" not in log.read_text()


def test_the_process_ends_while_pages_are_open(redis_url: str, tmp_path: Path) -> None:
    """Given twenty, a SIGTERM ends it with status 0, and each of them hears the end."""
    log = tmp_path / "api.log"
    with serving_api(redis_url, log) as (process, url), ExitStack() as stack:
        pages = [stack.enter_context(opened(url)) for _ in range(20)]
        for page in pages:
            page.until("overview")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        for page in pages:
            with pytest.raises(StopIteration):
                page.until("no such event")
    said = log.read_text()
    assert "Application shutdown complete" in said
    assert "graceful shutdown exceeded" not in said
    assert "Traceback" not in said
