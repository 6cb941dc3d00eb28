"""Which versions run here."""

from __future__ import annotations

from functools import cache
from importlib import metadata


@cache
def installed(distribution: str = "poc-worker") -> str:
    """Its version; empty where it is not installed, as ours may be in a source tree."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
