"""Scrapes of a real API beside a real worker, as Prometheus would do it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from caller import caller
from serving_api import serving_api
from shared.client import PoCClient
from shared.config import PoCConfig
from shared.settings import Settings
from support import ROOT, free_port, running, wait_until
from worker.tools.embedded import EmbeddedRedis

pytestmark = pytest.mark.functional

CONFIG = PoCConfig(block_hash="b", block_height=1, public_key="k", r_target=1, batch_size=8)

TOKEN = "a-token-of-the-scraper-0123456789"

#: Series by name and labels: all, and those of counters.
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]
Scrape = Callable[[], tuple[Series, Series]]


@pytest.fixture
def scrape(settings: Settings, tmp_path: Path) -> Iterator[Scrape]:
    """A scrape of the settings' node."""
    with (
        serving_api(settings.redis_url, tmp_path / "api.log") as (_, url),
        caller(url) as http,
    ):

        def scrape() -> tuple[Series, Series]:
            everything: Series = {}
            counters: Series = {}
            for family in text_string_to_metric_families(http.get("/metrics").text):
                for sample in family.samples:
                    name = (sample.name, frozenset(sample.labels.items()))
                    everything[name] = sample.value
                    if family.type == "counter":
                        counters[name] = sample.value
            return everything, counters

        yield scrape


def value(series: Series, metric: str, **labels: str) -> float:
    return series[metric, frozenset(labels.items())]


def test_counters_only_grow(
    scrape: Scrape, client: PoCClient, start_worker: Callable[..., object]
) -> None:
    """Given three rounds of one worker, then no scrape shows less than the one before it."""
    start_worker(seconds=0.01)
    seen = [scrape()]

    def checked() -> float:
        seen.append(scrape())
        return value(seen[-1][0], "poc_nonces_checked_total")

    for _ in range(3):
        before = checked()
        client.generate(CONFIG, replace=True)
        wait_until(lambda floor=before: checked() > floor + 50, description="a round under way")
        assert value(seen[-1][0], "poc_round_state", state="GENERATING") == 1
    client.stop()
    seen.append(scrape())
    for (_, earlier), (_, later) in pairwise(seen):
        assert {name: later[name] for name, count in earlier.items() if later[name] < count} == {}
    everything, counters = seen[-1]
    assert value(everything, "poc_round_state", state="STOPPED") == 1
    assert value(counters, "poc_rounds_replaced_total") == 2
    # All that was checked in the three rounds, of which the last alone is still the current one.
    assert value(counters, "poc_nonces_checked_total") > value(
        everything, "poc_round_checked_nonces"
    )
    worker = {"worker": "w0@test"}
    assert value(counters, "poc_worker_batches_total", **worker) >= 18
    assert value(counters, "poc_worker_busy_seconds_total", **worker) > 0


def test_redis_goes_and_comes_back(scrape: Scrape, redis_server: EmbeddedRedis) -> None:
    """Given a Redis that is killed, the scrape says so, until it is there again."""
    assert value(scrape()[0], "poc_redis_up") == 1
    redis_server.kill()
    everything, _ = scrape()
    assert value(everything, "poc_redis_up") == 0
    assert "poc_workers" not in {name for name, _ in everything}
    redis_server.start()
    wait_until(lambda: value(scrape()[0], "poc_redis_up") == 1, description="Redis to be found")


def test_prometheus_scrapes_it_as_the_compose_file_has_it_do(
    settings: Settings, tmp_path: Path
) -> None:
    """Given the scrape config in deploy/ with these addresses, it finds the node, with a token.

    And its alerts see that no worker lives.
    """
    if not shutil.which("prometheus"):
        pytest.skip("prometheus is not installed (Debian: apt install prometheus)")
    token, config, port = tmp_path / "token", tmp_path / "prometheus.yml", free_port()
    token.write_text(TOKEN)
    shipped = ROOT / "deploy" / "prometheus"
    with serving_api(settings.redis_url, tmp_path / "api.log", POC_API_TOKENS=TOKEN) as (_, url):
        text = (shipped / "prometheus.yml").read_text(encoding="utf-8")
        for there, here in {
            "api:8080": url.removeprefix("http://"),
            "/run/poc_api_token": str(token),
            "- alerts.yml": f"- {shipped}/alerts.yml",
            ": 15s": ": 1s",
        }.items():
            assert there in text
            text = text.replace(there, here)
        config.write_text(text)
        command = [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        base = f"http://127.0.0.1:{port}/api/v1"
        log = tmp_path / "prometheus.log"
        with (
            running(command, "ready to receive web requests", log),
            caller(base) as prometheus,
        ):

            def ask(what: str, **params: str) -> Any:
                return prometheus.get(what, params=params).json()["data"]

            found = wait_until(
                lambda: ask("/query", query="poc_redis_up == 1")["result"], 30, "a scrape"
            )
            assert found[0]["metric"]["job"] == "poc"
            wait_until(
                lambda: (
                    "PocNoWorker"
                    in {alert["labels"]["alertname"] for alert in ask("/alerts")["alerts"]}
                ),
                30,
                "an alert on its way",
            )
