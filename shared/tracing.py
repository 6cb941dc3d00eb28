"""Traces: the steps of a command, in all processes that it goes through, as OpenTelemetry spans.

    send ─▶ process ─▶ batch ─▶ commit ─▶ POST
                   └─▶ chunk ─▶ judge ─▶ POST

A command's message brings the W3C trace context (`traceparent`), the round or the validation keeps
it, and the callback takes it on. Spans are made only once `start` has found OpenTelemetry, and in
its variables where they go; until then the context goes through as it came, at no cost.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping
from contextvars import Token
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from shared.about import ABOUT, NOTHING, About, about

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

log = logging.getLogger(__name__)

Kind = Literal["INTERNAL", "CLIENT", "PRODUCER", "CONSUMER"]
Attributes = Mapping[str, str | int | float]

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}(-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(?:-.*)?"
)
#: Seconds that an export may take unless a variable says it: the end of a process waits for two of
#: them, and a collector that is away must not hold it up for long.
EXPORT_TIMEOUT_S = 3.0
_TIMEOUTS = ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT")
#: Who makes spans, if anybody does.
_tracer: Tracer | None = None


def traceparent_of(value: object) -> str:
    """A message's `traceparent`; empty for none, and for what is none: W3C lets it be ignored."""
    found = isinstance(value, str) and len(value) <= 512 and _TRACEPARENT.fullmatch(value)
    return f"00{found[1]}" if found else ""


class Step:
    """A step of a trace, for as long as its block takes, or until it is ended.

    The calling thread is at `about` within the block.
    """

    __slots__ = ("_about", "_before", "_span")
    _before: Token[About]

    def __init__(self, about: About, span: Span | None = None) -> None:
        self._about, self._span = about, span

    @property
    def about(self) -> About:
        """The round, and the trace with this step in it."""
        return self._about

    def tell(self, name: str, value: str | int) -> None:
        """Show one more attribute."""
        if self._span:
            self._span.set_attribute(name, value)

    def end(self, error: BaseException | None = None) -> None:
        """End it, as failed if there is an `error`."""
        if self._span:
            if error:
                self.failed(f"{type(error).__name__}: {error}")
            self._span.end()

    def failed(self, why: str) -> None:
        """Show that it failed."""
        if self._span:
            from opentelemetry.trace import StatusCode

            self._span.set_status(StatusCode.ERROR, why)

    def __enter__(self) -> Self:
        self._before = ABOUT.set(self._about)
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        ABOUT.reset(self._before)
        self.end(error)


class _Nothing(Step):
    """Of what the thread is at, and without a span: there is nothing to do."""

    __slots__ = ()

    @property
    def about(self) -> About:
        """What the thread is at."""
        return about()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing was changed."""


_NOTHING = _Nothing(NOTHING)


def step(
    name: str,
    kind: Kind = "INTERNAL",
    of: About | None = None,
    attributes: Attributes | None = None,
) -> Step:
    """A step of what `of`, by default the calling thread, is about."""
    if _tracer is None:
        return _NOTHING if of is None else Step(of)
    parent = about() if of is None else of
    from opentelemetry.trace import SpanKind

    shown = dict(attributes or {})
    if parent.round_id:
        shown["poc.round_id"] = parent.round_id
    span = _tracer.start_span(
        name, _context_of(parent.traceparent), SpanKind[kind], attributes=shown
    )
    made = span.get_span_context()
    if not made.is_valid:
        return Step(parent)
    traceparent = f"00-{made.trace_id:032x}-{made.span_id:016x}-{made.trace_flags:02x}"
    return Step(replace(parent, traceparent=traceparent), span)


def sending(task: str) -> Step:
    """The step in which a client sends a command, if its process has somebody whom spans go to."""
    adopt()
    return step(f"send {task}", "PRODUCER")


def start(instance: str, namespace: str) -> None:
    """Make spans from now on, if the variables of OpenTelemetry say where they go.

    What can't be done is said in the log, and no reason to do without the rest.
    """
    if not _wanted(os.environ):
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning(
            "no traces: OTEL_* variables ask for them, and OpenTelemetry is not installed; "
            "pip install 'poc-worker[tracing]'"
        )
        return
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        who = {"service.instance.id": instance, "poc.namespace": namespace}
        if not os.environ.get("OTEL_SERVICE_NAME"):
            who["service.name"] = "poc-worker"
        provider = TracerProvider(resource=Resource.create(who))
        asked = [name for name in _TIMEOUTS if os.environ.get(name)]
        exporter = OTLPSpanExporter(timeout=None if asked else EXPORT_TIMEOUT_S)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
    adopt()


def adopt() -> None:
    """Make spans from now on, if this process has somebody whom they go to."""
    global _tracer
    # Whoever set one up has imported it.
    if "opentelemetry.sdk.trace" in sys.modules:
        from opentelemetry import trace

        if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            _tracer = trace.get_tracer("poc-worker")


def _wanted(environ: Mapping[str, str]) -> bool:
    """Whether the variables ask for traces, by what we have."""

    def first(*names: str) -> str:
        return next((value for name in names if (value := environ.get(f"OTEL_{name}"))), "")

    exporter = first("TRACES_EXPORTER")
    endpoint = first("EXPORTER_OTLP_TRACES_ENDPOINT", "EXPORTER_OTLP_ENDPOINT")
    if first("SDK_DISABLED").lower() == "true" or exporter == "none" or not (exporter or endpoint):
        return False
    protocol = first("EXPORTER_OTLP_TRACES_PROTOCOL", "EXPORTER_OTLP_PROTOCOL")
    for name, value, ours in (
        ("OTEL_TRACES_EXPORTER", exporter, "otlp"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol, "http/protobuf"),
    ):
        if value not in ("", ours):
            log.warning("no traces: %s=%s: only %s is there", name, value, ours)
            return False
    return True


def _context_of(traceparent: str) -> Context | None:
    """What a span's parent is to OpenTelemetry; None for whatever span it is in."""
    if not traceparent_of(traceparent):  # also what a stray hand wrote into Redis
        return None
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    _, trace_id, span_id, flags = traceparent.split("-")
    parent = SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16))
    )
    return set_span_in_context(NonRecordingSpan(parent), Context())


__all__ = ["Step", "sending", "start", "step", "traceparent_of"]
