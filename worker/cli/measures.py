"""Commands that measure a model, and say what a network's numbers mean for a node."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from shared.config import PoCConfig
from shared.errors import ConfigError, InvalidRequest, PoCError
from shared.requests import read
from shared.schemes import DEFAULT, SCHEMES, Terms, terms_of
from shared.schemes.artifact import ArtifactTerms
from shared.settings import Settings
from shared.wire import MAX_PROOF_NONCES
from worker.cli.options import (
    CONFIG_HELP,
    ENGINE,
    FRAUD,
    BatchSize,
    Json,
    Scheme,
    SeqLen,
    known_scheme,
    read_json,
    takes_network,
    takes_settings,
)


def _of_each(value: Callable[[Terms], float]) -> str:
    """What is taken unless it is given, by scheme."""
    found = {name: value(terms.usual()) for name, terms in SCHEMES.items()}
    return "; ".join(f"{name} {each:g}" for name, each in found.items())


def power(
    scheme: Scheme = DEFAULT,
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
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="<share>",
            help="Share of an honest node's nonces that mismatch. (--p-mismatch)",
        ),
    ] = None,
    cheat_rate: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="<share>",
            help="Share of a cheat's nonces that mismatch. "
            f"({_of_each(lambda terms: terms.cheat_rate)})",
        ),
    ] = None,
    p_mismatch: Annotated[
        float | None,
        typer.Option(
            metavar="<share>",
            help="Network's: how often an honest nonce mismatches. "
            f"({_of_each(lambda terms: terms.p_mismatch)})",
        ),
    ] = None,
    fraud_threshold: Annotated[
        float | None,
        typer.Option(
            "--fraud-threshold",
            "--p-value-threshold",
            metavar="<share>",
            help=f"Network's: {CONFIG_HELP['fraud_threshold']}. "
            f"({_of_each(lambda terms: terms.fraud_below)})",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say how often a validation flags an honest node, and how often it finds a cheat.

    poc power --n 200 --mismatch 0.01 --cheat-rate 0.05

    poc power --scheme artifact
    """
    from worker.tools.calibration.power import SAMPLES, Question, run

    for name, value in (("p-mismatch", p_mismatch), ("fraud-threshold", fraud_threshold)):
        if value is not None and not 0 < value < 1:
            raise ConfigError(f"--{name} {value:g}: must be above 0 and below 1; try 0.001")
    asked = Question.of(terms_of(scheme), p_mismatch, fraud_threshold, mismatch, cheat_rate)
    run(asked, n or SAMPLES, json=as_json)


@takes_settings(*ENGINE, "scheme")
def calibrate(
    settings: Settings,
    valid_rate: Annotated[
        float, typer.Option(metavar="<share>", help="Share of the nonces that is to be valid.")
    ] = 0.1,
    blocks: Annotated[
        int, typer.Option(min=2, max=1000, metavar="<int>", help="Block hashes to try.")
    ] = 8,
    nonces: Annotated[
        int, typer.Option(min=1, max=1_000_000, metavar="<int>", help="Nonces of each block.")
    ] = 512,
    seq_len: SeqLen = 256,
    batch_size: BatchSize = 32,
    strong_rng: Annotated[
        bool, typer.Option("--strong-rng", help=f"{CONFIG_HELP['strong_rng'].capitalize()}.")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the histogram into an SVG.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the r_target at which a share of the deployed model's nonces is valid.

    Give the settings that the worker has. It is done when no worker needs the GPU.

    poc calibrate --model ./model --valid-rate 0.1 --picture distances.svg
    """
    if not terms_of(known_scheme(settings.scheme)).has_distances:
        raise ConfigError(
            f"the scheme {settings.scheme} has no r_target: every nonce counts. Whether others "
            f"agree with this node is said by `poc selfcheck --scheme {settings.scheme}`, and by "
            "`poc selftest` with vectors of theirs; --scheme distance measures all the same"
        )
    from worker.tools.calibration.calibrate import Plan, run

    plan = Plan(valid_rate, blocks, nonces, seq_len, batch_size, strong_rng)
    run(settings, plan, json=as_json, picture=picture)


@takes_settings(*ENGINE, "redis_url", "namespace", "model_distances")
@takes_network
def selfcheck(
    settings: Settings,
    config: dict[str, Any],
    sample: Annotated[
        int, typer.Option(min=8, max=100_000, metavar="<int>", help="Nonces to compute.")
    ] = 64,
    n: Annotated[
        int,
        typer.Option(min=1, max=10_000_000, metavar="<int>", help="Nonces that a validator takes."),
    ] = 200,
    others: Annotated[
        list[str] | None,
        typer.Option(
            "--as",
            metavar="<settings>",
            help="Another side, such as engine=transformers,dtype=float32,tile=16; may be given "
            "several times. Unless given: other batches, another tile, and what else runs here.",
        ),
    ] = None,
    risk: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="<share>",
            help="How probable an accusation may be. (what the network calls fraud)",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say whether this node would pass the validations of others, before a round.

    It computes some nonces as this node does and as other nodes do, and compares.

    Exit status: 0 it passes, 3 it would be called a fraud, 2 wrong options, 1 it can't be said.

    poc selfcheck --model ./model --r-target 1.4 --as dtype=bfloat16

    poc selfcheck --model ./model --scheme artifact
    """
    from worker.tools.calibration import verdict
    from worker.tools.calibration.selfcheck import Plan, check
    from worker.tools.calibration.sides import Side

    sides, asked = [Side.of(each) for each in others or ()], read(PoCConfig, config)
    report = check(settings, Plan(asked, sample, n, risk, sides))
    (verdict.show_json if as_json else verdict.show)(report)
    if not report.passes:
        raise typer.Exit(FRAUD)


@takes_settings(*ENGINE)
def selftest(
    settings: Settings,
    vectors: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Vectors that another node made: as published, as posted to /generated, or as "
            "`poc proofs` prints them; - for standard input.",
        ),
    ],
    sample: Annotated[
        int,
        typer.Option(min=1, max=MAX_PROOF_NONCES, metavar="<int>", help="Nonces to compute."),
    ] = 200,
    hidden_size: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="<int>", help="Numbers in a hidden state. (what FILE or the model says)"
        ),
    ] = None,
    seq_len: Annotated[
        int | None,
        typer.Option(min=1, metavar="<int>", help="Positions of one forward. (what FILE says)"),
    ] = None,
    batch_size: BatchSize = 32,
    strong_rng: Annotated[
        bool, typer.Option("--strong-rng", help=f"{CONFIG_HELP['strong_rng'].capitalize()}.")
    ] = False,
    dist_threshold: Annotated[
        float, typer.Option(metavar="<L2>", help=f"Network's: {CONFIG_HELP['dist_threshold']}.")
    ] = ArtifactTerms().dist_threshold,
    p_mismatch: Annotated[
        float,
        typer.Option(metavar="<share>", help="Network's: how often an honest vector is wrong."),
    ] = ArtifactTerms().p_mismatch,
    p_value_threshold: Annotated[
        float,
        typer.Option(metavar="<share>", help=f"Network's: {CONFIG_HELP['p_value_threshold']}."),
    ] = ArtifactTerms().p_value_threshold,
    as_json: Json = False,
) -> None:
    """Hold known vectors of the scheme artifact against our code, and against the model.

    Without a model it looks whether the numbers of the vectors come in our order. With one it also
    computes their nonces, and says how many match and how many it makes a minute.

    Exit status: 0 all is well, 3 it is not, 2 wrong options or file, 1 it can't be said.

    poc selftest --vectors published.json --model ./model
    """
    from worker.tools import selftest as tool

    terms = read(
        ArtifactTerms,
        {
            "dist_threshold": dist_threshold,
            "p_mismatch": p_mismatch,
            "p_value_threshold": p_value_threshold,
        },
    )
    fields = read_json(vectors)
    try:
        known = tool.Known.of(fields)
    except InvalidRequest as error:
        raise InvalidRequest(f"{vectors}: {error}") from None
    plan = tool.Plan(known, sample, batch_size, seq_len, hidden_size, strong_rng, terms)
    report = tool.examine(settings, plan)
    (tool.show_json if as_json else tool.show)(report)
    if report.passes is not True:
        raise typer.Exit(1 if report.passes is None else FRAUD)


@takes_settings("redis_url", "namespace")
def evidence(
    settings: Settings,
    id: Annotated[str, typer.Argument(help="The validation's id: the task that asked for it.")],
) -> None:
    """Print all that a validation which found fraud, or could not compute, rests on.

    poc evidence 0e7c2f5a-5f0e-4a55-8e27-6a1c3c1f9f53 > evidence.json
    """
    from shared.store import Store

    with closing(Store(settings)) as store:
        kept = store.validations.evidence(id) if id else None
    if kept is None:
        raise PoCError(
            f"no evidence of a validation {id} is kept; there is some of those alone that found "
            f"fraud or could not compute, for {settings.keep_rounds_s} s (POC_KEEP_ROUNDS_S)"
        )
    typer.echo(kept)
