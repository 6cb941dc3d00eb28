"""A client of what listens on this machine, as quick to make as it can be."""

from __future__ import annotations

from typing import Any

import httpx


def caller(url: str, **options: Any) -> httpx.Client:
    """It loads no CAs, which takes 25 ms, and knows no proxy; `options` are those of httpx."""
    return httpx.Client(base_url=url, verify=False, trust_env=False, **{"timeout": 30} | options)
