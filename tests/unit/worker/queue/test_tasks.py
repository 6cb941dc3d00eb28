"""The tasks without a broker: what they make of their arguments, what they answer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from celery import Celery

from shared.broker import celery_app
from shared.config import PoCConfig
from shared.data import ProofBatch
from shared.errors import InvalidRequest, PoCError, RoundNotInitialized
from shared.settings import load_settings
from shared.status import RoundStatus
from shared.store import Store
from ticket_sink import KeptTickets
from worker.manager import PoCManager
from worker.node.node import Node
from worker.queue import tasks

Run = Callable[..., Any]


@pytest.fixture
def sink() -> KeptTickets:
    return KeptTickets()


@pytest.fixture
def node(sink: KeptTickets) -> Iterator[Node]:
    """A node as its tasks see it, without threads."""
    node = Node(load_settings({}, namespace="test"), on_failure=lambda _: pytest.fail("it failed"))
    with contextlib.closing(node.store):
        node.sink = sink
        yield node


@pytest.fixture
def app(node: Node, manager: PoCManager) -> Iterator[Celery]:
    """The application with its tasks, as a worker has it."""
    with contextlib.closing(celery_app(node.settings)) as app:
        app.node, app.manager = node, manager
        tasks.register(app)
        yield app


@pytest.fixture
def run(app: Celery) -> Run:
    """Runs a task here, as a worker does: `run("poc.stop", "id", round_id="r1")`."""

    def run(name: str, id: str, *args: Any, **kwargs: Any) -> Any:
        return app.tasks[name].apply(args, kwargs, task_id=id)

    return run


@pytest.fixture
def asked(config: PoCConfig) -> dict[str, Any]:
    """A config as it comes over the wire."""
    return config.model_dump(mode="json")


def as_batch(config: PoCConfig, *nonces: int) -> dict[str, Any]:
    """Proofs as they come over the wire."""
    return ProofBatch.of(config, nonces, [0.5] * len(nonces)).model_dump(mode="json")


def refusal(result: Any) -> tuple[type[BaseException], str]:
    """What a task failed with."""
    assert result.state == "FAILURE"
    return type(result.result), str(result.result)


def test_there_are_five(app: Celery) -> None:
    """And nothing else that a stranger could send."""
    names = {"poc.init", "poc.generate", "poc.validate", "poc.cancel", "poc.stop"}
    assert set(app.tasks) == names


def test_they_are_this_applications_alone(app: Celery, node: Node) -> None:
    """Given another one in the process, a controller's say, then it knows none of them."""
    app.finalize()
    with contextlib.closing(celery_app(node.settings)) as other:
        assert not [name for name in other.tasks if name.startswith("poc.")]


def test_init_gives_the_status(run: Run, store: Store, asked: dict[str, Any]) -> None:
    """Under the id that the caller chose."""
    result = run("poc.init", "i", config=asked, round_id="r1")
    assert RoundStatus.model_validate(result.result) == store.rounds.status()
    assert result.result["round_id"] == "r1"


def test_stop_gives_the_status(run: Run, asked: dict[str, Any]) -> None:
    """Of the round that is named, or of the current one."""
    run("poc.init", "i", config=asked, round_id="r1")
    assert run("poc.stop", "s1", round_id="r1").result["state"] == "STOPPED"
    assert run("poc.stop", "s2").result["round_id"] == "r1"


def test_validate_without_a_batch_gives_the_status(run: Run, asked: dict[str, Any]) -> None:
    """The round is validating then."""
    run("poc.init", "i", config=asked, round_id="r1")
    assert run("poc.validate", "v", round_id="r1").result["state"] == "VALIDATING"


def test_generate_is_a_ticket(
    run: Run, store: Store, sink: KeptTickets, asked: dict[str, Any]
) -> None:
    """It ends without a result, and its first report says which round it is for."""
    result = run("poc.generate", "g", config=asked, round_id="r1")
    assert result.state == "IGNORED"
    assert sink.reports == [("g", {"round_id": "r1"})]
    assert store.rounds.open_tickets()[1] == ["g"]


@pytest.mark.parametrize("nonces", [(), (1, 2, 3)])
def test_a_batch_is_a_ticket(
    nonces: tuple[int, ...],
    run: Run,
    store: Store,
    sink: KeptTickets,
    config: PoCConfig,
    asked: dict[str, Any],
) -> None:
    """An empty one as well: it has a verdict."""
    result = run("poc.validate", "v", batch=as_batch(config, *nonces), config=asked)
    assert result.state == "IGNORED"
    assert sink.reports == [("v", {"done": 0, "total": len(nonces)})]
    assert store.validations.progress() == {"v": {"done": 0, "total": len(nonces)}}


@pytest.mark.parametrize("name", ["poc.init", "poc.generate", "poc.validate", "poc.stop"])
class TestArguments:
    """They come from anywhere."""

    def test_they_are_named(self, name: str, run: Run) -> None:
        """A caller of another language learns which names there are."""
        kind, message = refusal(run(name, "c", "r1"))
        assert kind is InvalidRequest
        assert message.startswith("positional arguments are not taken; name them: ")
        assert "round_id" in message

    def test_a_stranger_is_refused(self, name: str, run: Run, asked: dict[str, Any]) -> None:
        """A misspelt name must not be taken for a wish for the default."""
        config = {"config": asked} if name == "poc.init" else {}
        kind, message = refusal(run(name, "c", rond_id="r1", **config))
        assert (kind, message) == (
            InvalidRequest,
            "rond_id: Extra inputs are not permitted (got 'r1')",
        )

    def test_a_bad_value_is_named(self, name: str, run: Run, asked: dict[str, Any]) -> None:
        config = {"config": asked} if name == "poc.init" else {}
        kind, message = refusal(run(name, "c", round_id="not an id!", **config))
        assert kind is InvalidRequest
        assert message.startswith("round_id: ")
        assert message.endswith("(got 'not an id!')")


def test_init_needs_a_config(run: Run) -> None:
    kind, message = refusal(run("poc.init", "i"))
    assert kind is InvalidRequest
    assert message.startswith("config: Field required")


def test_replace_needs_a_config(run: Run) -> None:
    """There would be nothing to put in its place."""
    kind, message = refusal(run("poc.generate", "g", replace=True))
    assert (kind, message) == (InvalidRequest, "replace is for a new round: it needs a config")


def test_a_field_of_the_config_is_named(run: Run, asked: dict[str, Any]) -> None:
    """With its path."""
    kind, message = refusal(run("poc.init", "i", config=asked | {"r_target": 3.0}))
    assert kind is InvalidRequest
    assert message.startswith("config.r_target: ")


def test_a_refused_command_is_a_failure(run: Run) -> None:
    """With the store's own reason."""
    assert refusal(run("poc.generate", "g")) == (RoundNotInitialized, "Round not initialized")


def test_a_command_that_comes_twice_has_one_answer(
    run: Run, store: Store, asked: dict[str, Any]
) -> None:
    """The task's id is the command's."""
    first = run("poc.init", "i", config=asked).result
    run("poc.generate", "g")
    assert run("poc.init", "i", config=asked).result == first
    assert store.status().state == "GENERATING"


def test_a_ticket_that_comes_twice_is_taken_once(
    run: Run, store: Store, asked: dict[str, Any]
) -> None:
    """A second delivery reports what the first one did."""
    run("poc.generate", "g", config=asked)
    first = store.status().round_id
    assert run("poc.generate", "g", config=asked).state == "IGNORED"
    assert store.status().round_id == first
    assert store.rounds.open_tickets()[1] == ["g"]


def test_an_id_of_another_command_is_left_alone(
    run: Run,
    asked: dict[str, Any],
    config: PoCConfig,
    store: Store,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Given a stop under the id of an open ticket, then nothing is done, and nothing answered."""
    run("poc.validate", "v", batch=as_batch(config, 1), config=asked)
    run("poc.generate", "g", config=asked)
    for taken, by in (("v", "open_validation"), ("g", "generate")):
        assert run("poc.stop", taken).state == "IGNORED"
        assert f"left unanswered: stop came under the id {taken} of an earlier {by}" in caplog.text
    assert run("poc.validate", "g", batch=as_batch(config, 1), config=asked).state == "IGNORED"
    assert store.status().state == "GENERATING"
    assert store.validations.progress() == {"v": {"done": 0, "total": 1}}


def test_expected_trouble_is_declared(app: Celery) -> None:
    """So that Celery logs it without a traceback."""
    for name in ("poc.init", "poc.generate", "poc.validate", "poc.stop"):
        assert app.tasks[name].throws == (PoCError,)


@pytest.mark.parametrize("closes", [True, False])
def test_without_redis_a_command_is_tried_again_later(
    closes: bool,
    run: Run,
    node: Node,
    asked: dict[str, Any],
    away: Callable[[], AbstractContextManager[None]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given a worker that closes, or whose patience ends, then it is not settled."""
    if closes:
        node.closing.set()
    else:
        monkeypatch.setattr(tasks, "PATIENCE_S", 0.0)
    with away():
        result = run("poc.init", "i", config=asked)
    assert result.state == "IGNORED"
    assert "not answered yet, and tried again later: Redis: " in caplog.text
    node.closing.clear()
    assert run("poc.init", "i", config=asked).state == "SUCCESS"


def test_a_command_waits_for_redis(
    run: Run,
    node: Node,
    asked: dict[str, Any],
    away: Callable[[], AbstractContextManager[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given one that comes back after the first attempt, then there is an answer."""
    trouble = away()
    trouble.__enter__()

    def back(seconds: float) -> bool:
        trouble.__exit__(None, None, None)
        return False

    monkeypatch.setattr(node.closing, "wait", back)
    assert run("poc.init", "i", config=asked).result["state"] == "IDLE"
