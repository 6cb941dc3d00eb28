"""Spans of this process, kept in its memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Tracer


def tracer_and_spans() -> tuple[Tracer, Callable[[], dict[str, ReadableSpan]]]:
    """A tracer of its own, and what gives the spans that ended so far, by name."""
    kept, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    return provider.get_tracer("test"), lambda: {s.name: s for s in kept.get_finished_spans()}
