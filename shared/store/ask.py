"""How a worker asks for work."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from shared.store.context import Context

#: A chunk of a validation, or a batch of the round.
Kind = Literal["chunk", "batch"]


@dataclass(frozen=True, slots=True)
class Ask:
    """What `worker` asks for: the next work, under a `token` of its choice.

    So it can ask again when the answer was lost, and gets the same. A round that began with a
    model of another `fingerprint`, or one of another scheme than `schemes`, gives nothing, and says
    so in its error. Nor does a validation of another scheme, while a worker lives that computes it.
    """

    worker: str
    token: str
    #: What is looked for, in this order.
    kinds: tuple[Kind, ...]
    fingerprint: str | None = None
    #: What the worker computes; None for whatever there is.
    schemes: Collection[str] | None = None

    def as_args(self, context: Context) -> dict[str, Any]:
        """What a script takes."""
        args: dict[str, Any] = {
            "worker": self.worker,
            "token": self.token,
            "kinds": self.kinds,
            "lease_ms": context.lease_ms,
            "max_attempts": context.settings.max_attempts,
        }
        if self.fingerprint:
            args["fingerprint"] = self.fingerprint
        if self.schemes is not None:
            args["schemes"] = sorted(self.schemes)
        return args
