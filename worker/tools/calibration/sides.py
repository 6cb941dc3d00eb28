"""The other sides of a validation: engines as other nodes have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shared.errors import ConfigError
from shared.settings import Settings
from worker.engines import BUILT_IN, EngineInfo, module_of
from worker.tools.calibration.compute import changed

#: Nonces of a batch that no prover has, so that each of them meets other neighbours.
ODD_BATCH = 7
#: What another side may differ in: settings of its engine, and the size of its batches.
NAMES = ("engine", "model", "dtype", "device", "tile", "quantization", "tensor_parallel")
_BATCH = "batch_size"


@dataclass(frozen=True, slots=True)
class Side:
    """A validator, by what it does otherwise than this node."""

    changes: dict[str, str] = field(default_factory=dict)
    batch_size: int = ODD_BATCH
    #: Whether somebody asked for it: then it must be measured.
    asked: bool = False

    @property
    def name(self) -> str:
        """What it is called in a report."""
        words = [f"{name}={value}" for name, value in self.changes.items()]
        return ",".join(words) or f"{_BATCH}={self.batch_size}"

    def settings(self, ours: Settings) -> Settings:
        """Its settings. Raises `ConfigError` for what can't be used."""
        # What is for our engine alone says nothing of another one.
        engine = self.changes.get("engine")
        foreign = ours.of_other_engines(engine) if engine else ()
        return changed(ours, without=foreign, **self.changes)

    @classmethod
    def of(cls, text: str) -> Side:
        """Read `engine=transformers,dtype=float32`. Raises `ConfigError`."""
        changes: dict[str, str] = {}
        for part in text.split(","):
            name, equals, value = part.strip().partition("=")
            if not equals or not value or name not in (*NAMES, _BATCH):
                raise ConfigError(
                    f"--as {text}: {part.strip()!r} is not NAME=VALUE with a name of "
                    f"{', '.join((*NAMES, _BATCH))}"
                )
            changes[name] = value
        batch = changes.pop(_BATCH, str(ODD_BATCH))
        if not batch.isdecimal() or int(batch) < 1:
            raise ConfigError(f"--as {text}: {_BATCH} must be a whole number from 1 on")
        return cls(changes, int(batch), asked=True)


def usual(settings: Settings, info: EngineInfo) -> Sequence[Side]:
    """Those that a network has anyway: other batches, another tile, another engine, wider floats.

    `info` is that of the engine with `settings`.
    """
    sides = [Side()]
    engine = info.profile.get("engine", "")
    if engine not in BUILT_IN:  # of an engine of somebody's own nothing else is known
        return sides
    sides.append(Side({"tile": str(info.tile // 2 or 2)}))
    others = [each for each in BUILT_IN if each != engine]
    sides += [Side({"engine": each}) for each in others if _can_run(each, settings)]
    if info.profile.get("dtype") in ("bfloat16", "float16"):
        sides.append(Side({"engine": "transformers", "dtype": "float32"}))
    return sides


def _can_run(engine: str, settings: Settings) -> bool:
    module: Any = module_of(engine)
    return bool(module.fits(settings)) if hasattr(module, "fits") else True
