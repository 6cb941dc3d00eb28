"""What each command sends, checked before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from shared import requests
from shared.config import PoCConfig, Strict
from shared.data import ProofBatch, ValidatedBatch
from shared.status import Cancellation, RoundStatus

Answer = TypeVar("Answer", RoundStatus, ValidatedBatch, Cancellation)
#: A config, or a mapping of its fields.
Config = PoCConfig | Mapping[str, Any]
#: A batch, or a mapping of its fields.
Batch = ProofBatch | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Asked(Generic[Answer]):
    """A task with its arguments, and what it answers with."""

    task: str
    kwargs: dict[str, Any]
    answers: type[Answer]


def init(config: Config, round_id: str | None, replace: bool) -> Asked[RoundStatus]:
    """`poc.init`."""
    given = {"config": config, "round_id": round_id, "replace": replace}
    return _ask("poc.init", requests.InitRequest, given, RoundStatus)


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
    return _ask("poc.generate", requests.GenerateRequest, given, RoundStatus)


def validate(config: Config | None, round_id: str | None, replace: bool) -> Asked[RoundStatus]:
    """`poc.validate` of the round."""
    given = {"config": config, "round_id": round_id, "replace": replace}
    return _ask("poc.validate", requests.ValidateRequest, given, RoundStatus)


def validate_batch(batch: Batch, config: Config | None) -> Asked[ValidatedBatch]:
    """`poc.validate` of a batch."""
    given = {"batch": batch, "config": config}
    return _ask("poc.validate", requests.ValidateRequest, given, ValidatedBatch)


def stop(round_id: str | None) -> Asked[RoundStatus]:
    """`poc.stop`."""
    return _ask("poc.stop", requests.StopRequest, {"round_id": round_id}, RoundStatus)


def cancel(validation: str) -> Asked[Cancellation]:
    """`poc.cancel`."""
    return _ask("poc.cancel", requests.CancelRequest, {"validation": validation}, Cancellation)


def _ask(
    task: str, model: type[Strict], given: Mapping[str, Any], answers: type[Answer]
) -> Asked[Answer]:
    asked = requests.read(model, given)
    return Asked(task, asked.model_dump(mode="json", exclude_none=True), answers)
