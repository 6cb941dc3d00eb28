"""Proofs by the deployed model's engine, without Redis and a worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from shared.config import PoCConfig
from shared.errors import ConfigError, EngineError
from shared.schemes import Proof
from shared.settings import Settings, load_settings
from worker.engines import Engine, Job, load_engine
from worker.engines.base import finite
from worker.engines.tile import cut
from worker.node.pipeline import depth_of
from worker.tools.show import out_alone

#: Of a setting that is left out here, what a worker would do: a measurement serves no requests.
_NOT_HERE = ("serve_host", "serve_port")


def changed(settings: Settings, *, without: Collection[str] = (), **changes: Any) -> Settings:
    """`settings` as given, but those `without`, with `changes`.

    Raises `ConfigError` for what can't be used.
    """
    left_out = {*_NOT_HERE, *without}
    given = settings.model_dump(exclude_unset=True, round_trip=True, exclude=left_out)
    return load_settings({}, **given | changes)


@contextmanager
def loaded(settings: Settings) -> Iterator[Engine]:
    """The engine of `settings`, as a worker loads it, closed at the end of the block.

    Raises `ConfigError` if it can't be loaded: the options of the command are wrong.
    """
    try:
        with out_alone():
            engine = load_engine(changed(settings))
    except EngineError as error:
        raise ConfigError(str(error)) from None
    try:
        yield engine
    finally:
        with out_alone():
            engine.close()


def proofs(
    engine: Engine,
    config: PoCConfig,
    nonces: Sequence[int],
    on_done: Callable[[int], None] = lambda _: None,
) -> list[Proof | None]:
    """What each nonce gives, in batches of `config.batch_size`; `on_done` hears of each batch.

    None where the model gave no finite numbers. Raises `EngineError` if they can't be computed.
    """
    batches = deque(cut(nonces, config.batch_size))
    depth = depth_of(engine.info, config.seq_len, config.batch_size)
    under_way: deque[Any] = deque()
    found: list[Proof | None] = []
    while batches or under_way:
        while batches and len(under_way) < depth:
            under_way.append(engine.submit(Job.of(config, config.public_key, batches.popleft())))
        done = finite(under_way.popleft().result())
        found += done
        on_done(len(done))
    return found


def all_proofs(
    engine: Engine,
    config: PoCConfig,
    nonces: Sequence[int],
    on_done: Callable[[int], None] = lambda _: None,
) -> list[Proof]:
    """As `proofs`; raises `EngineError` also if one is missing."""
    computed = proofs(engine, config, nonces, on_done)
    found = [each for each in computed if each is not None]
    if wrong := len(computed) - len(found):
        what = "distance" if config.terms.has_distances else "numbers"
        raise EngineError(
            f"no finite {what} for {wrong} of {len(computed)} nonces; the weights may hold what is "
            "no number, or POC_DTYPE is too narrow for them"
        )
    return found


def distances(
    engine: Engine,
    config: PoCConfig,
    nonces: Sequence[int],
    on_done: Callable[[int], None] = lambda _: None,
) -> list[float]:
    """As `all_proofs`, of the scheme `distance`."""
    return [float(each) for each in all_proofs(engine, config, nonces, on_done)]
