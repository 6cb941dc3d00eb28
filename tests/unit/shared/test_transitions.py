"""The table of transitions covers every case (tests of the store hold Redis to it)."""

from __future__ import annotations

from itertools import product

from shared.config import PoCState
from shared.errors import PoCError
from shared.transitions import MESSAGES, RULES, Command


def test_every_state_has_a_rule_for_every_command() -> None:
    """None is a namespace that never had a round."""
    assert set(RULES) == set(product([None, *PoCState], Command))


def test_every_refusal_has_a_message() -> None:
    """What callers read is part of the contract."""
    refusals = {rule for rule in RULES.values() if not isinstance(rule, PoCState)}
    assert set(MESSAGES) == refusals
    assert all(issubclass(refusal, PoCError) for refusal in refusals)


def test_only_a_generating_round_refuses_an_init() -> None:
    """And `replace` is how to insist."""
    refusing = [s for s in [None, *PoCState] if not isinstance(RULES[s, Command.INIT], PoCState)]
    assert refusing == [PoCState.GENERATING]
    assert RULES[PoCState.GENERATING, Command.REPLACE] is PoCState.IDLE
