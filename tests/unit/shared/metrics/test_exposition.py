"""What a scrape of the status API gives, as Prometheus' own parser reads it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import fakeredis
import pytest
from fastapi.testclient import TestClient
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from shared.api import create_app
from shared.config import PoCConfig
from shared.metrics import METRICS
from shared.metrics.table import OUTCOMES, REASONS
from shared.requests import GenerateRequest
from shared.settings import Settings, load_settings
from shared.status import Incident
from shared.store import Computed, Message, Store, fresh_id
from shared.store.connection import Client
from shared.store.keys import Keys
from support import kept

CONFIG = PoCConfig(block_hash="b", block_height=7, public_key="k", r_target=1.4, batch_size=4)
OPENMETRICS = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
GPU = {
    "name": "A card",
    "uuid": "GPU-1",
    "utilization": 0.5,
    "memory_used_bytes": 4096,
    "memory_total_bytes": 8192,
    "temperature_celsius": 61.0,
    "power_watts": 350.5,
}
#: Everything that could break a label, and a byte that is no UTF-8, as the store reads it.
HOSTILE = 'w"\n\\{}=,# é'
NO_TEXT = "\udcff"

#: A series: the name with its labels, sorted.
Name = tuple[str, tuple[tuple[str, str], ...]]


@pytest.fixture
def server() -> fakeredis.FakeServer:
    """A Redis that can be taken away: `server.connected = False`."""
    return fakeredis.FakeServer()


@pytest.fixture
def redis(server: fakeredis.FakeServer) -> Client:
    return fakeredis.FakeRedis(
        server=server, decode_responses=True, encoding_errors="surrogateescape"
    )


@pytest.fixture
def settings() -> Settings:
    return load_settings({}, namespace="test")


@pytest.fixture
def store(redis: Client, settings: Settings) -> Store:
    return Store(settings, redis)


@pytest.fixture
def api(store: Store, settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings, store)) as client:
        yield client


def series(text: str) -> dict[Name, float]:
    """What the text format says."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(api: TestClient) -> dict[Name, float]:
    return series(api.get("/metrics").text)


def value(seen: dict[Name, float], metric: str, /, **labels: str) -> float:
    return seen[metric, tuple(sorted(labels.items()))]


def beat(store: Store, name: str = "w", **fields: Any) -> None:
    """A worker's heartbeat, with all that one tells."""
    told = {
        "state": "generating",
        "host": "a-host",
        "device": "cuda:0",
        "model": "a-model",
        "fingerprint": "f",
        "vocab_size": "1024",
        "rate_per_second": "100",
        "computed": "1000",
        "batches": "10",
        "busy_seconds": "9.5",
        "tile": "64",
        "checks": "3",
        "checked_at": "1000",
        "started_at": "900",
        "gpus": json.dumps([GPU]),
    }
    store.workers.heartbeat(name, {"fingerprint": "f"}, told | fields, tokens=[])


def busy_node(store: Store) -> None:
    """A round, a worker, a delivered and a refused callback, an incident."""
    round_id = store.rounds.generate(fresh_id(), GenerateRequest(config=CONFIG)).round_id
    for valid in ([(0, 1.1)], [(4, 1.2), (5, 1.3)]):
        claim = store.rounds.claim("w", fresh_id())
        assert claim
        message = Message("http://c", "{}", fresh_id(), round_id, 60)
        store.rounds.commit(claim, Computed(3, kept(valid), failed=1, message=message))
    delivered, refused = store.outbox.take("s", 10)
    store.outbox.settle(delivered)
    store.outbox.settle(refused, "it answered 404", "status_404")
    assert store.rounds.claim("w", fresh_id())
    store.workers.report(Incident(worker="w", at=1.0, reason="it hung"))
    beat(store)


def test_it_tells_of_the_round(api: TestClient, store: Store) -> None:
    busy_node(store)
    seen = scrape(api)
    states = {
        state: value(seen, "poc_round_state", state=state)
        for state in ("IDLE", "GENERATING", "VALIDATING", "STOPPED")
    }
    assert states == {"IDLE": 0, "GENERATING": 1, "VALIDATING": 0, "STOPPED": 0}
    assert value(seen, "poc_round_checked_nonces") == 6
    assert value(seen, "poc_round_valid_nonces") == 3
    assert value(seen, "poc_round_failed_nonces") == 2
    assert value(seen, "poc_round_block_height") == 7
    assert value(seen, "poc_round_r_target") == 1.4
    assert value(seen, "poc_round_claimed_batches") == 1
    assert value(seen, "poc_round_expected_valid_ratio") == pytest.approx(0.261, abs=0.001)


def test_it_tells_what_happened_so_far(api: TestClient, store: Store) -> None:
    busy_node(store)
    seen = scrape(api)
    assert value(seen, "poc_nonces_checked_total") == 6
    assert value(seen, "poc_nonces_valid_total") == 3
    assert value(seen, "poc_nonces_failed_total") == 2
    assert value(seen, "poc_incidents_total") == 1
    assert value(seen, "poc_callbacks_delivered_total") == 1
    assert value(seen, "poc_callbacks_refused_total", reason="status_404") == 1


def test_it_tells_of_each_worker_and_its_gpu(api: TestClient, store: Store) -> None:
    busy_node(store)
    beat(store, "other", gpus="[]", checked_at="0")
    seen = scrape(api)
    assert value(seen, "poc_workers") == 2
    assert value(seen, "poc_worker_batches_total", worker="w") == 10
    assert value(seen, "poc_worker_busy_seconds_total", worker="w") == 9.5
    assert value(seen, "poc_worker_nonces_computed_total", worker="w") == 1000
    assert value(seen, "poc_worker_tile_sequences", worker="w") == 64
    assert value(seen, "poc_worker_functional_checks_total", worker="w") == 3
    assert value(seen, "poc_worker_functional_check_age_seconds", worker="w") > 1e9
    assert 0 <= value(seen, "poc_worker_heartbeat_age_seconds", worker="w") < 60
    assert value(seen, "poc_worker_state", worker="w", state="generating") == 1
    of_gpu = {"worker": "w", "gpu": "GPU-1"}
    assert value(seen, "poc_gpu_info", **of_gpu, name="A card") == 1
    assert value(seen, "poc_gpu_utilization_ratio", **of_gpu) == 0.5
    assert value(seen, "poc_gpu_memory_used_bytes", **of_gpu) == 4096
    assert value(seen, "poc_gpu_memory_size_bytes", **of_gpu) == 8192
    assert value(seen, "poc_gpu_temperature_celsius", **of_gpu) == 61
    assert value(seen, "poc_gpu_power_watts", **of_gpu) == 350.5
    # What nobody knows is not told.
    assert not [name for name in seen if ("worker", "other") in name[1] and "gpu_" in name[0]]
    assert ("poc_worker_functional_check_age_seconds", (("worker", "other"),)) not in seen


def test_every_metric_of_the_table_is_told(api: TestClient, store: Store) -> None:
    """Under its name, with its type and labels, and nothing else is."""
    busy_node(store)
    told = {}
    for family in text_string_to_metric_families(api.get("/metrics").text):
        (name,) = {sample.name for sample in family.samples}
        (labels,) = {tuple(sorted(sample.labels)) for sample in family.samples}
        told[name] = (family.type, labels)
    assert told == {each.name: (each.kind, tuple(sorted(each.labels))) for each in METRICS}


def test_counters_are_there_before_anything_happens(api: TestClient) -> None:
    """With zeros: Prometheus sees no increase in a series that begins with 1."""
    seen = scrape(api)
    for outcome in OUTCOMES:
        assert value(seen, "poc_validations_total", outcome=outcome) == 0
    for reason in REASONS:
        assert value(seen, "poc_callbacks_refused_total", reason=reason) == 0
    assert value(seen, "poc_workers") == 0


def test_both_formats_say_the_same(api: TestClient, store: Store) -> None:
    """OpenMetrics for who accepts it, Prometheus' text for all others."""
    busy_node(store)
    text, openmetrics = api.get("/metrics"), api.get("/metrics", headers=OPENMETRICS)
    assert text.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert openmetrics.headers["Content-Type"].startswith("application/openmetrics-text;")
    names = {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in openmetrics_families(openmetrics.text)
        for sample in family.samples
    }
    assert names == series(text.text).keys()


@pytest.mark.parametrize(
    "accept", ["application/openmetrics-text;version=x", "text/plain;version=\xff", "nonsense", ""]
)
def test_an_odd_accept_header_gets_metrics(accept: str, api: TestClient) -> None:
    response = api.get("/metrics", headers={"Accept": accept.encode("latin-1")})
    assert (response.status_code, "poc_redis_up 1.0" in response.text) == (200, True)


def test_hostile_text_stays_in_its_label(
    api: TestClient, store: Store, redis: Client, settings: Settings
) -> None:
    """Quotes, line ends and bytes that are no UTF-8."""
    beat(store, HOSTILE)
    redis.hset(Keys(settings.namespace)("worker", HOSTILE), "model", HOSTILE + NO_TEXT)
    seen = scrape(api)
    assert value(seen, "poc_worker_batches_total", worker=HOSTILE) == 10
    (info,) = [dict(labels) for name, labels in seen if name == "poc_worker_info"]
    assert info["model"] == HOSTILE + "?"


def test_without_redis_it_says_so(api: TestClient, server: fakeredis.FakeServer) -> None:
    """With status 200, else Prometheus could not tell it from an API that is gone."""
    server.connected = False
    response = api.get("/metrics")
    assert response.status_code == 200
    seen = series(response.text)
    assert {name for name, _ in seen} == {"poc_build_info", "poc_redis_up"}
    assert value(seen, "poc_redis_up") == 0


def test_a_redis_that_fails_says_so(api: TestClient, redis: Client, settings: Settings) -> None:
    """Given a key of another type, as a stray hand leaves it."""
    redis.set(Keys(settings.namespace)("totals"), "x")
    assert value(scrape(api), "poc_redis_up") == 0


def test_it_is_for_those_with_a_token(redis: Client) -> None:
    """Like all that tells of rounds."""
    token = "a-token-0123456789"
    settings = load_settings({}, namespace="test", api_tokens=token)
    with TestClient(create_app(settings, Store(settings, redis))) as api:
        assert api.get("/metrics").status_code == 401
        allowed = api.get("/metrics", headers={"Authorization": f"Bearer {token}"})
        assert allowed.status_code == 200


def test_names_are_as_prometheus_wants_them(api: TestClient, store: Store) -> None:
    """`promtool check metrics` has nothing to say."""
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed (Debian: apt install prometheus)")
    busy_node(store)
    text = api.get("/metrics").text
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
