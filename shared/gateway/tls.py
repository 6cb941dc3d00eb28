"""https, and who a client's certificate says that it is."""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from shared import certificates
from shared.settings import Settings

#: Where the app finds the name of a client's certificate, in the `state` of a request.
CERTIFICATE = "certificate"
#: Seconds that a client has to show who it is.
HANDSHAKE_S = 10.0

log = logging.getLogger(__name__)


def context_of(settings: Settings) -> ssl.SSLContext | None:
    """What the settings say about TLS; None without it. Raises `ConfigError` for wrong files."""
    if not settings.gateway_tls_cert:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificates.show_own(context, settings, "gateway")
    if certificates.trust(context, settings, "gateway_tls_client_ca"):
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def protocol_over(context: ssl.SSLContext) -> type[H11Protocol]:
    """What uvicorn speaks with a client: TLS, and HTTP within it.

    uvicorn's own TLS says nothing of whom it turned away, and hands no certificate on.
    """

    class OverTls(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            transport.pause_reading()  # what comes next is for TLS
            self._early, self._lost = b"", False
            self._shaking = self.loop.create_task(self._shake_hands(transport))

        async def _shake_hands(self, plain: asyncio.Transport) -> None:
            try:
                secret = await self.loop.start_tls(
                    plain, self, context, server_side=True, ssl_handshake_timeout=HANDSHAKE_S
                )
            except (OSError, EOFError) as error:
                peer = (plain.get_extra_info("peername") or ("",))[0]
                why = getattr(error, "verify_message", "") or getattr(error, "reason", "")
                log.warning("TLS with %s failed: %s", peer, why or error or "it hung up")
                return
            if secret is None or self._lost:
                return
            if name := name_of(secret.get_extra_info("peercert")):
                self.app_state = {**self.app_state, CERTIFICATE: name}
            super().connection_made(secret)
            if self._early:
                super().data_received(self._early)

        # A client may send its request with the end of the handshake, or leave with it.

        def data_received(self, data: bytes) -> None:
            if self.transport is None:
                self._early += data
            else:
                super().data_received(data)

        def connection_lost(self, exc: Exception | None) -> None:
            self._lost = True
            if self.transport is not None:
                super().connection_lost(exc)

    return OverTls


def name_of(certificate: dict[str, Any] | None) -> str:
    """Whose it is: the common name, or the first of its other names; empty without one."""
    if not certificate:
        return ""
    subject = dict(pair for part in certificate.get("subject", ()) for pair in part)
    others = [name for _, name in certificate.get("subjectAltName", ())]
    return str(subject.get("commonName") or next(iter(others), "of no name"))
