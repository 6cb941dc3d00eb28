"""What each command sends, checked before anything is sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from shared import requests, schemes
from shared.config import PoCConfig
from shared.schemes import Verdict
from shared.status import Cancellation, RoundStatus
from shared.wire import Strict

Answer = TypeVar("Answer", RoundStatus, Verdict, Cancellation)
#: A config, or a mapping of its fields.
Config = PoCConfig | Mapping[str, Any]
#: A batch, or a mapping of its fields.
Batch = schemes.Batch | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Asked(Generic[Answer]):
    """A task with its arguments, and what it answers with."""

    task: str
    kwargs: dict[str, Any]
    #: Reads the answer.
    answers: Callable[[Any], Answer]


def init(config: Config, round_id: str | None, replace: bool) -> Asked[RoundStatus]:
    """`poc.init`."""
    given = {"config": config, "round_id": round_id, "replace": replace}
    return _ask("poc.init", requests.InitRequest, given, RoundStatus.model_validate)


def generate(
    config: Config | None,
    round_id: str | None,
    replace: bool,
    until_valid: int | None,
    seconds: float | None,
) -> Asked[RoundStatus]:
    """`poc.generate`."""
    given = {
        "config": config,
        "round_id": round_id,
        "replace": replace,
        "until_valid": until_valid,
        "seconds": seconds,
    }
    return _ask("poc.generate", requests.GenerateRequest, given, RoundStatus.model_validate)


def validate(config: Config | None, round_id: str | None, replace: bool) -> Asked[RoundStatus]:
    """`poc.validate` of the round."""
    given = {"config": config, "round_id": round_id, "replace": replace}
    return _ask("poc.validate", requests.ValidateRequest, given, RoundStatus.model_validate)


def validate_batch(batch: Batch, config: Config | None) -> Asked[Verdict]:
    """`poc.validate` of a batch."""
    asked = requests.read(requests.ValidateRequest, {"batch": batch, "config": config})
    scheme = asked.batch.scheme_name if asked.batch is not None else schemes.DEFAULT
    return _asked("poc.validate", asked, schemes.terms_of(scheme).verdict_from)


def stop(round_id: str | None) -> Asked[RoundStatus]:
    """`poc.stop`."""
    return _ask(
        "poc.stop", requests.StopRequest, {"round_id": round_id}, RoundStatus.model_validate
    )


def cancel(validation: str) -> Asked[Cancellation]:
    """`poc.cancel`."""
    given = {"validation": validation}
    return _ask("poc.cancel", requests.CancelRequest, given, Cancellation.model_validate)


def _ask(
    task: str, model: type[Strict], given: Mapping[str, Any], answers: Callable[[Any], Answer]
) -> Asked[Answer]:
    return _asked(task, requests.read(model, given), answers)


def _asked(task: str, asked: Strict, answers: Callable[[Any], Answer]) -> Asked[Answer]:
    return Asked(task, asked.model_dump(mode="json", exclude_none=True), answers)
