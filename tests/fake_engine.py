"""A small real engine without a model: distances from a hash, batches that take as long as asked.

A worker process loads it with `POC_ENGINE=fake_engine:load` and `POC_MODEL=fake?seconds=0.05`
(`tests` on the Python path). More knobs: `nan=7` gives no distance for every seventh nonce,
`fail=3` fails every third job, `hang=3` takes `hang_s` seconds for every third, `memory=3` raises
MemoryError at the third, `max_seq_len=64`, `weights=other` is another model. `noise=1e-4` moves
distances by up to so much, each by what its nonce says.

None of these touches the functional check. `fault=/a/file` does: what that file says at the time
breaks the device (see `FAULTS`), and it is well again when the file is gone.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from shared.errors import EngineDied, EngineError
from shared.schemes import Proof
from shared.settings import Settings
from worker.engines import EngineInfo, Job
from worker.engines.base import FuturePending
from worker.node.functional_check import BLOCK_HASH

#: Faults of the device, in any job from then on.
FAULTS = (
    "hang",  # a job that has begun never ends
    "hang in submit",
    "wrong",  # other distances
    "slightly wrong",  # in the last bit
    "nan",  # no distances
    "one short",  # a distance too few, by a defect
    "one over",  # a distance too many
    "fail",  # no job can be computed
    "die",  # the engine is gone for good
)


def fake_distance(block_hash: str, public_key: str, nonce: int) -> float:
    """A distance in [0, 2), the same wherever it is computed."""
    digest = hashlib.sha256(f"{block_hash}_{public_key}_{nonce}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**63


def fake_distances(job: Job) -> list[float]:
    """What an engine without knobs gives for `job`."""
    return [fake_distance(job.block_hash, job.public_key, nonce) for nonce in job.nonces]


class FakeEngine:
    """`seconds` is what a job takes; a job is counted in `jobs` when it begins.

    While `gate` is cleared, a job that has begun does not end.
    """

    #: Whether `jobs` and `checks` are kept: a worker that runs for long has nobody to look at them.
    remembers = True

    def __init__(
        self,
        seconds: float = 0.0,
        nan: int = 0,
        fail: int = 0,
        hang: int = 0,
        hang_s: float = 600.0,
        memory: int = 0,
        max_seq_len: int = 1024,
        weights: str = "fake",
        model: str = "fake",
        fault: Path | None = None,
        noise: float = 0.0,
    ) -> None:
        self.noise = noise
        self.seconds, self.nan, self.fail = seconds, nan, fail
        self.hang, self.hang_s, self.memory = hang, hang_s, memory
        self._fault_file = fault
        #: Jobs that began, and beside them functional checks.
        self.jobs: list[Job] = []
        self._begun = 0
        self.checks: list[Job] = []
        self.busy_seconds = 0.0
        self.info = EngineInfo(
            model=model,
            device="none",
            fingerprint=f"fingerprint-of-{weights}",
            vocab_size=1,
            hidden_size=1,
            max_seq_len=max_seq_len,
            profile={"engine": "fake"},
            exact=True,
        )
        self.gate = threading.Event()
        self.gate.set()
        self._closing = threading.Event()
        self._thread = ThreadPoolExecutor(max_workers=1)

    def submit(self, job: Job) -> FuturePending:
        if job.seq_len > self.info.max_seq_len:
            raise EngineError(f"seq_len={job.seq_len}: at most {self.info.max_seq_len}")
        if self.fault == "hang in submit":
            threading.Event().wait()
        self.ensure_alive()
        try:
            return FuturePending(self._thread.submit(self._run, job))
        except RuntimeError:
            raise EngineError("the engine is closed") from None

    @property
    def fault(self) -> str:
        """What is wrong with the device now."""
        if self._fault_file is None:
            return ""
        with contextlib.suppress(FileNotFoundError):
            return self._fault_file.read_text()
        return ""

    def ensure_alive(self) -> None:
        if self.fault == "die":
            raise EngineDied("the fake engine was asked to die")

    def close(self) -> None:
        self._closing.set()
        self.gate.set()
        self._thread.shutdown(cancel_futures=True)

    def _run(self, job: Job) -> list[Proof | None]:
        if job.block_hash == BLOCK_HASH:
            if self.remembers:
                self.checks.append(job)
            return [*self._distances(job)]
        self._begun += 1
        if self.remembers:
            self.jobs.append(job)
        began = time.perf_counter()
        hangs = self.hang and self._begun % self.hang == 0
        self._closing.wait(self.hang_s if hangs else self.seconds)
        self.gate.wait()
        self.busy_seconds += time.perf_counter() - began
        if self._closing.is_set():
            raise EngineError("the engine was closed while it computed")
        if self.fail and self._begun % self.fail == 0:
            raise EngineError("the fake engine was asked to fail")
        if self.memory and self._begun == self.memory:
            raise MemoryError("the fake engine was asked to run out of memory")
        dist = self._distances(job)
        if self.noise:
            dist = [
                each + self.noise * (fake_distance("noise", "", nonce) - 1)
                for nonce, each in zip(job.nonces, dist, strict=True)
            ]
        return self._without_some(job.nonces, dist)

    def _distances(self, job: Job) -> list[float]:
        """What the device gives, as it is now."""
        dist = fake_distances(job)
        match self.fault:
            case "hang":
                threading.Event().wait()
            case "wrong":
                return [2 - d for d in dist]
            case "slightly wrong":
                return [math.nextafter(d, 2) for d in dist]
            case "nan":
                return [math.nan for _ in dist]
            case "one short":
                return dist[1:]
            case "one over":
                return [*dist, 0.0]
            case "fail":
                raise EngineError("the fake device is broken")
        return dist

    def _without_some(self, nonces: Sequence[int], dist: list[float]) -> list[Proof | None]:
        if not self.nan:
            return [*dist]
        return [None if n % self.nan == 0 else d for n, d in zip(nonces, dist, strict=True)]


def load(settings: Settings) -> FakeEngine:
    """The engine that `settings.model` describes."""
    knobs = dict(parse_qsl(urlsplit(settings.model or "fake").query))
    if knobs.get("broken") == "hangs":
        threading.Event().wait()
    if knobs.get("broken") == "memory":
        raise MemoryError("the fake engine was asked to find no memory")
    if "broken" in knobs:
        raise EngineError("the fake engine was asked not to load")
    engine = FakeEngine(
        seconds=float(knobs.get("seconds", 0)),
        nan=int(knobs.get("nan", 0)),
        fail=int(knobs.get("fail", 0)),
        hang=int(knobs.get("hang", 0)),
        hang_s=float(knobs.get("hang_s", 600)),
        memory=int(knobs.get("memory", 0)),
        max_seq_len=int(knobs.get("max_seq_len", 1024)),
        weights=knobs.get("weights", "fake"),
        model=knobs.get("model", "fake"),
        fault=Path(knobs["fault"]) if "fault" in knobs else None,
        noise=float(knobs.get("noise", 0)),
    )
    engine.remembers = False
    return engine
