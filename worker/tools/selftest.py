"""`poc selftest`: vectors that other nodes published, against our code and against our model.

    FILE ──▶ known vectors ──▶ rotation undone ──▶ order: are picks and rotations ours?
                          └──▶ own engine ──▶ own vectors ──▶ L2, matches, nonces a minute

The order needs neither the model nor a GPU: it holds for any real model, whoever computed it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, cast

import numpy as np
from rich.table import Table
from rich.text import Text

from shared.config import PoCConfig
from shared.errors import ConfigError, EngineError, InvalidRequest
from shared.requests import ValidateRequest, read
from shared.schemes.artifact import ArtifactBatch, ArtifactTerms, ValidatedArtifacts
from shared.settings import Settings
from worker.engines import EngineInfo
from worker.queue.app import pin
from worker.tools.calibration.compute import loaded, proofs
from worker.tools.extras import require_installed
from worker.tools.show import counting, news, out

#: What the mean product of two nonces' values of one dimension is, over its root mean square, must
#: be for the order to be right. It is a property of the model: 0.45 to 0.75 in what nodes with
#: Qwen3, MiniMax and Kimi published. With all dimensions ascending, which is right in part, it was
#: 0.11 to 0.22 there; with another order, key, block or hidden size it is 0.
ALIKE = 0.3
#: Below so many standard deviations nothing is said: chance gives that once in 30,000.
LEAST_SCORE = 4.0
#: What to expect of L2, for who has the weights.
EXPECT = (
    "0.01 to 0.1 is right, up to 0.3 between different GPUs with quantized weights; about 1.4 is "
    "another computation"
)
#: Positions of a network that a file may be of, for the message that asks.
USUAL_SEQ_LEN = 1024


@dataclass(frozen=True, slots=True)
class Known:
    """Vectors of one block and key, and what the file says of how they were computed."""

    batch: ArtifactBatch
    k_dim: int
    seq_len: int | None = None
    hidden_size: int | None = None
    strong_rng: bool = False

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Known:
        """Read what nodes publish, what `/generated` is sent, or what `poc proofs` prints.

        Other fields are passed over. Raises `InvalidRequest` that names what is wrong.
        """
        given = {name: fields[name] for name in _OF_A_BATCH if fields.get(name) is not None}
        batch = read(
            ValidateRequest, {"batch": {"block_height": 0, **given, "scheme": "artifact"}}
        ).batch
        if not isinstance(batch, ArtifactBatch) or not batch.vectors:
            raise InvalidRequest("holds no vectors: neither artifacts nor nonces and vectors")
        encoding = batch.encoding
        k_dim = encoding.k_dim if encoding else _whole(fields, "k_dim")
        known = cls(
            batch,
            ArtifactTerms().k_dim if k_dim is None else k_dim,
            _whole(fields, "seq_len"),
            _whole(fields, "hidden_size"),
            fields.get("strong_rng", fields.get("poc_stronger_rng")) is True,
        )
        for nonce, vector in zip(batch.nonces, batch.vectors, strict=True):
            known.decode(nonce, vector)
        return known

    def decode(self, nonce: int, vector: str) -> Any:
        """The numbers of a vector: float32 [k_dim]. Raises `InvalidRequest`."""
        from worker.schemes.artifact import decode

        try:
            return decode(vector, self.k_dim)
        except ValueError as error:
            raise InvalidRequest(f"nonce {nonce}: {error}") from None


#: What a file may have of a batch.
_OF_A_BATCH = (
    "public_key",
    "block_hash",
    "block_height",
    "node_id",
    "nonces",
    "vectors",
    "artifacts",
    "encoding",
)


def _whole(fields: Mapping[str, Any], name: str) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidRequest(f"{name}: must be a whole number from 1 on (got {str(value)[:80]!r})")
    return value


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked. What is None is as the file says."""

    known: Known
    sample: int = 200
    batch_size: int = 32
    seq_len: int | None = None
    hidden_size: int | None = None
    strong_rng: bool = False
    terms: ArtifactTerms = field(default_factory=ArtifactTerms)


@dataclass(frozen=True, slots=True)
class Order:
    """Whether picked dimensions come in our order, as values show that belong together."""

    score: float
    #: From which score on they do.
    needed: float
    hidden_size: int
    nonces: int
    #: Nonces from which on that can be told.
    wanted: int

    @property
    def is_right(self) -> bool | None:
        """None for too few nonces to tell."""
        if self.score >= self.needed:
            return True
        return None if self.nonces < self.wanted else False

    @classmethod
    def of(cls, known: Known, vectors: Sequence[str | None], hidden_size: int) -> Order:
        """Look at `vectors`, one for each of the known nonces, or as many of the first of them.

        `order_score` sums products y_i y_j over the P pairs of nonces that show the same dimension,
        and divides by the root of the sum of their squares. So it is sqrt(P) times how alike values
        of one dimension are, and it grows as fast as the count of nonces does: two nonces share
        k^2 / H dimensions on average, which makes P = n (n - 1) / 2 * k^2 / H. From random signs
        it would be of the order of 1, whatever n is.
        """
        from worker.schemes.artifact import order_score

        batch, k = known.batch, known.k_dim
        pairs = [(n, v) for n, v in zip(batch.nonces, vectors, strict=False) if v is not None]
        if k > hidden_size:
            raise InvalidRequest(f"hidden_size={hidden_size}: vectors have {k} numbers")
        rows = np.array([known.decode(*pair) for pair in pairs], np.float32).reshape(-1, k)
        nonces = [nonce for nonce, _ in pairs]
        n, shared = len(nonces), k * k / hidden_size
        return cls(
            score=order_score(batch.block_hash, batch.public_key, nonces, rows, hidden_size),
            needed=max(LEAST_SCORE, ALIKE * math.sqrt(n * (n - 1) / 2 * shared)),
            hidden_size=hidden_size,
            nonces=n,
            wanted=1 + math.ceil(LEAST_SCORE / ALIKE * math.sqrt(2 / shared)),
        )


@dataclass(frozen=True, slots=True)
class Compared:
    """What the loaded model made of the file's nonces."""

    info: EngineInfo
    verdict: ValidatedArtifacts
    seconds: float
    order: Order

    @property
    def per_minute(self) -> float:
        """Nonces that this node makes."""
        return 60 * len(self.verdict) / self.seconds


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a self-test."""

    order: Order
    compared: Compared | None = None

    @property
    def passes(self) -> bool | None:
        """Whether all is well; None if that can't be told."""
        if self.compared is None:
            return self.order.is_right
        verdict = self.compared.verdict
        # Of so few nonces not even all wrong ones would be a fraud.
        if verdict.n_mismatch and verdict.p_mismatch**verdict.n_total >= verdict.p_value_threshold:
            return None
        return not verdict.is_fraud


def examine(settings: Settings, plan: Plan) -> Report:
    """Look at the order, and with a model compute the file's first nonces.

    Raises `ConfigError` if the engine can't be loaded or a size is missing that nobody says,
    `InvalidRequest` for what does not fit the model, and `EngineError` if it can't be computed.
    """
    require_installed("torch")
    known, hidden_size = plan.known, plan.hidden_size or plan.known.hidden_size
    if settings.model is None:
        if hidden_size is None:
            raise ConfigError(
                "--hidden-size: the file does not say how wide the model is that made it; give "
                "its hidden_size, or --model to compute its nonces as well"
            )
        return Report(_order(known, hidden_size))
    if (seq_len := plan.seq_len or known.seq_len) is None:
        raise ConfigError(
            "--seq-len: the file does not say how many positions a nonce has; give it "
            f"({USUAL_SEQ_LEN} in the live network)"
        )
    pin(settings)
    settings = settings.model_copy(update={"scheme": plan.terms.name})
    with news.status("loading the model"), loaded(settings) as engine:
        width = engine.info.hidden_size
        if hidden_size not in (None, width):
            raise InvalidRequest(
                f"hidden_size={hidden_size}: {engine.info.model} has {width}; it is another model"
            )
        order = _order(known, width)
        compared = _compare(engine, plan, seq_len)
    return Report(order, compared)


def _order(known: Known, hidden_size: int) -> Order:
    return Order.of(known, known.batch.vectors or (), hidden_size)


def _compare(engine: Any, plan: Plan, seq_len: int) -> Compared:
    known, info = plan.known, engine.info
    terms = plan.terms.model_copy(update={"k_dim": known.k_dim})
    if why := info.refusal_of(terms):
        raise InvalidRequest(why)
    try:
        info.check_length(seq_len)
    except EngineError as error:
        raise ConfigError(str(error)) from None
    batch = known.batch.model_copy(
        update={
            "nonces": known.batch.nonces[: plan.sample],
            "vectors": (known.batch.vectors or [])[: plan.sample],
        }
    )
    config = PoCConfig(
        block_hash=batch.block_hash,
        block_height=batch.block_height,
        public_key=batch.public_key,
        batch_size=plan.batch_size,
        seq_len=seq_len,
        strong_rng=plan.strong_rng or known.strong_rng,
        terms=terms,
    )
    with news.status("first batch"):
        # Not counted: it compiles and allocates what all others use.
        proofs(engine, config, batch.nonces[: plan.batch_size])
    began = time.monotonic()
    with counting("computing known nonces", len(batch)) as done:
        computed = proofs(engine, config, batch.nonces, done)
    seconds = time.monotonic() - began
    if computed.count(None) > terms.may_miss * len(batch):
        raise EngineError(
            f"no finite numbers for {computed.count(None)} of {len(batch)} nonces; the weights may "
            "hold what is no number, or POC_DTYPE is too narrow for them"
        )
    verdict = cast(ValidatedArtifacts, terms.judge(batch, computed, info.profile))
    ours = [None if each is None else str(each) for each in computed]
    return Compared(info, verdict, seconds, Order.of(known, ours, info.hidden_size))


def show(report: Report) -> None:
    """What it means, for people."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in _rows(report).items():
        table.add_row(name, value if isinstance(value, Text) else Text(value))
    out.print(table)


def show_json(report: Report) -> None:
    """One line."""
    out.print(json.dumps(figures(report)), soft_wrap=True, highlight=False, markup=False)


def _rows(report: Report) -> dict[str, str | Text]:
    rows: dict[str, str | Text] = {"order": _of_order(report.order)}
    if (compared := report.compared) is None:
        rows["computed"] = (
            f"nothing: --model gives a model to compute with. Of the L2 that it then has, {EXPECT}"
        )
        return rows
    verdict, l2 = compared.verdict, _numbers(compared.verdict)
    matches = verdict.n_total - verdict.n_mismatch
    style = "bold green" if report.passes else "bold red"
    headline = Text(f"{matches} of {verdict.n_total} match", style=style)
    headline.append(
        f"; you would make {compared.per_minute:,.0f} a minute", style="not bold default"
    )
    if report.passes is None:
        headline.append("; too few to tell: give more nonces", style="not bold default")
    rows = {"verdict": headline, **rows}
    if l2:
        rows["L2"] = f"{fmean(l2):.3g} on average, {min(l2):.3g} to {max(l2):.3g} ({EXPECT})"
    if verdict.not_computed:
        rows["not computed"] = f"{len(verdict.not_computed)} nonces, which are left out"
    rows["own order"] = _of_order(compared.order)
    rows["judged by"] = (
        f"{verdict.limits}: an honest node has so many mismatches with a probability of "
        f"{verdict.p_value:.3g}"
    )
    rows["computed by"] = f"{compared.info.model} on {compared.info.device}, " + ", ".join(
        f"{name} {value}" for name, value in compared.info.profile.items()
    )
    return rows


def _of_order(order: Order) -> str | Text:
    about = f"score {order.score:.1f} of {order.nonces} nonces, right from {order.needed:.1f} on"
    match order.is_right:
        case True:
            return Text("as ours", style="bold green").append(f": {about}", "not bold default")
        case False:
            text = Text("not as ours", style="bold red")
            return text.append(
                f": {about}; another order, block, key or hidden size ({order.hidden_size} here), "
                "or a model with random weights, whose dimensions are all alike",
                "not bold default",
            )
        case _:
            return f"can't be told: {about}; give {order.wanted} nonces or more"


def figures(report: Report) -> dict[str, Any]:
    """What JSON has of a self-test."""
    found: dict[str, Any] = {"passes": report.passes, "order": _figures_of_order(report.order)}
    if (compared := report.compared) is None:
        return found
    verdict, l2 = compared.verdict, _numbers(compared.verdict)
    return found | {
        "matches": verdict.n_total - verdict.n_mismatch,
        "nonces": verdict.nonces,
        "l2": verdict.l2,
        "l2_mean": fmean(l2) if l2 else None,
        "l2_max": max(l2, default=None),
        "nonces_per_minute": compared.per_minute,
        "own_order": _figures_of_order(compared.order),
        **verdict.model_dump(
            include={
                "n_total",
                "n_mismatch",
                "mismatch_nonces",
                "p_value",
                "fraud_detected",
                "dist_threshold",
                "p_mismatch",
                "p_value_threshold",
                "profile",
            }
        ),
        "not_computed": verdict.not_computed,
        "model": compared.info.model,
        "fingerprint": compared.info.fingerprint,
        "device": compared.info.device,
    }


def _figures_of_order(order: Order) -> dict[str, Any]:
    return {
        "is_right": order.is_right,
        "score": order.score,
        "needed": order.needed,
        "nonces": order.nonces,
        "hidden_size": order.hidden_size,
    }


def _numbers(verdict: ValidatedArtifacts) -> list[float]:
    return [each for each in verdict.l2 if each is not None]
