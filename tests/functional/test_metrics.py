"""Scrapes of a real API beside a real worker, as Prometheus would do it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving_api import serving_api
from shared.client import PoCClient
from shared.config import PoCConfig
from shared.settings import Settings
from support import wait_until
from worker.tools.embedded import EmbeddedRedis

pytestmark = pytest.mark.functional

CONFIG = PoCConfig(block_hash="b", block_height=1, public_key="k", r_target=1, batch_size=8)

#: Series by name and labels: all, and those of counters.
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]
Scrape = Callable[[], tuple[Series, Series]]


@pytest.fixture
def scrape(settings: Settings, tmp_path: Path) -> Iterator[Scrape]:
    """A scrape of the settings' node."""
    with (
        serving_api(settings.redis_url, tmp_path / "api.log") as (_, url),
        httpx.Client(base_url=url, timeout=30, trust_env=False) as http,
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
