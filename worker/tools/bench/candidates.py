"""What a worker is measured by: its forward alone, its engine alone, a whole round."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from shared.client import PoCClient
from shared.config import PoCConfig, PoCState
from shared.errors import ConfigError, EngineError
from worker.engines import Engine, Job, Pending
from worker.engines.base import TimesForwards
from worker.node.node import Node
from worker.node.pipeline import depth_of

#: Batches at the beginning of a turn that do not count: a device that was idle is slow, or fast.
WARM_UP = 2
#: Seconds between two looks at a round: a share of a batch, within bounds.
LOOK_SHARE, LOOK_S = 0.01, (0.0005, 0.005)


@dataclass(frozen=True, slots=True)
class Sample:
    """What was measured while `nonces` were computed in `seconds`."""

    nonces: int
    seconds: float
    busy_seconds: float

    @property
    def busy(self) -> float:
        """The share of the time that the engine computed."""
        # A batch counts when it ends, so more may end than began.
        return min(1.0, self.busy_seconds / self.seconds)

    def seconds_for(self, nonces: int) -> float:
        """What so many nonces took."""
        return self.seconds * nonces / self.nonces


class Forward:
    """The engine's forward on random inputs, and nothing else: what no worker with it can beat."""

    name = "forward"

    def __init__(self, engine: TimesForwards, config: PoCConfig) -> None:
        self._engine, self._config = engine, config

    def turn(self, seconds: float) -> tuple[float, float]:
        """Nonces, and the seconds of their forwards."""
        return self._engine.time_forwards(self._config.seq_len, seconds, self._config.scheme)


class EngineAlone:
    """Jobs back to back: generator, forward and proofs, without Redis, Celery and a loop."""

    name = "engine"

    def __init__(self, engine: Engine, config: PoCConfig) -> None:
        self._engine, self._config = engine, config
        self._position = 0

    def turn(self, seconds: float) -> tuple[float, float]:
        """Nonces and seconds between the ends of two batches."""
        depth = depth_of(self._engine.info, self._config.seq_len, self._config.batch_size)
        in_flight = deque(self._submit() for _ in range(depth))
        measured = _Measuring(self._engine)
        while measured.goes_on(seconds):
            in_flight.popleft().result()
            in_flight.append(self._submit())
            measured.saw(self._config.batch_size)
        for each in in_flight:
            each.result()
        sample = measured.sample()
        return sample.nonces, sample.seconds

    def _submit(self) -> Pending:
        config = self._config
        nonces = config.nonces(self._position * config.batch_size, config.batch_size)
        self._position += 1
        return self._engine.submit(Job.of(config, config.public_key, nonces))


class Round:
    """A whole round: commands through Celery and Redis, claims, commits, heartbeats, callbacks.

    Each turn is a round of its own. Its begin and its end do not count.
    """

    def __init__(
        self, node: Node, client: PoCClient, config: PoCConfig, name: str = "round"
    ) -> None:
        self.name = name
        self._node, self._client, self._config = node, client, config
        #: Of each turn: what was measured, and the seconds from the command to the first batch.
        self.samples: list[Sample] = []
        self.start_s: list[float] = []

    def turn(self, seconds: float) -> tuple[float, float]:
        """Nonces and seconds between the ends of two batches.

        Raises `EngineError` once the worker has failed, `ConfigError` where the turn is longer
        than a round can be, and what its commands raise.
        """
        with ThreadPoolExecutor(1) as commands:
            began = time.perf_counter()
            asked = commands.submit(self._client.generate, self._config)
            # A command that is refused begins nothing.
            self._wait_until(lambda: self._generates or (asked.done() and not asked.result()))
            self.start_s.append(time.perf_counter() - began)
            sample = self._measure(seconds)
            asked.result()
        self._client.stop()
        self._wait_until(lambda: not self._generates)
        self.samples.append(sample)
        return sample.nonces, sample.seconds

    @property
    def _generates(self) -> bool:
        return self._node.pipeline.state != PoCState.IDLE

    def _measure(self, seconds: float) -> Sample:
        pipeline, measured = self._node.pipeline, _Measuring(self._node.engine)
        look = LOOK_S[0]
        if self.samples:
            batch_s = self.samples[-1].seconds_for(self._config.batch_size)
            look = min(max(look, LOOK_SHARE * batch_s), LOOK_S[1])
        seen = pipeline.computed
        while measured.goes_on(seconds):
            now = seen
            while now == seen:
                self._look_again(look)
                ended = not self._generates  # before the count, which is whole then
                now = pipeline.computed
                if ended and now == seen:
                    raise ConfigError(
                        "a round was full before its turn was over: take shorter turns (more "
                        "--rounds, fewer --seconds), or raise POC_MAX_VALID"
                    )
            measured.saw(now - seen)
            seen = now
        return measured.sample()

    def _wait_until(self, so: Callable[[], object]) -> None:
        while not so():
            self._look_again(LOOK_S[0])

    def _look_again(self, after: float) -> None:
        if self._node.closing.wait(after):
            raise EngineError("the worker failed while it was measured: see above")


class _Measuring:
    """Counts nonces from the end of one tile to that of another, after the warm-up.

    Batches of one tile end together. So a batch is the last of its tile if the next one is a while
    behind it; a count from or to any other has nonces in it whose time it has not, or lacks some.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._first = self._last = self._look(0, 0)
        self._begin: _Moment | None = None
        self._end: _Moment | None = None

    def goes_on(self, seconds: float) -> bool:
        begin, end = self._begin, self._end
        return begin is None or end is None or end.at - begin.at < max(seconds, 1e-9)

    def saw(self, nonces: int) -> None:
        """So many nonces ended just now."""
        last = self._last
        self._last = now = self._look(last.ends + 1, last.nonces + nonces)
        usual = (now.at - self._first.at) / now.ends
        if last.ends >= WARM_UP and now.at - last.at > usual / 2:
            self._begin = self._begin or last
            self._end = last

    def sample(self) -> Sample:
        begin, end = self._begin or self._first, self._end or self._last
        return Sample(
            end.nonces - begin.nonces, end.at - begin.at, end.busy_seconds - begin.busy_seconds
        )

    def _look(self, ends: int, nonces: int) -> _Moment:
        return _Moment(time.perf_counter(), self._engine.busy_seconds, ends, nonces)


@dataclass(frozen=True, slots=True)
class _Moment:
    """How far it was then."""

    at: float
    busy_seconds: float
    ends: int
    nonces: int
