"""The status API over HTTP under whatever a client may ask, against its own description.

Schemathesis makes requests from the OpenAPI document and checks that each answer is one that the
document promises. A run is the same each time; for more, and other ones each time:
`pytest --hypothesis-profile=thorough tests/functional/test_fuzzed_api.py`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import psutil
import pytest
import schemathesis
from hypothesis import given
from hypothesis import strategies as st
from schemathesis import GenerationMode as Mode
from schemathesis.checks import negative_data_rejection

from caller import caller
from fuzzed import Served, answer_to, few, request
from serving_api import serving_api
from shared.config import MAX_NONCE, PoCConfig
from shared.data import ProofBatch
from shared.requests import GenerateRequest, ValidateRequest
from shared.settings import load_settings
from shared.store import Computed, Store
from worker.tools.embedded import EmbeddedRedis

pytestmark = [pytest.mark.functional, pytest.mark.timeout(3600)]

CONFIG = PoCConfig(block_hash="b10c", block_height=7, public_key="node", r_target=1.4, batch_size=4)
#: What the API wants to be shown.
TOKEN = "a-token-of-the-fuzzer-0123456789"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
#: MiB that the API may grow by.
GROWTH = 60


def fill(store: Store) -> None:
    """A round that is over, one that generates with odd nonces, a validation, a worker."""
    store.workers.heartbeat("w", {"fingerprint": "f"}, {"state": "generating"}, tokens=[])
    for round_id in ("r1", "r2"):
        store.rounds.generate(
            f"g-{round_id}", GenerateRequest(config=CONFIG, round_id=round_id, replace=True)
        )
        claim = store.rounds.claim("w", f"t-{round_id}")
        assert claim
        store.rounds.commit(
            claim, Computed(checked=4, valid=[(3, "1.25"), (MAX_NONCE, "0.1")], failed=0)
        )
    store.validations.open("v", ValidateRequest(batch=ProofBatch.of(CONFIG, [1, 2, 3], [0.5] * 3)))


@pytest.fixture(scope="module")
def api(redis_server: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One process for all tests: it must survive them all."""
    redis_server.start()
    # The worker's one heartbeat must last for all tests.
    lasting = load_settings(
        {}, redis_url=redis_server.url, namespace="api", heartbeat_s="60", lease_s="3600"
    )
    with contextlib.closing(Store(lasting)) as store:
        fill(store)
    log_path = tmp_path_factory.mktemp("api") / "api.log"
    with serving_api(redis_server.url, log_path, POC_NAMESPACE="api", POC_API_TOKENS=TOKEN) as (
        process,
        url,
    ):
        yield Served(url, process.pid, log_path)


@pytest.fixture(scope="module")
def described(api: Served) -> Any:
    """The API as it describes itself."""
    return schemathesis.openapi.from_url(f"{api.url}/openapi.json")


#: What takes parameters, and all there is.
ASKED = (
    "/api/v1/pow/status",
    "/api/v1/pow/rounds",
    "/api/v1/pow/rounds/{round_id}",
    "/api/v1/pow/nonces",
)
PATHS = (*ASKED, "/api/v1/pow/overview", "/metrics", "/livez", "/readyz")
#: What has no end, and takes nothing.
ENDLESS = "/api/v1/pow/events"


def test_nothing_else_is_described(described: Any) -> None:
    assert {result.ok().path for result in described.get_all_operations()} == {*PATHS, ENDLESS}


@pytest.mark.parametrize(
    ("path", "mode"),
    # What takes no parameters can't be asked wrongly.
    [(path, mode) for mode in Mode for path in PATHS if mode is Mode.POSITIVE or path in ASKED],
)
def test_answers_are_as_described(path: str, mode: Mode, described: Any, api: Served) -> None:
    """To parameters that are right (positive) and wrong (negative): no 500, nothing undescribed.

    What may be wrong is also the token, which is put right here.
    """

    @few
    @given(case=described[path]["GET"].as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        case.call_and_validate(headers=BEARER, excluded_checks=[negative_data_rejection])

    ask()
    api.check()


#: What a client may get wrong about a request line: any of it.
lines = st.sampled_from(["/", *PATHS, "/docs", "/openapi.json", "/nothing"]).flatmap(
    lambda path: st.text(max_size=20).map(lambda more: path + quote(more, safe="/?&=%"))
)
#: Of several values the last one counts.
SEVERAL = "1&newest=a&start=a&limit=a"
numbers = st.sampled_from(
    ["", "-1", "1e3", "0x10", "NaN", "٣", "1.0", "9" * 5000, "1" + "0" * 30, "%00", SEVERAL]
)
methods = st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"])


@pytest.fixture(scope="module")
def client(api: Served) -> Iterator[httpx.Client]:
    with caller(api.url, headers=BEARER) as client:
        yield client


def is_refusal(response: httpx.Response) -> bool:
    """It says in JSON, and in a few words, what is wrong."""
    return 400 <= response.status_code < 500 and "detail" in response.json()


@few
@given(method=methods, line=lines, body=st.binary(max_size=50))
def test_any_request_line_has_an_answer(
    method: str, line: str, body: bytes, api: Served, client: httpx.Client
) -> None:
    """Only GET gets anything, and nothing fails."""
    response = client.request(method, line, content=body)
    assert response.status_code < 500
    assert method in ("GET", "HEAD") or response.status_code in (404, 405, 413, 422)
    api.check()


@few
@given(path=st.sampled_from(ASKED), name=st.sampled_from(["newest", "start", "limit"]), n=numbers)
def test_odd_numbers_are_refused(
    path: str, name: str, n: str, api: Served, client: httpx.Client
) -> None:
    """Or not looked at, where there is no such parameter."""
    response = client.get(f"{path.format(round_id='r1')}?{name}={n}")
    newest = {each: ["newest"] for each in ("status", "rounds", "r1")}
    known = {**newest, "nonces": ["start", "limit"]}
    if name in known[response.url.path.rsplit("/")[-1]] and n not in ("1.0", "٣"):
        assert is_refusal(response)
    else:
        assert response.status_code in (200, 422)
    api.check()


#: What no client library would send.
REQUESTS = {
    "a long path": request("/" + "x" * 50_000),
    "an endless path": request("/" + "x" * 3_000_000),
    "an endless round id": request("/api/v1/pow/rounds/" + "x" * 3_000_000),
    "an endless query": request("/api/v1/pow/status?newest=" + "9" * 3_000_000),
    "an endless header": request("/livez", "X: " + "x" * 3_000_000),
    "many headers": request("/livez", *(f"X{n}: x" for n in range(20_000))),
    "out of the root": request("/../../../../etc/passwd"),
    "half an escape": request("/api/v1/pow/rounds/%"),
    "an escape of no character": request("/api/v1/pow/rounds/%ff%00"),
    "two lengths": request("/livez", "Content-Length: 1", "Content-Length: 2"),
    "a negative length": request("/livez", "Content-Length: -1"),
    "bad chunks": request("/livez", "Transfer-Encoding: chunked") + b"zz\r\n",
    "an upgrade": request("/livez", "Connection: Upgrade", "Upgrade: websocket"),
    "no HTTP": b"\x16\x03\x01\x02\x00\xff",
    "nothing": b"",
}


@pytest.mark.parametrize("name", REQUESTS)
def test_what_no_client_sends_fails_nothing(name: str, api: Served, client: httpx.Client) -> None:
    """A 4xx, or the server hangs up; the next one is answered."""
    answer = answer_to(REQUESTS[name], api.url)
    assert not re.match(rb"HTTP/1\.1 5", answer)
    assert len(answer) < 10_000
    assert client.get("/livez").status_code == 200
    api.check()


def test_large_bodies_and_answers_are_forgotten(api: Served, client: httpx.Client) -> None:
    """Whatever was sent and asked for, the process stays as small as it was."""
    process = psutil.Process(api.pid)
    client.get("/api/v1/pow/status")
    before = process.memory_info().rss
    for _ in range(10):
        for method in ("POST", "GET"):
            with contextlib.suppress(httpx.TransportError):  # it hangs up before it has read all
                client.request(method, "/api/v1/pow/status", content=b"x" * 5_000_000)
        client.get("/api/v1/pow/nonces?limit=10000")
    assert process.memory_info().rss - before < GROWTH << 20
    api.check()
