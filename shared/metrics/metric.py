"""A metric, and the ways in which its series are read from an overview."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from shared.overview import Overview
from shared.status import GpuReading, WorkerStatus

#: The values of a metric's labels, and the value that goes with them.
Series = tuple[tuple[str, ...], float]
Reader = Callable[[Overview], Iterable[Series]]


def _nothing(_: Overview) -> Iterable[Series]:
    return ()


@dataclass(frozen=True, slots=True)
class Metric:
    """One family of series."""

    name: str
    help: str
    read: Reader = _nothing
    labels: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """What Prometheus takes it for."""
        return "counter" if self.name.endswith("_total") else "gauge"

    def family(self, series: Iterable[Series]) -> CounterMetricFamily | GaugeMetricFamily:
        """Its `series` as the client library has them."""
        of_kind = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        family = of_kind(self.name, f"{self.help}.", labels=self.labels)
        for values, value in series:
            family.add_metric([_encodable(each) for each in values], value)
        return family


def _encodable(text: str) -> str:
    """`text` without what UTF-8 can't hold: somebody may have written any bytes to Redis."""
    return text.encode(errors="replace").decode()


def one(read: Callable[[Overview], float | None]) -> Reader:
    """A metric without labels; None where there is nothing to tell."""

    def series(seen: Overview) -> Iterator[Series]:
        if (value := read(seen)) is not None:
            yield (), value

    return series


def by(read: Callable[[Overview], dict[str, int]], *always: str) -> Reader:
    """A metric with one label, some of whose values are `always` there."""

    def series(seen: Overview) -> Iterator[Series]:
        for label, value in sorted((dict.fromkeys(always, 0) | read(seen)).items()):
            yield (label,), value

    return series


def by_worker(read: Callable[[Overview, WorkerStatus], float | None]) -> Reader:
    """A metric of each worker, with its name; None where one has nothing to tell."""

    def series(seen: Overview) -> Iterator[Series]:
        for worker in seen.node.workers:
            if (value := read(seen, worker)) is not None:
                yield (worker.name,), value

    return series


def by_gpu(read: Callable[[GpuReading], float | None]) -> Reader:
    """A metric of each GPU of each worker; None where the card does not tell."""

    def series(seen: Overview) -> Iterator[Series]:
        for labels, gpu in gpus(seen):
            if (value := read(gpu)) is not None:
                yield labels, value

    return series


def gpus(seen: Overview) -> Iterator[tuple[tuple[str, str], GpuReading]]:
    """Each GPU with the values of its labels: worker and UUID, or number where it has none."""
    for worker in seen.node.workers:
        for number, gpu in enumerate(worker.gpus):
            yield (worker.name, gpu.uuid or str(number)), gpu
