"""The gateway over HTTP under whatever a caller may send, before a worker whose model computes.

Nothing fails, in the gateway or in the worker, and who does not ask to wait is answered in time. A
run is the same each time; for more, and other ones each time:
`pytest --hypothesis-profile=thorough tests/functional/test_fuzzed_gateway.py`.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
import pytest
import schemathesis
from hypothesis import given
from hypothesis import strategies as st
from schemathesis import GenerationMode as Mode
from schemathesis.checks import negative_data_rejection, positive_data_acceptance

from caller import caller
from calls import BLOCK, IN_TIME, POW
from computing import computing
from fuzzed import Served, answer_to, few, request
from serving_api import serving_gateway
from shared.gateway.access import MAX_BODY
from worker.tools.embedded import EmbeddedRedis
from worker.tools.make_model import make_model

pytestmark = [pytest.mark.functional, pytest.mark.timeout(3600)]

#: MiB that the gateway may grow by.
GROWTH = 60
TOKEN = "a-token-of-the-fuzzer-0123456789"
BEARER = {"Authorization": f"Bearer {TOKEN}"}

PARAMS = {"model": "net/model", "seq_len": 16}
ROUND = {**BLOCK, "node_id": 1, "node_count": 3, "params": PARAMS}
JOB = ROUND | {"nonces": [1, 4]}
VECTOR = "iLWqtgUw2zJTr46x+bB0N7exkjhAqhej"
#: Commands that take a body.
BEGIN, ASK = f"{POW}/init/generate", f"{POW}/generate"


@dataclass(frozen=True)
class Node:
    """A gateway and its worker."""

    gateway: Served
    worker: Served

    def check(self) -> None:
        """Both live, and have failed at nothing."""
        self.gateway.check()
        self.worker.check()


@pytest.fixture(scope="module")
def node(redis_server: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The one of all tests here: it must survive them all. Callbacks go nowhere else."""
    directory = tmp_path_factory.mktemp("node")
    model = make_model(directory / "model", max_seq_len=64)
    worker_log, log = directory / "worker.log", directory / "gateway.log"
    allow = {"POC_CALLBACK_ALLOW": "127.0.0.1"}
    own = {"POC_GATEWAY_MODEL": "net/model", "POC_GATEWAY_REPLACE": "true"}
    own |= {"POC_GATEWAY_TOKENS": TOKEN}
    with (
        computing(redis_server.start().url, model, worker_log, **allow) as worker,
        serving_gateway(redis_server.url, log, **allow, **own) as (process, url),
    ):
        yield Node(Served(url, process.pid, log), Served("", worker.pid, worker_log))


@pytest.fixture(scope="module")
def client(node: Node) -> Iterator[httpx.Client]:
    """A caller that may command."""
    with caller(node.gateway.url, headers=BEARER) as client:
        yield client
        client.post(f"{POW}/stop")


@pytest.fixture(scope="module")
def described(node: Node) -> Any:
    """The gateway as it describes itself."""
    return schemathesis.openapi.from_url(f"{node.gateway.url}/openapi.json", headers=BEARER)


#: What there is, without the second name of all that begins with POW.
PROOFS = {
    "/init/generate": "POST",
    "/generate": "POST",
    "/generate/{request_id}": "GET",
    "/status": "GET",
    "/stop": "POST",
    "/versions": "GET",
}
OTHERS = {
    "/api/v1/state": "GET",
    "/api/v1/stop": "POST",
    "/api/v1/gate": "GET",
    "/v1/models": "GET",
    "/health": "GET",
    "/readyz": "GET",
    "/livez": "GET",
}
ROUTES = {POW + path: method for path, method in PROOFS.items()} | OTHERS
#: What can be asked wrongly.
TAKES = (BEGIN, ASK)


def test_nothing_else_is_described(described: Any) -> None:
    found = {result.ok().path for result in described.get_all_operations()}
    assert found == ROUTES.keys() | {f"/api/v1/pow{path}" for path in PROOFS}


@pytest.mark.parametrize(
    ("path", "mode"),
    [(path, mode) for mode in Mode for path in ROUTES if mode is Mode.POSITIVE or path in TAKES],
)
def test_answers_are_as_described(path: str, mode: Mode, described: Any, node: Node) -> None:
    """To bodies and ids that are right (positive) and wrong (negative): no 500, and in time.

    What a description can't say is also refused, and what is unknown is ignored.
    """

    @few
    @given(case=described[path][ROUTES[path]].as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        excluded = [negative_data_rejection, positive_data_acceptance]
        answer = case.call_and_validate(headers=BEARER, excluded_checks=excluded)
        assert answer.elapsed < IN_TIME

    ask()
    node.check()


# Bodies that are right but for some fields.

numbers = st.sampled_from(
    [
        *(-1, 0, 1, 64, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 10**400),
        *(0.5, 1e-300, 1e300, -0.0, float("nan"), float("inf"), True),
    ]
)
urls = st.sampled_from(
    [
        *("http://127.0.0.1:1/x", "http://127.0.0.1:99999", "http://u:p@127.0.0.1/", "http://[::1"),
        *("http://169.254.169.254/", "http://2852039166/", "ftp://h", "http://\0", "//h", "x"),
    ]
)
texts = st.text(st.characters(), max_size=20)
anything = st.recursive(
    st.none() | numbers | texts | st.sampled_from([VECTOR, "%%%", "x" * 1000]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def some_of(usual: dict[str, Any], **odd: Any) -> st.SearchStrategy[dict[str, Any]]:
    """`usual` with some fields changed, left out, or unknown ones added."""
    changes = st.fixed_dictionaries({}, optional={name: odd.get(name, anything) for name in usual})
    return st.builds(
        lambda change, more, gone: {k: v for k, v in (usual | change | more).items() if k != gone},
        changes,
        st.dictionaries(texts, anything, max_size=1),
        st.sampled_from([*usual, *[""] * len(usual)]),
    )


claims = st.lists(some_of({"nonce": 1, "vector_b64": VECTOR}), max_size=3)
bodies = some_of(
    JOB
    | {"url": None, "wait": False, "validation": None, "stat_test": None}
    | {"poc_stronger_rng": False, "batch_size": None},
    params=some_of(PARAMS, seq_len=numbers) | anything,
    url=urls | anything,
    nonces=st.lists(numbers, max_size=5) | anything,
    validation=st.builds(lambda artifacts: {"artifacts": artifacts}, claims) | anything,
    stat_test=some_of(
        dict.fromkeys(("dist_threshold", "p_mismatch", "p_value_threshold", "fraud_threshold"), 0.1)
    ),
    wait=st.just(False),
)


@pytest.mark.parametrize("path", [BEGIN, ASK])
def test_any_body_has_an_answer(path: str, node: Node, client: httpx.Client) -> None:
    """It is done, or refused with a reason."""

    @few
    @given(body=bodies)
    def ask(body: dict[str, Any]) -> None:
        answer = client.post(path, content=json.dumps(body))
        assert answer.status_code in (200, 400, 409, 422, 429), answer.text
        assert answer.status_code == 200 or answer.json()["detail"]
        assert answer.elapsed.total_seconds() < IN_TIME

    ask()
    node.check()


def claimed(nonce: int, vector: str) -> dict[str, Any]:
    return {"validation": {"artifacts": [{"nonce": nonce, "vector_b64": vector}]}}


#: What is wrong: where it is sent, the fields, the status, and what the answer names.
WRONG: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "an extra parameter": (BEGIN, {"params": PARAMS | {"foo": 1}}, 422, '"foo"'),
    "another model": (BEGIN, {"params": PARAMS | {"model": "m"}}, 409, "params"),
    "another seq_len": (BEGIN, {"params": PARAMS | {"seq_len": 65}}, 409, "params"),
    "a node outside": (BEGIN, {"node_id": 3}, 422, "node_id"),
    "no nodes": (BEGIN, {"node_id": 0, "node_count": 0}, 422, '"node_count"'),
    "a closed receiver": (BEGIN, {"url": "http://169.254.169.254/latest"}, 400, "url: "),
    "a receiver that is not allowed": (BEGIN, {"url": "http://10.1.2.3/"}, 400, "url: "),
    "no receiver": (BEGIN, {"url": "http://"}, 422, '"url"'),
    "a boolean for a number": (BEGIN, {"block_height": True}, 422, '"block_height"'),
    "half a character": (BEGIN, {"block_hash": "\ud800"}, 422, '"block_hash"'),
    "an endless name": (BEGIN, {"public_key": "x" * 257}, 422, '"public_key"'),
    "no nonces": (ASK, {"nonces": []}, 422, '"nonces"'),
    "a nonce that receivers can't keep": (ASK, {"nonces": [2**31]}, 422, '"nonces"'),
    "a nonce twice": (ASK, {"nonces": [1, 1]}, 400, "a nonce is repeated"),
    "too many nonces": (ASK, {"nonces": list(range(100_001))}, 429, "100001"),
    "claims for others": (ASK, claimed(7, VECTOR), 400, "validation.artifacts"),
    "no base64": (ASK, {"nonces": [1], **claimed(1, "%%%")}, 400, "vector_b64"),
    "odds of one": (ASK, {"stat_test": {"p_mismatch": 1}}, 422, '"p_mismatch"'),
    "odds that are none": (ASK, {"stat_test": {"p_mismatch": float("nan")}}, 422, '"p_mismatch"'),
    "an unknown threshold": (ASK, {"stat_test": {"foo": 0.1}}, 422, '"foo"'),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_with_the_field(
    name: str, node: Node, client: httpx.Client
) -> None:
    """And nothing begins."""
    path, fields, status, named = WRONG[name]
    client.post(f"{POW}/stop")
    answer = client.post(path, content=json.dumps((JOB if path == ASK else ROUND) | fields))
    assert answer.status_code == status
    assert named in json.dumps(answer.json()["detail"])
    assert client.get(f"{POW}/status").json()["status"] == "IDLE"
    node.check()


@pytest.mark.parametrize(
    ("id", "status"),
    [
        ("00000000-0000-0000-0000-000000000000", 404),
        ("8001:0f8f7d0a-8c1c-4c1b-9d5e-3f3a2f1b0c9d", 400),  # of the network's own proxy
        ("%00", 400),
        ("0f8f7d0a-8c1c-4c1b-9d5e-3f3a2f1b0c9d%0a", 400),
        ("x" * 10_000, 400),
    ],
)
def test_a_job_of_others_is_unknown(id: str, status: int, client: httpx.Client) -> None:
    answer = client.get(f"{ASK}/{id}")
    assert (answer.status_code, bool(answer.json()["detail"])) == (status, True)


def body_of(text: str) -> bytes:
    """A job with something more; its fields come last, so that those of `text` don't count."""
    return ("{" + text + "," + json.dumps(JOB)[1:]).encode()


#: What is no JSON, or JSON that few would write, and whether it is a job all the same.
ODD: dict[str, tuple[bytes, bool]] = {
    "nothing": (b"", False),
    "half an object": (b'{"nonces": [1', False),
    "no object": (b"[1]", False),
    "no text": (b"\xff\xfe\xfa", False),
    "a text that is cut": (b'{"block_hash": "\xc3', False),
    "too deep": (b"[" * 1_000_000, False),
    "deep, but whole": (body_of('"x": ' + "[" * 100_000 + "]" * 100_000), False),
    "a huge number": (body_of('"x": ' + "9" * 5000), False),
    "a number beyond all": (body_of('"x": 1e999'), True),
    "what is no number": (body_of('"x": [NaN, Infinity, -Infinity]'), True),
    "a field twice": (body_of('"nonces": "x"'), True),
    "half a character": (body_of('"\\ud800": "\\udfff"'), True),
    "a zero character": (body_of('"\\u0000": 0'), True),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "in chunks"])
def test_odd_json_is_read_or_refused(
    name: str, chunked: bool, node: Node, client: httpx.Client
) -> None:
    body, is_job = ODD[name]
    sent = iter([body[at : at + 7000] for at in range(0, len(body), 7000)]) if chunked else body
    answer = client.post(ASK, content=sent)
    assert answer.status_code == 200 if is_job else answer.status_code in (400, 422)
    assert answer.elapsed.total_seconds() < IN_TIME
    node.check()


def post(*headers: str, body: bytes = b"") -> bytes:
    return request(ASK, f"Authorization: Bearer {TOKEN}", *headers, method="POST", body=body)


LONG = f"Content-Length: {MAX_BODY + 1}"
CHUNK = b"%x\r\n" % 2**20 + b" " * 2**20 + b"\r\n"
#: What no client library would send, and the status; None where the server may hang up instead.
REQUESTS: dict[str, tuple[bytes, set[int | None]]] = {
    "a body that would be too long": (post(LONG), {413}),
    "a body that would be too long, if wanted": (post(LONG, "Expect: 100-continue"), {413}),
    "an endless length": (post("Content-Length: " + "9" * 18), {413}),
    "no length that a number holds": (post("Content-Length: " + "9" * 5000), {400}),
    "chunks without an end": (post("Transfer-Encoding: chunked", body=CHUNK * 18), {413, None}),
    "a body that is cut": (post("Content-Length: 100", body=b"{"), {None}),
    "chunks that are cut": (post("Transfer-Encoding: chunked", body=b"5\r\n{"), {None}),
    "no chunks": (post("Transfer-Encoding: chunked", body=b"zz\r\n"), {400}),
    "two lengths": (post("Content-Length: 1", "Content-Length: 2", body=b"{}"), {400}),
    "a negative length": (post("Content-Length: -1"), {400}),
    "a token that is no text": (request(ASK, "Authorization: Bearer \xff", method="POST"), {401}),
    "no HTTP": (b"\x16\x03\x01\x02\x00\xff", {400}),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_what_no_client_sends_fails_nothing(name: str, node: Node, client: httpx.Client) -> None:
    """What is too long is refused as soon as that is known."""
    sent, statuses = REQUESTS[name]
    began = time.monotonic()
    answer = answer_to(sent, node.gateway.url)
    assert time.monotonic() - began < IN_TIME
    found = re.match(rb"HTTP/1\.1 (\d+)", answer)
    assert (found and int(found[1])) in statuses
    assert client.get("/livez").status_code == 200
    node.check()


#: Errors that a body has room for: what is before them, each (# is its number), what is after.
MILLIONS = {
    "nonces": ('"nonces": [', "null", "]"),
    "claims": ('"validation": {"artifacts": [', "{}", "]}"),
    "claims of one": (
        '"nonces": [1], "validation": {"artifacts": [',
        '{"nonce":1,"vector_b64":"%"}',
        "]}",
    ),
    "parameters": ('"params": {', '"#": 1', "}"),
    "thresholds": ('"stat_test": {', '"#": 1', "}"),
}


@pytest.mark.parametrize("name", MILLIONS)
def test_millions_of_errors_hold_nobody_up(name: str, node: Node, client: httpx.Client) -> None:
    """By the gateway's own clock, which another process can't slow down."""
    start, each, end = MILLIONS[name]
    count = MAX_BODY // 2 // (len(each) + 6)
    many = ",".join(each.replace("#", f"{at:x}") for at in range(count))
    body = (json.dumps(JOB)[:-1] + "," + start + many + end + "}").encode()
    process = psutil.Process(node.gateway.pid)
    before = process.cpu_times()
    answer = client.post(ASK, content=body)
    after = process.cpu_times()
    assert answer.status_code in (413, 422, 429)
    assert len(answer.content) < 2000
    assert (after.user - before.user) + (after.system - before.system) < IN_TIME


def test_large_bodies_are_forgotten(node: Node, client: httpx.Client) -> None:
    """Whatever was sent, the gateway stays as small as it was."""
    process = psutil.Process(node.gateway.pid)
    whole, over = b" " * MAX_BODY, b" " * (MAX_BODY + 1)

    def send() -> None:
        assert client.post(ASK, content=whole).status_code == 422
        with contextlib.suppress(httpx.TransportError):  # it hangs up before it has read all
            assert client.post(ASK, content=iter([over])).status_code == 413

    send()
    before = process.memory_info().rss
    for _ in range(10):
        send()
    assert process.memory_info().rss - before < GROWTH << 20
    node.check()


def test_many_callers_are_answered_in_time(node: Node, client: httpx.Client) -> None:
    """While a round generates: 20 at a time, who look, ask for vectors and for how jobs stand.

    On a machine that does other things, too, some are told 503, which is in time as well.
    """
    assert client.post(BEGIN, json=ROUND | {"block_hash": "busy"}).status_code == 200

    def call(number: int) -> tuple[int, float]:
        with caller(node.gateway.url, headers=BEARER) as one:
            slowest, statuses = 0.0, set()
            for at in range(10):
                job = one.post(ASK, json=JOB | {"nonces": [100 * number + at]})
                looks = [one.get(f"{POW}/status"), one.get("/v1/models")]
                if job.status_code == 200:
                    looks.append(one.get(f"{ASK}/{job.json()['request_id']}"))
                statuses |= {each.status_code for each in (job, *looks)}
                slowest = max([slowest, *(each.elapsed.total_seconds() for each in (job, *looks))])
        assert 200 in statuses
        assert statuses <= {200, 429, 503}
        return 40, slowest

    began = time.monotonic()
    with ThreadPoolExecutor(20) as pool:
        calls, slowest = zip(*pool.map(call, range(20)), strict=True)
    rate = sum(calls) / (time.monotonic() - began)
    print(f"\n{rate:.0f} requests a second, the slowest took {max(slowest):.2f} s")
    assert max(slowest) < IN_TIME
    assert client.get(f"{POW}/status").json()["config"]["block_hash"] == "busy"
    node.check()
