"""Steps of a trace: what they are with OpenTelemetry, and what is left of them without."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from shared import tracing
from shared.about import About, about, at

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OF = About("r1", PARENT)


@pytest.fixture(autouse=True)
def _off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this process did before."""
    monkeypatch.setattr(tracing, "_tracer", None)
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (PARENT, PARENT),
        (f"cc{PARENT[2:]}-of-a-later-version", PARENT),
        (f"ff{PARENT[2:]}", ""),
        (PARENT.upper(), ""),
        (PARENT.replace("b7ad6b7169203331", "0" * 16), ""),
        (PARENT.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32), ""),
        (PARENT[:-1], ""),
        (f"{PARENT}\n", ""),
        ("", ""),
        (None, ""),
        (7, ""),
        ({"a": 1}, ""),
    ],
)
def test_what_is_no_trace_context_is_none(given: object, taken: str) -> None:
    """A bad one is ignored, as W3C asks."""
    assert tracing.traceparent_of(given) == taken


class TestWithoutATracer:
    """The context goes through as it came."""

    def test_a_step_is_of_what_its_parent_is_of(self) -> None:
        before = about()
        with tracing.step("batch", of=OF) as step:
            step.tell("poc.refused", "why")
            with tracing.step("commit"):
                assert about() == OF
        assert about() == before

    def test_no_variable_asks_for_traces(self) -> None:
        tracing.start("w", "test")
        assert tracing._tracer is None

    @pytest.mark.parametrize(
        "variables",
        [
            {"OTEL_SDK_DISABLED": "true"},
            {"OTEL_TRACES_EXPORTER": "none"},
        ],
    )
    def test_variables_turn_it_off(
        self,
        variables: dict[str, str],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Without a word."""
        for name, value in (variables | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}).items():
            monkeypatch.setenv(name, value)
        tracing.start("w", "test")
        assert tracing._tracer is None
        assert caplog.text == ""

    @pytest.mark.parametrize(
        ("name", "value", "ours"),
        [
            ("OTEL_TRACES_EXPORTER", "zipkin", "otlp"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "http/protobuf"),
        ],
    )
    def test_what_is_not_there_is_said(
        self,
        name: str,
        value: str,
        ours: str,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """And no reason not to work."""
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c")
        monkeypatch.setenv(name, value)
        tracing.start("w", "test")
        assert caplog.messages == [f"no traces: {name}={value}: only {ours} is there"]

    def test_what_is_not_installed_is_said(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """With what to install."""
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c")
        monkeypatch.setitem(sys.modules, "opentelemetry", None)
        tracing.start("w", "test")
        (said,) = caplog.messages
        assert said == (
            "no traces: OTEL_* variables ask for them, and OpenTelemetry is not installed; "
            "pip install 'poc-worker[tracing]'"
        )


class TestSpans:
    """With a tracer, each step is one."""

    @pytest.fixture
    def spans(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Gives the spans that ended so far, by name."""
        from traced import tracer_and_spans

        tracer, spans = tracer_and_spans()
        monkeypatch.setattr(tracing, "_tracer", tracer)
        return spans

    def test_a_step_goes_on_where_its_parent_was(self, spans: Any) -> None:
        """In the same trace, also over processes; what it is about goes along."""
        with tracing.step("batch", of=OF, attributes={"poc.count": 4}) as batch:
            assert batch.about.trace_id == OF.trace_id
            with tracing.step("commit") as commit:
                commit.tell("poc.refused", "why")
        outer, inner = spans()["batch"], spans()["commit"]
        assert f"{outer.parent.span_id:016x}" == "b7ad6b7169203331"
        assert outer.attributes == {"poc.round_id": "r1", "poc.count": 4}
        assert inner.parent.span_id == outer.context.span_id
        assert inner.attributes["poc.refused"] == "why"
        assert batch.about.traceparent.endswith(f"-{outer.context.span_id:016x}-01")

    def test_a_step_without_a_parent_begins_a_trace(self, spans: Any) -> None:
        """So that whoever carries out a command that has none still traces it."""
        with at(About()), tracing.step("process poc.generate") as step:
            assert step.about.trace_id
        assert spans()["process poc.generate"].parent is None

    def test_what_the_sender_did_not_sample_is_not_sampled(self, spans: Any) -> None:
        """The decision goes along as well."""
        unsampled = About("r1", f"{PARENT[:-2]}00")
        with tracing.step("batch", of=unsampled) as step:
            assert step.about.traceparent.endswith("-00")
        assert spans() == {}

    def test_what_a_step_fails_with_is_shown(self, spans: Any) -> None:
        with pytest.raises(ValueError, match="why"), tracing.step("commit", of=OF):
            raise ValueError("why")
        assert spans()["commit"].status.description == "ValueError: why"

    def test_a_stray_hand_in_redis_begins_a_trace(self, spans: Any) -> None:
        """Garbage where a round has its trace stops nobody."""
        with tracing.step("batch", of=About("r1", "garbage")):
            pass
        assert spans()["batch"].parent is None
