"""Every error that this project raises on purpose: one sentence a class.

An error of this tree is *expected trouble*: it is shown to the caller as its message, without
a traceback. Anything else that is raised is a defect and is logged with its traceback.
"""

from __future__ import annotations


class PoCError(Exception):
    """The parent of every expected error; its text says what is wrong and what to do."""


class ConfigError(PoCError):
    """A setting, an option or the environment can't be used as given."""


class InvalidRequest(PoCError):
    """A command's arguments are refused; nothing was changed."""


class RoundInProgress(PoCError):
    """A round is generating and the command would have replaced it."""

    def __init__(self, message: str = "Round already in progress") -> None:
        super().__init__(message)


class RoundNotInitialized(PoCError):
    """The command needs a round and there is none."""

    def __init__(self, message: str = "Round not initialized") -> None:
        super().__init__(message)


class RoundMismatch(PoCError):
    """The command names another round, or another block, than the current one."""


class CommandMismatch(PoCError):
    """The id of a command is that of another one; nothing was changed."""


class RoundFailed(PoCError):
    """The round was ended by an error instead of by a command."""


class ModelMismatch(PoCError):
    """The namespace runs another model than this worker has loaded."""


class NameTaken(PoCError):
    """Another worker lives under this worker's name."""


class EngineError(PoCError):
    """The engine can't load its model or can't compute a batch."""


class EngineDied(EngineError):
    """The engine is gone for good: only another process can compute."""


class Hung(EngineError):
    """Nothing came of a step for so long that only another process can go on."""


class Quarantined(EngineError):
    """The device failed its functional check: nothing that it gives can be trusted."""


class CouldNotCompute(PoCError):
    """A validation has nonces without a finite distance, so it has no verdict."""


class Cancelled(PoCError):
    """A validation was ended by a command before it had a verdict."""


class StoreError(PoCError):
    """What Redis is the cause of."""


class StoreUnavailable(StoreError):
    """Redis can't be reached, or is not the Redis that the store needs."""


class StoreRefused(StoreUnavailable):
    """Redis answers, and refuses this user or database: waiting mends nothing."""


class StoreFailed(StoreError):
    """Redis answers, and can't do what the store needs: no waiting mends that."""


class NotGenuine(PoCError):
    """A document is not signed, not by whom it should be, or not as it was signed."""


class NoAnswer(PoCError):
    """A command has no answer after the time that its caller gave it; it may still be run."""


def defect(error: Exception) -> Exception | None:
    """`error` if it is none of ours, for the `exc_info` of a log: ours explain themselves."""
    return None if isinstance(error, PoCError) else error


def as_fields(error: PoCError) -> dict[str, str]:
    """`error` as a script takes it; `named` makes it of these again."""
    return {"error": type(error).__name__, "message": str(error)}


def named(name: str, message: str) -> PoCError:
    """The error of the class `name`; another version may have classes that this one has not."""
    kind = globals().get(name)
    if isinstance(kind, type) and issubclass(kind, PoCError):
        return kind(message)
    return PoCError(f"{name}: {message}")
