"""Commands that measure a model, and say what a network's numbers mean for a node."""

from __future__ import annotations

from typing import Annotated

import typer

from shared.config import PROBABILITY_MISMATCH, PoCConfig
from shared.errors import ConfigError
from worker.cli.options import CONFIG_HELP, Json

_THRESHOLD = PoCConfig.model_fields["fraud_threshold"].default


def power(
    n: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            max=10_000_000,
            metavar="<int>",
            help="Nonces that a validation takes; may be given several times.",
        ),
    ] = None,
    mismatch: Annotated[
        float,
        typer.Option(
            min=0, max=1, metavar="<share>", help="Share of an honest node's nonces that mismatch."
        ),
    ] = PROBABILITY_MISMATCH,
    cheat_rate: Annotated[
        float,
        typer.Option(
            min=0, max=1, metavar="<share>", help="Share of a cheat's nonces that mismatch."
        ),
    ] = 0.05,
    p_mismatch: Annotated[
        float, typer.Option(metavar="<share>", help=f"Network's: {CONFIG_HELP['p_mismatch']}.")
    ] = PROBABILITY_MISMATCH,
    fraud_threshold: Annotated[
        float, typer.Option(metavar="<share>", help=f"Network's: {CONFIG_HELP['fraud_threshold']}.")
    ] = _THRESHOLD,
    as_json: Json = False,
) -> None:
    """Say how often a validation flags an honest node, and how often it finds a cheat.

    poc power --n 200 --mismatch 0.01 --cheat-rate 0.05
    """
    from worker.tools.calibration.power import SAMPLES, Question, run

    for name, value in (("p-mismatch", p_mismatch), ("fraud-threshold", fraud_threshold)):
        if not 0 < value < 1:
            raise ConfigError(f"--{name} {value:g}: must be above 0 and below 1; try 0.001")
    asked = Question(p_mismatch, fraud_threshold, mismatch, cheat_rate)
    run(asked, n or SAMPLES, json=as_json)
