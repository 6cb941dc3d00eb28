"""An HTTP transport that connects only to addresses that callbacks may go to.

A name is resolved once, each address that it gives is looked at, and the connection is made to
that very address. So a name that changes between the look and the use (DNS rebinding) changes
nothing, and neither does the form that an address is written in.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpcore
import httpx

from shared.receivers import Receivers

#: Seconds until the next address of a name is tried.
NEXT_ADDRESS_S = 2.0
#: Names that are looked up at a time.
RESOLVERS = 32

_SocketOption = (
    tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]
)


class NotAllowed(Exception):
    """A host has no address that callbacks may go to."""


def guarded_transport(
    receivers: Receivers, keep_alive: int, context: ssl.SSLContext
) -> httpx.AsyncHTTPTransport:
    """A transport that reaches `receivers` only, and keeps up to `keep_alive` connections.

    `context` is what TLS with them rests on.
    """
    transport = httpx.AsyncHTTPTransport(verify=context, trust_env=False)
    # httpx has no public way to its connections; the tests would see it if this one ended.
    transport._pool = httpcore.AsyncConnectionPool(  # noqa: SLF001
        ssl_context=context,
        max_connections=None,
        max_keepalive_connections=keep_alive,
        keepalive_expiry=5.0,
        network_backend=_GuardedBackend(receivers),
    )
    return transport


class _GuardedBackend(httpcore.AsyncNetworkBackend):
    """Opens connections; TLS, with the name that was asked for, comes on top."""

    def __init__(self, receivers: Receivers) -> None:
        self._receivers = receivers
        self._inner = httpcore.AnyIOBackend()
        # Of its own: names whose servers hang must not keep the loop's other threads.
        self._resolver = ThreadPoolExecutor(RESOLVERS, "resolver")

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[_SocketOption] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to an allowed address of `host`. Raises `NotAllowed` if there is none."""
        addresses = await self._addresses(host, port)
        for address in addresses[:-1]:
            try:
                return await self._inner.connect_tcp(
                    address, port, NEXT_ADDRESS_S, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                pass
        return await self._inner.connect_tcp(
            addresses[-1], port, timeout, local_address, socket_options
        )

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    async def _addresses(self, host: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(
                self._resolver, partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
            )
        except socket.gaierror as error:
            raise httpcore.ConnectError(f"{host}: {error.strerror}") from error
        allowed, refusals = [], []
        for address in dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found):
            why = self._receivers.refusal_of_address(host, ipaddress.ip_address(address))
            if why:
                refusals.append(why)
            else:
                allowed.append(address)
        if not allowed:
            raise NotAllowed(refusals[0] if refusals else f"{host} has no address")
        return allowed
