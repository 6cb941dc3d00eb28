"""How the metrics of a node are told: at each scrape, from one look at Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from shared.errors import StoreFailed, StoreUnavailable
from shared.metrics.table import BUILD, OF_A_NODE, REDIS_UP
from shared.overview import Overview
from shared.version import installed

_OPENMETRICS = "application/openmetrics-text"


class NodeCollector(Collector):
    """All metrics, from one look at the node per scrape."""

    def __init__(self, namespace: str, look: Callable[[], Overview]) -> None:
        self._build, self._look = (installed(), namespace), look

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Every family; without an answer of Redis only that there is none."""
        seen: Overview | None = None
        with suppress(StoreUnavailable, StoreFailed):  # told below, where the watch looks
            seen = self._look()
        yield BUILD.family([(self._build, 1)])
        yield REDIS_UP.family([((), seen is not None)])
        if seen is not None:
            for metric in OF_A_NODE:
                yield metric.family(metric.read(seen))


class Exposition:
    """The metrics of a node as a scrape gets them. Thread-safe if `look` is."""

    def __init__(self, namespace: str, look: Callable[[], Overview]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(NodeCollector(namespace, look))

    def scrape(self, accept: str) -> tuple[bytes, str]:
        """The text and its content type: OpenMetrics for who accepts it, else Prometheus' own."""
        # Not the header itself: the library puts parts of it into the answer's.
        encode, content_type = choose_encoder(_OPENMETRICS if _OPENMETRICS in accept else "")
        return encode(self._registry), content_type
