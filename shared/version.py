"""Which version this is."""

from __future__ import annotations

from importlib import metadata


def installed() -> str:
    """The version of the distribution; empty in a source tree that is not installed."""
    try:
        return metadata.version("poc-worker")
    except metadata.PackageNotFoundError:
        return ""
