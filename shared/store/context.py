"""What every part of the store works with."""

from __future__ import annotations

from dataclasses import dataclass

from shared.settings import Settings
from shared.store.connection import Client
from shared.store.keys import Keys
from shared.store.scripts import Scripts


@dataclass(frozen=True, slots=True)
class Context:
    """One Redis, and one namespace in it."""

    redis: Client
    keys: Keys
    scripts: Scripts
    settings: Settings

    @property
    def lease_ms(self) -> int:
        """Milliseconds that a claim lives without a heartbeat."""
        return round(self.settings.lease_s * 1000)
