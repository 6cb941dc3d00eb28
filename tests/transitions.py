"""The rules of a round as one pure table: the specification of the Lua scripts.

`RULES[state, command]` is the state that follows, or the error that the caller gets. A state of
`None` is a namespace that never had a round.
"""

from __future__ import annotations

from enum import StrEnum

from shared.config import PoCState
from shared.errors import PoCError, RoundInProgress, RoundNotInitialized


class Command(StrEnum):
    """What a controller can ask of a round; `replace` is an init that may end a running one."""

    INIT = "init"
    REPLACE = "replace"
    GENERATE = "generate"
    VALIDATE = "validate"
    STOP = "stop"


MESSAGES: dict[type[PoCError], str] = {
    RoundInProgress: "Round already in progress",
    RoundNotInitialized: "Round not initialized",
}

_IDLE, _GENERATING, _VALIDATING, _STOPPED = PoCState

RULES: dict[tuple[PoCState | None, Command], PoCState | type[PoCError]] = {
    (None, Command.INIT): _IDLE,
    (None, Command.REPLACE): _IDLE,
    (None, Command.GENERATE): RoundNotInitialized,
    (None, Command.VALIDATE): RoundNotInitialized,
    (None, Command.STOP): _STOPPED,
    (_IDLE, Command.INIT): _IDLE,
    (_IDLE, Command.REPLACE): _IDLE,
    (_IDLE, Command.GENERATE): _GENERATING,
    (_IDLE, Command.VALIDATE): _VALIDATING,
    (_IDLE, Command.STOP): _STOPPED,
    (_GENERATING, Command.INIT): RoundInProgress,
    (_GENERATING, Command.REPLACE): _IDLE,
    (_GENERATING, Command.GENERATE): _GENERATING,
    (_GENERATING, Command.VALIDATE): _VALIDATING,
    (_GENERATING, Command.STOP): _STOPPED,
    (_VALIDATING, Command.INIT): _IDLE,
    (_VALIDATING, Command.REPLACE): _IDLE,
    (_VALIDATING, Command.GENERATE): _GENERATING,
    (_VALIDATING, Command.VALIDATE): _VALIDATING,
    (_VALIDATING, Command.STOP): _STOPPED,
    (_STOPPED, Command.INIT): _IDLE,
    (_STOPPED, Command.REPLACE): _IDLE,
    (_STOPPED, Command.GENERATE): _GENERATING,
    (_STOPPED, Command.VALIDATE): _VALIDATING,
    (_STOPPED, Command.STOP): _STOPPED,
}
