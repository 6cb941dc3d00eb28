"""The trace of a command: over the round that keeps it, to the callback that takes it on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from fake_engine import FakeEngine
from fake_round import theirs
from shared import tracing
from shared.about import About, about, at
from shared.config import PoCConfig
from shared.data import ValidatedBatch
from shared.requests import GenerateRequest, ValidateRequest
from shared.store import Entry, Store
from support import changed
from traced import tracer_and_spans
from worker.manager import PoCManager
from worker.node.clerk import Clerk
from worker.node.pipeline import Pipeline

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives the spans that ended so far, by name."""
    tracer, spans = tracer_and_spans()
    monkeypatch.setattr(tracing, "_tracer", tracer)
    return spans


@pytest.fixture
def told(config: PoCConfig) -> PoCConfig:
    return changed(config, callback_url="http://c", r_target=2.0)


def callback(store: Store) -> Entry:
    """The only one that waits."""
    (entry,) = store.outbox.take("sender", 10)
    return entry


def parents(spans: dict[str, Any], *names: str) -> None:
    """Each of them has the one before it as its parent."""
    for outer, inner in pairwise(names):
        assert spans[inner].parent.span_id == spans[outer].context.span_id, (outer, inner)


def test_a_batch_and_its_commit_are_of_the_trace_of_their_command(
    manager: PoCManager, store: Store, told: PoCConfig, spans: Any
) -> None:
    """And the callback follows from the commit."""
    with tracing.step("process", of=About(traceparent=PARENT)):
        manager.start_generate(GenerateRequest(config=told, round_id="r1"))
    manager.pipeline.step()
    manager.pipeline.drain()
    made = spans()
    parents(made, "process", "batch", "commit")
    assert {f"{span.context.trace_id:032x}" for span in made.values()} == {PARENT[3:35]}
    assert made["batch"].attributes == {
        "poc.round_id": "r1",
        "poc.start": 0,
        "poc.count": 4,
        "poc.attempts": 0,
    }
    commit = f"{made['commit'].context.span_id:016x}"
    assert callback(store).traceparent == f"{PARENT[:36]}{commit}-01"


def test_without_spans_the_context_of_the_command_goes_on(
    manager: PoCManager, store: Store, told: PoCConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the round to any worker, and to the callback."""
    monkeypatch.setattr(tracing, "_tracer", None)
    with tracing.step("process", of=About(traceparent=PARENT)):
        manager.start_generate(GenerateRequest(config=told, round_id="r1"))
    manager.pipeline.step()
    assert about() == About("r1", PARENT)
    manager.pipeline.drain()
    assert callback(store).traceparent == PARENT


def test_a_round_that_goes_on_is_of_the_trace_of_what_let_it(
    manager: PoCManager, store: Store, told: PoCConfig
) -> None:
    """Another `generate` while it generates changes nothing of it; one without a trace ends it."""
    with tracing.step("process", of=About(traceparent=PARENT)):
        manager.start_generate(GenerateRequest(config=told, round_id="r1"))
    manager.start_generate()
    assert store.rounds.traceparent("r1") == PARENT
    manager.stop_round()
    with at(About()):
        manager.start_generate()
    assert store.rounds.traceparent("r1") == ""


def test_a_batch_that_fails_shows_why(
    new_engine: Callable[..., FakeEngine], store: Store, told: PoCConfig, spans: Any
) -> None:
    """Given an engine that fails, then its span says so, and there is no commit."""
    pipeline = Pipeline(new_engine(fail=1), store, "w")
    PoCManager(pipeline.engine, store, pipeline=pipeline).start_generate(told)
    pipeline.step()
    pipeline.drain()
    made = spans()
    assert "asked to fail" in made["batch"].status.description
    assert "commit" not in made


def test_a_validation_is_of_the_trace_of_its_command(
    manager: PoCManager, store: Store, told: PoCConfig, spans: Any
) -> None:
    """Its chunks, its verdict and the callback that tells it."""
    batch = theirs(told, 1, 2, 3)
    with tracing.step("process", of=About(traceparent=PARENT)):
        manager.open_validation(ValidateRequest(batch=batch, config=told), "v")
    manager.pipeline.step()
    manager.pipeline.drain()
    Clerk(store, None, None)._next_verdict()  # type: ignore[arg-type]
    made = spans()
    parents(made, "process", "chunk", "commit")
    parents(made, "process", "judge")
    entry = callback(store)
    assert entry.traceparent[36:52] == f"{made['judge'].context.span_id:016x}"
    body = store.outbox.body(entry.id)
    assert body
    assert ValidatedBatch.model_validate_json(body).nonces == [1, 2, 3]
