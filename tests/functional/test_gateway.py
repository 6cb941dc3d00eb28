"""What the gateway does better than the nodes that it stands in for; a real worker, on the CPU.

What it has in common with them is in `tests/conformance`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from caller import caller
from calls import IN_TIME, POW
from computing import computing
from preloaded import Fork
from receiver import Receiver
from serving_api import serving_gateway
from shared.config import PoCConfig
from shared.gateway.in_time import ANSWER_S
from shared.requests import GenerateRequest
from shared.schemes.artifact import ArtifactTerms
from shared.settings import load_settings
from shared.store import Store
from support import ROOT, clean_environment, wait_until
from worker.tools.embedded import EmbeddedRedis
from worker.tools.make_model import make_model

pytestmark = [pytest.mark.functional, pytest.mark.timeout(300)]

BLOCK: dict[str, Any] = {"block_hash": "B10C", "block_height": 7, "public_key": "02a1"}
ROUND: dict[str, Any] = {
    **BLOCK,
    "node_id": 0,
    "node_count": 1,
    "params": {"model": "net/model", "seq_len": 16},
}


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedRedis]:
    """One that keeps what it has."""
    with EmbeddedRedis(aof=True) as server:
        yield server


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Qwen3."""
    return make_model(tmp_path_factory.mktemp("gateway") / "model", max_seq_len=64)


@pytest.fixture(scope="module")
def worker(
    server: EmbeddedRedis, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fork]:
    """The one of all tests here."""
    with computing(server.url, model, tmp_path_factory.mktemp("worker") / "log") as process:
        yield process


@pytest.fixture
def gateway(server: EmbeddedRedis, worker: Fork, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of one, before a node that does nothing, before and after."""
    with calling(server, tmp_path / "gateway.log") as client:
        client.post("/stop")
        yield client
        client.post("/stop")


@contextlib.contextmanager
def calling(server: EmbeddedRedis, log: Path, **variables: str) -> Iterator[httpx.Client]:
    """A client of a gateway with these variables."""
    variables = {"POC_GATEWAY_MODEL": "net/model", **variables}
    with (
        serving_gateway(server.url, log, **variables) as (_, url),
        caller(f"{url}{POW}", timeout=60) as client,
    ):
        yield client


@contextlib.contextmanager
def standing_still(pid: int) -> Iterator[None]:
    """As a debugger or a full machine stops a process: its connections stay open."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def asked(receiver: Receiver, **fields: Any) -> dict[str, Any]:
    return ROUND | {"url": receiver.url} | fields


def test_another_round_is_refused_with_the_one_that_is_generating(gateway: httpx.Client) -> None:
    assert gateway.post("/init/generate", json=ROUND).status_code == 200
    refused = gateway.post("/init/generate", json=ROUND | {"block_hash": "new"})
    assert refused.status_code == 409
    assert refused.json() == {"detail": "Already generating", **BLOCK}


def test_another_round_takes_its_place_if_that_is_set_but_not_the_same_once_more(
    gateway: httpx.Client, server: EmbeddedRedis, tmp_path: Path
) -> None:
    gateway.post("/init/generate", json=ROUND)
    with calling(server, tmp_path / "replacing.log", POC_GATEWAY_REPLACE="true") as other:
        assert other.post("/init/generate", json=ROUND).status_code == 409
        assert other.post("/init/generate", json=ROUND | {"block_hash": "new"}).status_code == 200
    assert gateway.get("/status").json()["config"]["block_hash"] == "new"


def test_of_two_that_replace_it_at_once_one_begins_and_nothing_is_replaced_twice(
    gateway: httpx.Client, server: EmbeddedRedis, tmp_path: Path
) -> None:
    replacing = {"POC_GATEWAY_REPLACE": "true"}
    with (
        calling(server, tmp_path / "one.log", **replacing) as one,
        calling(server, tmp_path / "two.log", **replacing) as two,
        ThreadPoolExecutor(2) as pool,
    ):
        for number in range(5):
            gateway.post("/init/generate", json=ROUND | {"block_hash": "stale"})
            new = ROUND | {"block_hash": f"new-{number}"}
            answers = list(
                pool.map(lambda each, new=new: each.post("/init/generate", json=new), (one, two))
            )
            assert sorted(each.status_code for each in answers) == [200, 409]
            begun = next(each.json()["round_id"] for each in answers if each.status_code == 200)
            assert gateway.get("/status").json()["config"]["round_id"] == begun
            gateway.post("/stop")


def test_a_round_that_nobody_stops_ends_by_itself(
    gateway: httpx.Client, server: EmbeddedRedis, tmp_path: Path
) -> None:
    with calling(server, tmp_path / "short.log", POC_GATEWAY_ROUND_S="1") as other:
        assert other.post("/init/generate", json=ROUND).status_code == 200
    wait_until(lambda: gateway.get("/status").json()["status"] == "IDLE", 20, "its end")


def test_a_round_that_no_worker_begins_in_time_is_withdrawn(
    gateway: httpx.Client, worker: Fork
) -> None:
    with standing_still(worker.pid):
        began = time.monotonic()
        refused = gateway.post("/init/generate", json=ROUND)
        took = time.monotonic() - began
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert took < IN_TIME
    # A command behind it in the queue has been carried out: so has it.
    wait_until(lambda: gateway.post("/stop").status_code == 200, 20, "the worker to answer")
    again = wait_until(lambda: gateway.post("/init/generate", json=ROUND).json(), 20)
    assert gateway.get("/status").json()["config"]["round_id"] == again["round_id"]


def test_a_round_that_redis_goes_away_with_is_withdrawn(
    gateway: httpx.Client, worker: Fork, server: EmbeddedRedis
) -> None:
    """Redis has kept the command, and its sender was told that the round did not begin."""
    with ThreadPoolExecutor(1) as pool, standing_still(worker.pid):
        beginning = pool.submit(gateway.post, "/init/generate", json=ROUND)
        with contextlib.closing(redis.Redis.from_url(server.url)) as direct:
            wait_until(lambda: direct.exists("poc.test") or direct.keys("poc:test:taken:*"), 5)
        server.kill()
        refused = beginning.result()
        server.start()
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    # A command behind it in the queue has been carried out: so has it.
    job = ROUND | {"nonces": [1], "wait": True}
    wait_until(lambda: gateway.post("/generate", json=job).status_code == 200, 20)
    wait_until(lambda: gateway.get("/status").json()["status"] == "IDLE", 10, "its end")


#: What can be asked for: answered by the gateway alone, from Redis, and by a worker.
ALWAYS = (("GET", "/livez"), ("GET", "/api/v1/gate"))
READS = tuple(
    ("GET", path)
    for path in (
        *(f"{POW}/status", f"{POW}/versions", "/api/v1/state"),
        *("/v1/models", "/health", "/readyz"),
    )
)
JOBS = (("POST", f"{POW}/generate"),)
COMMANDS = (("POST", f"{POW}/init/generate"), ("POST", f"{POW}/stop"), ("POST", "/api/v1/stop"))


def all_in_time(
    client: httpx.Client, asked: Sequence[tuple[str, str]]
) -> list[tuple[int, str | None]]:
    """Status and Retry-After of the answers to all of them at a time."""

    def ask(what: tuple[str, str]) -> httpx.Response:
        method, path = what
        body = ROUND | {"nonces": [1, 2]} if method == "POST" else None
        return client.request(method, client.base_url.copy_with(path=path), json=body)

    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(ask, asked))
    assert max(each.elapsed.total_seconds() for each in answers) < IN_TIME
    return [(each.status_code, each.headers.get("Retry-After")) for each in answers]


def test_while_a_worker_stands_still_all_have_an_answer_in_time(
    gateway: httpx.Client, worker: Fork
) -> None:
    with standing_still(worker.pid):
        for _ in range(2):
            assert set(all_in_time(gateway, COMMANDS)) == {(503, "1")}
            assert set(all_in_time(gateway, ALWAYS + READS + JOBS)) == {(200, None)}
    wait_until(lambda: gateway.post("/stop").status_code == 200, 20, "the worker to answer")


def test_while_redis_stands_still_all_have_an_answer_in_time(
    worker: Fork, server: EmbeddedRedis, tmp_path: Path
) -> None:
    """Also when more ask than it has threads, and chat goes on."""
    log = tmp_path / "gateway.log"
    with calling(server, log, POC_GATE_CHAT="true") as client:
        assert server.pid
        with standing_still(server.pid):
            for _ in range(3):
                assert set(all_in_time(client, 3 * (READS + JOBS + COMMANDS))) == {(503, "1")}
                assert set(all_in_time(client, ALWAYS)) == {(200, None)}
        wait_until(lambda: client.get("/status").status_code == 200, 20, "Redis to be heard")
        wait_until(lambda: client.post("/init/generate", json=ROUND).status_code == 200, 20)
        client.post("/stop")
    assert "Traceback" not in log.read_text()


def test_a_redis_that_stands_still_keeps_it_from_nothing_at_its_start(
    server: EmbeddedRedis, worker: Fork, tmp_path: Path
) -> None:
    """It would be waited for for six seconds."""
    assert server.pid
    with standing_still(server.pid):
        began = time.monotonic()
        with calling(server, tmp_path / "gateway.log") as client:
            alive = client.get(client.base_url.copy_with(path="/livez"))
            assert time.monotonic() - began < 5
    assert alive.json() == {"status": "alive"}


def test_a_job_that_no_worker_takes_in_time_is_taken_later(
    gateway: httpx.Client, worker: Fork, receiver: Receiver
) -> None:
    job = asked(receiver, nonces=[3, 9])
    with standing_still(worker.pid):
        queued = gateway.post("/generate", json=job).json()
        job_id = queued["request_id"]
        assert queued == {"status": "queued", "request_id": job_id, "queued_count": 2}
        assert gateway.get(f"/generate/{job_id}").json() == {
            "status": "queued",
            "request_id": job_id,
        }
    told = wait_until(lambda: receiver.bodies("/poc/generated"), 20, "its callback")
    assert told[0]["request_id"] == job_id
    assert [each["nonce"] for each in told[0]["artifacts"]] == [3, 9]


def test_whoever_waits_is_answered_with_the_end_of_a_job_that_is_taken_late(
    gateway: httpx.Client, worker: Fork
) -> None:
    with ThreadPoolExecutor(1) as pool:
        with standing_still(worker.pid):
            job = ROUND | {"nonces": [3, 9], "wait": True}
            waiting = pool.submit(gateway.post, "/generate", json=job)
            time.sleep(ANSWER_S + 0.5)
            assert not waiting.done()
        ended = waiting.result().json()
    assert ended["status"] == "completed"
    assert [each["nonce"] for each in ended["artifacts"]] == [3, 9]


def test_whoever_waits_while_the_gateway_ends_is_told_the_id(
    gateway: httpx.Client, worker: Fork, server: EmbeddedRedis, tmp_path: Path
) -> None:
    """Not a 500. Another gateway knows the job."""
    log = tmp_path / "ends.log"
    with (
        serving_gateway(server.url, log, POC_GATEWAY_MODEL="net/model") as (process, url),
        ThreadPoolExecutor(1) as pool,
    ):
        job = ROUND | {"nonces": list(range(2_000)), "wait": True}
        waiting = pool.submit(httpx.post, f"{url}{POW}/generate", json=job, timeout=60)
        wait_until(lambda: gateway.get("/status").json()["backends"][0]["status"] != "IDLE", 20)
        process.terminate()
        told = waiting.result()
        assert process.wait(20) == 0
    assert (told.status_code, told.json()["status"]) == (200, "queued")
    assert "Traceback" not in log.read_text()
    path = f"/generate/{told.json()['request_id']}"
    wait_until(lambda: gateway.get(path).json()["status"] == "completed", 60, "the job")


def test_a_job_can_be_asked_about_wherever_and_after_everything_was_started_anew(
    gateway: httpx.Client, server: EmbeddedRedis, tmp_path: Path
) -> None:
    done = gateway.post("/generate", json=ROUND | {"nonces": [1, 2], "wait": True}).json()
    assert done["status"] == "completed"
    server.kill()
    server.start()
    with calling(server, tmp_path / "other.log") as other:
        kept = other.get(f"/generate/{done['request_id']}").json()
    assert kept == done


def test_a_job_without_a_verdict_ends_in_a_callback_that_no_receiver_takes_for_one(
    gateway: httpx.Client, worker: Fork, receiver: Receiver, server: EmbeddedRedis
) -> None:
    """Here it is cancelled. The network's receiver reads `n_total` as a number, or not at all."""
    vector = 32 * "A"
    claims = [{"nonce": nonce, "vector_b64": vector} for nonce in range(8_000)]
    job = asked(receiver, nonces=list(range(8_000)), validation={"artifacts": claims})
    job_id = gateway.post("/generate", json=job).json()["request_id"]
    wait_until(lambda: gateway.get(f"/generate/{job_id}").json()["status"] == "running", 20)
    Fork(
        ["cancel", job_id],
        env=clean_environment(POC_REDIS_URL=server.url, POC_NAMESPACE="test"),
        cwd=ROOT,
        log_path=Path("/dev/null"),
    ).wait()
    told = wait_until(lambda: receiver.bodies("/poc/validated"), 20, "its callback")[0]
    assert (told["error"], told["request_id"]) == ("Cancelled", job_id)
    assert told["n_total"] == "not computed"
    assert gateway.get(f"/generate/{job_id}").json()["status"] == "cancelled"


def test_a_stop_loses_nothing_that_was_computed(gateway: httpx.Client, receiver: Receiver) -> None:
    """The receiver is away until after the stop."""
    receiver.always = 503
    gateway.post("/init/generate", json=asked(receiver))
    wait_until(
        lambda: (gateway.get("/status").json()["stats"] or {}).get("total_processed", 0) > 200, 30
    )
    stopped = gateway.post("/stop").json()
    assert stopped == {"status": "OK", "pow_status": {"status": "STOPPED"}}
    receiver.requests.clear()
    receiver.always = 200

    def told() -> list[int]:
        bodies = receiver.bodies("/poc/generated")
        return sorted({each["nonce"] for body in bodies for each in body["artifacts"]})

    wait_until(lambda: len(told()) > 200 and told() == list(range(len(told()))), 60, "all of it")


def test_a_callback_path_keeps_its_escapes(gateway: httpx.Client, receiver: Receiver) -> None:
    base = receiver.url.removesuffix("/poc") + "/v2/poc-batches/Qwen%252FQwen3-8B"
    job = asked(receiver, nonces=[1], url=base)
    gateway.post("/generate", json=job)
    told = wait_until(lambda: list(receiver.requests), 20, "its callback")
    assert told[0][0] == "/v2/poc-batches/Qwen%252FQwen3-8B/generated"


def test_the_status_api_can_be_beside_it_with_its_own_tokens(
    gateway: httpx.Client, server: EmbeddedRedis, tmp_path: Path
) -> None:
    """Its page and its events, too, which end with the process."""
    tokens = {"POC_API_TOKENS": 16 * "a", "POC_GATEWAY_TOKENS": 16 * "g"}
    serves = serving_gateway(server.url, tmp_path / "both.log", "--with-api", **tokens)
    with serves as (process, url), caller(url) as client:
        assert client.get("/node/").status_code == 200
        path, reads = "/node/api/v1/pow/status", {"Authorization": f"Bearer {16 * 'a'}"}
        assert client.get(path).status_code == 401
        assert client.get(path, headers=reads).json()["workers"]
        assert client.get(f"{POW}/status", headers=reads).status_code == 401
        events = "/node/api/v1/pow/events"
        with client.stream("GET", events, headers=reads) as stream:
            lines = stream.iter_lines()
            assert next(lines) == "event: overview"
            process.send_signal(signal.SIGTERM)
            assert wait_until(lambda: process.poll() is not None, 10, "its end")


def test_the_commands_of_the_docs(gateway: httpx.Client) -> None:
    """An operator who plays the controller has an answer to each call of docs/network.md."""
    page = (ROOT / "docs" / "network.md").read_text(encoding="utf-8")
    commands = page.partition("play the controller")[2].partition("```sh\n")[2].partition("```")[0]
    commands = commands.replace("http://127.0.0.1:8100", str(gateway.base_url).partition("/api")[0])
    commands = commands.replace("Qwen/Qwen3-8B", "net/model").replace("curl -s ", "curl -sw '\\n' ")
    done = subprocess.run(
        ["sh", "-euc", commands], capture_output=True, text=True, timeout=60, check=True
    )
    state, models, begun, status, computed, stopped = map(json.loads, done.stdout.splitlines())
    assert (state["state"], models["data"][0]["id"]) == ("INFERENCE", "net/model")
    assert begun["pow_status"]["status"] == status["status"] == "GENERATING"
    assert [each["nonce"] for each in computed["artifacts"]] == [0, 1]
    assert stopped["pow_status"] == {"status": "STOPPED"}


def test_a_stop_while_no_worker_lives_is_carried_out_by_the_next(
    server: EmbeddedRedis, model: Path, tmp_path: Path
) -> None:
    """It goes on with nothing that was stopped."""
    name = {"POC_NAMESPACE": "stopped"}
    config = PoCConfig(**BLOCK, seq_len=16, terms=ArtifactTerms())
    settings = load_settings({}, redis_url=server.url, namespace=name["POC_NAMESPACE"])
    with contextlib.closing(Store(settings)) as store:  # as if its workers had gone
        store.rounds.generate("task", GenerateRequest(config=config, round_id="r"))
    with calling(server, tmp_path / "gateway.log", **name) as gateway:
        assert gateway.get("/status").json()["status"] == "NO_BACKENDS"
        assert gateway.post("/stop").json()["message"] == "No backends to stop"
        with computing(server.url, model, tmp_path / "second.log", **name):
            wait_until(lambda: gateway.get("/status").json()["status"] == "IDLE", 20, "the stop")
