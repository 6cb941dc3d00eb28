"""The scripts do what `transitions.RULES` says, from every state."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.config import PoCConfig, PoCState
from shared.errors import PoCError
from shared.requests import InitRequest
from shared.store import Store
from shared.store.connection import Client
from transitions import MESSAGES, RULES, Command

Rule = PoCState | type[PoCError]

TO_REACH: dict[PoCState | None, tuple[Command, ...]] = {
    None: (),
    PoCState.IDLE: (Command.INIT,),
    PoCState.GENERATING: (Command.INIT, Command.GENERATE),
    PoCState.VALIDATING: (Command.INIT, Command.VALIDATE),
    PoCState.STOPPED: (Command.INIT, Command.STOP),
}


@pytest.fixture
def issue(store: Store, config: PoCConfig) -> Callable[[Command, str], Any]:
    """Issues a command under an id."""
    verbs: dict[Command, Callable[[str], Any]] = {
        Command.INIT: lambda name: store.rounds.init(name, InitRequest(config=config)),
        Command.REPLACE: lambda name: store.rounds.init(
            name, InitRequest(config=config, replace=True)
        ),
        Command.GENERATE: store.rounds.generate,
        Command.VALIDATE: store.rounds.validate,
        Command.STOP: store.rounds.stop,
    }
    return lambda command, name: verbs[command](name)


def state_of(store: Store) -> PoCState:
    status = store.rounds.status()
    assert status is not None
    return status.state


@pytest.mark.parametrize(
    ("state", "command", "rule"),
    [pytest.param(*case, rule, id=f"{case[0]}-{case[1]}") for case, rule in RULES.items()],
)
def test_a_command_follows_the_table(
    store: Store,
    issue: Callable[[Command, str], Any],
    state: PoCState | None,
    command: Command,
    rule: Rule,
) -> None:
    """Given a state, when a command comes, then the state is the rule's, or the error is."""
    for number, step in enumerate(TO_REACH[state]):
        issue(step, f"step-{number}")
    before = state_of(store)
    assert before == (state or PoCState.IDLE)
    if isinstance(rule, PoCState):
        assert issue(command, "command").state is rule
        assert state_of(store) is rule
    else:
        with pytest.raises(rule, match=f"^{re.escape(MESSAGES[rule])}$"):
            issue(command, "command")
        assert state_of(store) is before


@settings(
    deadline=None,
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.sampled_from(Command), max_size=12))
def test_any_walk_follows_the_table(
    redis: Client,
    store: Store,
    issue: Callable[[Command, str], Any],
    walk: list[Command],
) -> None:
    """However a state was reached. Only a stop before the first round leaves none behind it."""
    redis.flushall()
    state: PoCState | None = None
    for number, command in enumerate(walk):
        rule = RULES[state, command]
        if isinstance(rule, PoCState):
            assert issue(command, str(number)).state is rule
            if not (state is None and command is Command.STOP):
                state = rule
        else:
            with pytest.raises(rule):
                issue(command, str(number))
