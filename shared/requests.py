"""The arguments of each task, as they come over the wire."""

from __future__ import annotations

import re
from typing import Any, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from shared.config import MAX_SECONDS, MAX_VALID, TERMS, PoCConfig
from shared.errors import InvalidRequest
from shared.schemes import AnyBatch
from shared.wire import Name, RoundId, Strict

#: Bad fields that an error names; a large batch may have thousands.
SHOW_ERRORS = 5

Model = TypeVar("Model", bound=BaseModel)


class RoundRequest(Strict):
    """A `config` opens a round, as `round_id` if that is given; else `round_id` is the one meant.

    `replace` ends a round that is generating, which otherwise refuses the new one.
    """

    config: PoCConfig | None = None
    round_id: RoundId | None = None
    replace: bool = False

    @model_validator(mode="after")
    def _check_replace(self) -> Self:
        if self.replace and self.config is None:
            raise ValueError("replace is for a new round: it needs a config")
        return self


class InitRequest(RoundRequest):
    """`poc.init`."""

    config: PoCConfig


class GenerateRequest(RoundRequest):
    """`poc.generate`: until a command ends it or, if they are given, a count or a time.

    What comes first counts. They replace those of a generation that goes on; without either of
    them its own stay.
    """

    #: Valid nonces that the round then has, those from before included.
    until_valid: int | None = Field(default=None, ge=1, le=MAX_VALID)
    #: Seconds from the command on, by Redis' clock.
    seconds: float | None = Field(default=None, gt=0, le=MAX_SECONDS)


class ValidateRequest(RoundRequest):
    """`poc.validate`: of the round, or of a `batch` that is judged by `config` if there is one."""

    batch: AnyBatch | None = None

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        if self.batch is not None and (self.round_id is not None or self.replace):
            raise ValueError("a batch is validated beside the rounds: no round_id, no replace")
        return self


class StopRequest(Strict):
    """`poc.stop`."""

    round_id: RoundId | None = None


class CancelRequest(Strict):
    """`poc.cancel`: the id of a validation's ticket."""

    validation: Name


def read(model: type[Model], data: Any) -> Model:
    """`data` as `model`. Raises `InvalidRequest` that names each bad field and what is wrong."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise InvalidRequest(explain(error)) from None


def explain(error: ValidationError) -> str:
    """What is wrong with which field, in one line."""
    found = error.errors(include_url=False, include_context=False)
    sentences = [_sentence(each["loc"], each["msg"], each["input"]) for each in found[:SHOW_ERRORS]]
    more = len(found) - len(sentences)
    return "; ".join(sentences) + (f"; and {more} more" if more else "")


def _sentence(loc: tuple[int | str, ...], message: str, value: Any) -> str:
    # A name may be of any length, and of characters that no log can hold.
    # Where the fields of a scheme are; the same once more is what a caller wrote.
    at = loc.index(TERMS) if TERMS in loc else len(loc)
    path = _cut(repr(".".join(str(part) for part in loc[:at] + loc[at + 1 :]))[1:-1])
    message = message.removeprefix("Value error, ")
    # A container is shown by the field in it that is wrong, or by the message alone.
    shown = "" if isinstance(value, dict | list | BaseModel) else f" (got {_cut(repr(value))})"
    return f"{path}: {message}{shown}" if path else f"{message}{shown}"


def _cut(text: str) -> str:
    # User and password of a URL, up to the last @: a password may hold @, : and /.
    text = re.sub(r"(//|^'?(?!.*//)).*@", r"\1***@", text)
    return text if len(text) <= 80 else f"{text[:77]}..."
