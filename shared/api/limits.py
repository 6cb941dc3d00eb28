"""What is refused before anything is looked at."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.serving import RETRY_AFTER_S, Rate

#: Bytes of a refused body that are read all the same, and seconds that it has to come.
DRAINED, DRAIN_S = 65_536, 1.0
#: Where a scope says by which method the client asked.
ASKED_BY = "poc.method"


class Limits:
    """Refuses bodies, which no route reads, and who asks too often, before anything is done.

    What goes on is a GET, also for HEAD, whose body the server leaves out; and its path has the
    prefix of POC_API_ROOT_PATH, as ASGI has it, whether or not the proxy took that away.
    """

    def __init__(self, app: ASGIApp, rate: int, prefix: str) -> None:
        self._app = app
        self._prefix = prefix
        self._rate = Rate(rate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        answer: JSONResponse | None = None
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            prefix, path = self._prefix, scope["path"]
            if prefix and f"{path}/".startswith(f"{prefix}/"):
                path = path[len(prefix) :] or "/"
            if b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0":
                text, close = "no route here takes a body", {"Connection": "close"}
                answer = JSONResponse({"detail": text}, 413, headers=close)
                await _drain(receive)
            # A supervisor must not take a busy process for a dead one.
            elif path != "/livez" and not self._rate.allows(scope):
                text, later = "too many requests", {"Retry-After": str(RETRY_AFTER_S)}
                answer = JSONResponse({"detail": text}, 429, headers=later)
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            scope = {
                **scope,
                ASKED_BY: scope["method"],
                "method": method,
                "root_path": prefix,
                "path": prefix + path,
            }
        await (answer or self._app)(scope, receive, send)


async def _drain(receive: Receive) -> None:
    """Take in a small body: a connection that is closed on unread bytes loses the answer, too."""
    left = DRAINED
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            while left > 0:
                message = await receive()
                if not message.get("more_body"):
                    return
                left -= len(message["body"])
