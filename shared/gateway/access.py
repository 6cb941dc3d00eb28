"""What is refused before anything is looked at: who asks, how often, and how much."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
from urllib.parse import quote

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.gateway import in_time
from shared.gateway.tls import CERTIFICATE
from shared.serving import RETRY_AFTER_S, Rate, Tokens, address_of
from shared.settings import Settings

#: Bytes of a body at most: twice what 100,000 claims need. And of all bodies at a time.
MAX_BODY, MAX_BODIES = 16 * 2**20, 64 * 2**20
#: Bytes of a body that is not left to the next collection: a refusal's traceback holds on to it.
LARGE = 2**20
_TOO_LONG = 413, f"a body may have {MAX_BODY} bytes"
#: Values of a body at most, told by a comma, a colon or a bracket: nobody is answered while they
#: are read, which would be seconds for millions. 100,000 claims have 600,000.
MAX_VALUES = 1_000_000
_TOO_MANY = 413, f"a body may have {MAX_VALUES} commas, colons and opening brackets"
#: Characters of a path that a line of the log has.
SHOWN = 200
#: Seconds that a body has to come.
BODY_S = 30.0
#: Health is for everybody: a supervisor must not take a busy process for a dead one. So is the
#: gate, which a proxy asks for whoever chats: it tells no more than a refusal of chat does.
_OPEN = frozenset({"/livez", "/readyz", "/health", "/api/v1/gate"})

#: What controllers put before each path when the network has named a version of its node software:
#: `/v3.0.13/api/v1/state`.
_VERSION = re.compile(r"^/v\d+\.\d[^/]*(?=/)")

log = logging.getLogger(__name__)


class Access:
    """Refuses who has no token, asks too often or sends too much.

    What goes on is a GET, also for HEAD, whose body the server leaves out, or has its whole body,
    which is JSON whatever its Content-Type says: the network's controller sends none.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._commands = Tokens(settings.gateway_tokens)
        self._reads = Tokens(settings.gateway_read_tokens)
        self._rate = Rate(settings.gateway_rate)
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = {**scope, "path": _VERSION.sub("", scope["path"])}
        if refusal := self._refusal(scope):
            await self._refuse(scope, receive, send, *refusal)
            return
        if scope["method"] in ("GET", "HEAD"):
            in_time.begin()
            await self._app({**scope, "method": "GET"}, receive, send)
            return
        if _length(scope) > MAX_BODY:  # it need not be sent, then
            await self._refuse(scope, receive, send, *_TOO_LONG)
            return
        body = bytearray()
        try:
            if refusal := await self._read(receive, body):
                await self._refuse(scope, receive, send, *refusal)
            else:
                in_time.begin()
                await self._app(_as_json(scope), _of(bytes(body), receive), send)
        finally:
            self._held -= len(body)
            if len(body) > LARGE:
                gc.collect()

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        if scope["path"] in _OPEN:
            return None
        if not self._rate.allows(scope):
            return 429, "too many requests"
        if not (self._commands or self._reads):
            return None
        headers = dict(scope["headers"])
        kind, _, sent = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        token = sent.strip() if kind.lower() == "bearer" else ""
        if self._commands.have(token):
            return None
        if not self._reads.have(token):
            return 401, (
                "this needs the header `Authorization: Bearer <token>` with one of "
                "POC_GATEWAY_TOKENS, or for reading one of POC_GATEWAY_READ_TOKENS"
            )
        if scope["method"] not in ("GET", "HEAD"):
            return 403, "this token may only read: a command needs one of POC_GATEWAY_TOKENS"
        return None

    async def _read(self, receive: Receive, body: bytearray) -> tuple[int, str] | None:
        """Read the whole body into `body`; why not, if it is too much or too slow."""
        try:
            async with asyncio.timeout(BODY_S):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return 400, "its sender hung up before its end"
                    part = message.get("body", b"")
                    body += part
                    self._held += len(part)
                    if len(body) > MAX_BODY:
                        return _TOO_LONG
                    if self._held > MAX_BODIES:
                        return 429, "too many large bodies at a time"
                    more = message.get("more_body", False)
                if sum(map(body.count, (b",", b":", b"[", b"{"))) > MAX_VALUES:
                    return _TOO_MANY
        except TimeoutError:
            return 408, f"no whole body in {BODY_S:g} s"
        return None

    async def _refuse(
        self, scope: Scope, receive: Receive, send: Send, status: int, why: str
    ) -> None:
        known = scope.get("state", {}).get(CERTIFICATE)
        who = address_of(scope) + (f" ({known})" if known else "")
        path = quote(scope["path"])[:SHOWN]  # nobody makes lines of his own
        log.warning("%s %s of %s: %d, %s", scope["method"], path, who, status, why)
        headers = {"Connection": "close"}
        if status == 429:
            headers["Retry-After"] = str(RETRY_AFTER_S)
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        await JSONResponse({"detail": why}, status, headers)(scope, receive, send)


def _length(scope: Scope) -> int:
    """What is said of it; nothing of one that comes in chunks. The server has checked that."""
    return int(dict(scope["headers"]).get(b"content-length", b"0"))


def _as_json(scope: Scope) -> Scope:
    headers = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
    return {**scope, "headers": [*headers, (b"content-type", b"application/json")]}


def _of(body: bytes, receive: Receive) -> Receive:
    """What gives the body, and then whether the client is gone."""
    told = False

    async def given() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return given
