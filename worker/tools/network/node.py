"""A node as the network's controller speaks to it."""

from __future__ import annotations

import asyncio
import json
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from pydantic import ValidationError

from shared.errors import ConfigError, PoCError
from shared.status import NodeStatus

#: What the published controller has: how long a node may take to begin, and to take a job.
INIT_S, REQUEST_S = 900.0, 20.0

_POW = "/api/v1/inference/pow"


@dataclass(frozen=True)
class Credentials:
    """What the controller shows to nodes, and whose certificates it trusts."""

    token: str = ""
    tls: ssl.SSLContext = field(default_factory=ssl.create_default_context)

    @property
    def headers(self) -> dict[str, str]:
        """Of each request."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    @classmethod
    def of(
        cls,
        token: str = "",
        ca: Path | None = None,
        cert: Path | None = None,
        key: Path | None = None,
    ) -> Credentials:
        """From files in PEM; `ca` is trusted instead of the public authorities.

        Raises `ConfigError` for one that can't be read.
        """
        if bool(cert) != bool(key):
            raise ConfigError("--cert and --key: give both, or neither")
        try:
            tls = ssl.create_default_context(cafile=ca)
            if cert and key:
                tls.load_cert_chain(cert, key)
        except OSError as error:  # an SSLError is one, too
            given = ", ".join(str(each) for each in (ca, cert, key) if each)
            raise ConfigError(
                f"{given}: no certificates and key that can be used ({error})"
            ) from None
        return cls(token, tls)


class Node:
    """One node. Each request as a whole has its time, however slowly its answer drips."""

    def __init__(self, url: str, credentials: Credentials | None = None) -> None:
        """`url` may hold a user and a password, which are not shown.

        Raises `ConfigError` for one that is no URL.
        """
        self._url, self._credentials = url, credentials or Credentials()
        try:
            parts = httpx.URL(url)
        except httpx.InvalidURL:
            parts = httpx.URL()
        # An @ behind the host is the end of a password that was cut.
        if parts.scheme not in ("http", "https") or not parts.host or "@" in parts.path:
            raise ConfigError(
                "a node's address must be http://host:port or https://host:port; in a user and "
                "password write / as %2F, ? as %3F, # as %23 and @ as %40"
            )
        self.url = str(parts.copy_with(userinfo=b"")).rstrip("/")

    def model(self) -> str:
        """What it has deployed. Raises `PoCError`."""
        try:
            return str(self._ask("GET", "/v1/models").json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            raise PoCError(f"{self.url}/v1/models names no model") from None

    def begin(self, body: dict[str, Any]) -> None:
        """Begin a round. Raises `PoCError`."""
        self._ask("POST", f"{_POW}/init/generate", body, INIT_S)

    def stop(self) -> None:
        """End the round. Raises `PoCError`."""
        self._ask("POST", f"{_POW}/stop", {})

    def generate(self, body: dict[str, Any]) -> None:
        """Hand a job over. Raises `PoCError`."""
        self._ask("POST", f"{_POW}/generate", body)

    def has_workers(self) -> bool:
        """Whether some are ready. Raises `PoCError` while its status API does not say."""
        return bool(self._status().workers)

    def computed(self, block_hash: str) -> int | None:
        """How many artifacts it has of a block; None from a node without our status API."""
        try:
            status = self._status()
        except PoCError:
            return None
        return status.total_valid if status.block_hash == block_hash else None

    def _status(self) -> NodeStatus:
        try:
            return NodeStatus.model_validate_json(
                self._ask("GET", "/node/api/v1/pow/status").content
            )
        except ValidationError:
            raise PoCError(f"{self.url}/node is no status API of ours") from None

    def _ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, seconds: float = REQUEST_S
    ) -> httpx.Response:
        # Without a Content-Type, as the controller does it.
        content = None if body is None else json.dumps(body).encode()

        async def ask() -> httpx.Response:
            # httpx bounds each wait for some bytes, and not the whole.
            async with (
                asyncio.timeout(seconds),
                httpx.AsyncClient(
                    base_url=self._url,
                    headers=self._credentials.headers,
                    verify=self._credentials.tls,
                    trust_env=False,
                    timeout=seconds,
                ) as http,
            ):
                return await http.request(method, path, content=content)

        try:
            reply = asyncio.run(ask())
        except TimeoutError:
            raise PoCError(f"{self.url}: no whole answer in {seconds:g} s") from None
        except httpx.HTTPError as error:
            raise PoCError(f"{self.url}: {error or type(error).__name__}") from error
        if reply.status_code >= 400:
            raise PoCError(f"{self.url}{path} answered {reply.status_code}: {reply.text[:300]}")
        return reply
