"""`poc selfcheck`: whether this node passes the validations of others, before a round.

nonces ──▶ own engine ──▶ functional check, proofs ──┐
└─▶ each other side ──▶ its proofs ───────────┴─▶ noise ─▶ mismatches ─▶ odds ─▶ margin

Where every nonce counts, a mismatch is a proof that lies too far from the other side's, and there
is no margin. Few or none of a sample do, so their share is taken for as large as it may be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from shared.config import PoCConfig
from shared.errors import ConfigError, EngineError
from shared.odds import at_least, flagged_from
from shared.schemes import Distance, Proof, Terms
from shared.settings import Settings
from shared.store import Reference, Store
from worker.engines import Engine, EngineInfo
from worker.node.functional_check import FunctionalCheck
from worker.queue.app import pin
from worker.tools.calibration import sides
from worker.tools.calibration.compute import all_proofs, loaded
from worker.tools.calibration.mismatch import Distances, Noise
from worker.tools.calibration.sides import Side
from worker.tools.show import counting, news

#: A share of valid nonces below which a sample says nothing of them.
LEAST_SHARE = 1e-9


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked: by `config`, of a sample of nonces, by validators that take `n`."""

    config: PoCConfig
    sample: int = 64
    n: int = 200
    #: How probable an accusation of this node may be; unless given, as the network has it.
    risk: float | None = None
    others: Sequence[Side] = ()

    @property
    def terms(self) -> Terms:
        """What proofs are judged by."""
        return self.config.terms

    @property
    def accepted_risk(self) -> float:
        """How probable an accusation may be: honest nodes at p_mismatch have nearly as much."""
        return self.terms.fraud_below if self.risk is None else self.risk

    @property
    def flagged_from(self) -> int:
        """The mismatches that a validation of `n` nonces calls fraud."""
        return flagged_from(self.n, self.terms.p_mismatch, self.terms.fraud_below)

    def flagged(self, rate: float) -> float:
        """How probable it is to be called a fraud with this rate of mismatches."""
        return at_least(self.flagged_from, self.n, rate)

    @property
    def safe_rate(self) -> float:
        """The greatest rate of mismatches within the accepted risk."""
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (
                (low, middle) if self.flagged(middle) > self.accepted_risk else (middle, high)
            )
        return low


@dataclass(frozen=True, slots=True)
class Seen:
    """This node as one other side sees it."""

    side: Side
    info: EngineInfo
    #: Differences of distances, or how far proofs of another kind lie apart.
    noise: Noise
    #: Nonces that mismatch, of so many valid ones.
    changed: tuple[int, int]
    #: The share of submitted nonces that mismatch: estimated from noise and density, or from the
    #: sample.
    rate: float
    flagged: float
    #: The submit_margin that makes it safe, and the share of the yield that this costs.
    margin: float
    cost: float


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a check."""

    plan: Plan
    info: EngineInfo
    #: What came of the known distances.
    known: str
    #: The share of all nonces that is valid.
    valid: float
    seen: Sequence[Seen]
    #: Sides that could not be had here, and why.
    missing: Sequence[tuple[Side, str]]

    @property
    def worst(self) -> Seen:
        """The side that is likeliest to accuse this node."""
        return max(self.seen, key=lambda each: (each.flagged, each.rate))

    @property
    def passes(self) -> bool:
        """Whether no side accuses this node more often than accepted."""
        return self.worst.flagged <= self.plan.accepted_risk


def check(settings: Settings, plan: Plan) -> Report:
    """Compute and compare.

    Raises `ConfigError` if an engine that was asked for can't be loaded, `EngineError` if nothing
    can be computed, and `Quarantined` if known distances come out wrong.
    """
    pin(settings)
    config = plan.config
    nonces = config.nonces(0, plan.sample)
    with news.status("loading the model") as status, loaded(settings) as engine:
        info = engine.info
        try:
            info.check_length(config.seq_len)
        except EngineError as error:
            raise ConfigError(str(error)) from None
        status.update("functional check")
        known = _check_function(engine, settings)
        others = plan.others or sides.usual(settings, info)
        status.stop()
        if why := info.refusal_of(config.terms):
            raise ConfigError(why)
        ours = _proofs(engine, config, nonces, "computing as this node")
        judge, valid = _judge_of(plan, ours)
        seen = [
            judge(each, info, _theirs(engine, each, config, nonces))
            for each in others
            if not each.changes
        ]
    missing = []
    for each in others:
        if not each.changes:
            continue
        try:
            with (
                news.status(f"loading the model: {each.name}"),
                loaded(each.settings(settings)) as engine,
            ):
                info_of_other = engine.info
                theirs = _theirs(engine, each, config, nonces)
        except (ConfigError, EngineError) as error:
            if each.asked:
                raise
            missing.append((each, str(error)))
            continue
        seen.append(judge(each, info_of_other, theirs))
    return Report(plan, info, known, valid, seen, missing)


def _check_function(engine: Engine, settings: Settings) -> str:
    """Have the device prove itself; what came of it, in words. Raises `Quarantined`."""
    check = FunctionalCheck(engine, settings)
    check.begin()
    if settings.model_distances is not None:
        return "agree with POC_MODEL_DISTANCES"
    if "redis_url" in settings.model_fields_set and (
        reference := _reference(settings, engine.info.fingerprint)
    ):
        check.agree_with(reference)
        return f"agree with {reference.worker}, the first worker with this model"
    return "the same twice; POC_MODEL_DISTANCES compares them with a healthy node's"


def _reference(settings: Settings, fingerprint: str) -> Reference | None:
    with closing(Store(settings)) as store:
        return store.workers.reference(fingerprint)


def _theirs(engine: Engine, side: Side, config: PoCConfig, nonces: Sequence[int]) -> list[Proof]:
    batches = config.model_copy(update={"batch_size": side.batch_size})
    return _proofs(engine, batches, nonces, side.name)


def _proofs(engine: Engine, config: PoCConfig, nonces: Sequence[int], what: str) -> list[Proof]:
    with counting(what, len(nonces)) as done:
        return all_proofs(engine, config, nonces, done)


#: Another side, what computed it, and its proofs, to this node as it sees it.
Judge = Callable[[Side, EngineInfo, Sequence[Proof]], Seen]


def _judge_of(plan: Plan, ours: Sequence[Proof]) -> tuple[Judge, float]:
    """How others see these proofs, and the share of all nonces that is valid."""
    if not isinstance(plan.terms, Distance):
        return partial(_seen_apart, plan, ours), 1.0
    terms, distances = plan.terms, [float(each) for each in ours]
    found = Distances.fitted(distances)
    if (valid := found.share_below(terms.valid_below)) < LEAST_SHARE:
        raise ConfigError(
            f"--r-target {terms.r_target:g}: none of this model's nonces is valid below "
            f"{terms.valid_below:g}; `poc calibrate` finds one for a share of them"
        )
    return partial(_seen, plan, terms, distances, found), valid


def _seen(
    plan: Plan,
    terms: Distance,
    ours: Sequence[float],
    found: Distances,
    side: Side,
    info: EngineInfo,
    theirs: Sequence[Proof],
) -> Seen:
    noise = Noise(ours, [float(each) for each in theirs])
    rate = found.mismatches(noise, terms, terms.submit_margin)
    margin = found.margin_for(noise, terms, plan.safe_rate)
    return Seen(
        side=side,
        info=info,
        noise=noise,
        changed=noise.changed_sides(terms),
        rate=rate,
        flagged=plan.flagged(rate),
        margin=margin,
        cost=found.cost(terms, margin) if math.isfinite(margin) else 1.0,
    )


def _seen_apart(
    plan: Plan, ours: Sequence[Proof], side: Side, info: EngineInfo, theirs: Sequence[Proof]
) -> Seen:
    terms, pairs = plan.terms, list(zip(ours, theirs, strict=True))
    wrong = sum(terms.is_wrong(claim, recomputed) for claim, recomputed in pairs)
    # At most that, with 95%: none of many is not never.
    rate = min(1.0, wrong / len(pairs) if wrong else 3 / len(pairs))
    return Seen(
        side=side,
        info=info,
        noise=Noise([0.0] * len(pairs), [terms.apart(a, b) for a, b in pairs]),
        changed=(wrong, len(pairs)),
        rate=rate,
        flagged=plan.flagged(rate),
        margin=0.0,
        cost=0.0,
    )
