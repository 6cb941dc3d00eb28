"""One attempt to deliver a callback, and what its outcome means.

Any 2xx is a delivery. 408, 425, 429, 5xx and trouble on the network are worth another attempt. So
is whatever says that the network is in another phase: that holds only for now. 409 to a repeat of
what the receiver may have taken is worth one, too: it is still at it, says the Idempotency-Key
draft of the IETF. Redirects and other 4xx are final.

Where a message goes is decided by the address that is connected to (`worker.callbacks.guard`), and
who sent it is shown by a signature (`shared.signature`).
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx

from shared import certificates, tracing
from shared.about import about
from shared.receivers import Receivers
from shared.settings import Settings
from shared.signature import sign
from worker.callbacks.guard import NotAllowed, guarded_transport

#: The most seconds that a receiver may ask to be left alone.
MAX_RETRY_AFTER_S = 300.0
#: Bytes of the longest answer that is read at all.
ANSWER_BYTES = 65_536
#: How receivers of the network say that a message comes before its phase or after it: 400
#: "block_height is not the active PoC stage", 503 "not in PoC generate phase", and the like.
_BORDER = re.compile(r"not (in|the active) PoC", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one attempt."""

    #: Empty when it was delivered.
    error: str = ""
    #: Another attempt may end better.
    retry: bool = False
    #: Seconds that the receiver asked to be left alone.
    retry_after_s: float = 0.0
    #: The receiver may have taken the message all the same, or may still be at it.
    in_doubt: bool = False
    #: It is this message's time that has not come, or is over: the receiver takes others.
    untimely: bool = False
    #: Why it was not delivered, in a word that counters can be named by.
    reason: str = "other"


def judge(
    status: int, retry_after: str | None = None, said: str = "", *, in_doubt: bool = False
) -> Answer:
    """What an HTTP status means for a message; `in_doubt` if an earlier attempt left it so.

    `said` is the text of the answer, as far as it was read.
    """
    if 200 <= status < 300:
        return Answer()
    error = f"it answered {status} {httpx.codes.get_reason_phrase(status)}".rstrip()
    if _BORDER.search(said):
        return Answer(f"{error}: its phase is another one", retry=True, untimely=True)
    not_looked_at = status in (425, 429)
    unknown = status == 408 or status >= 500  # a proxy's answer, or what broke behind it
    if not_looked_at or unknown or (status == 409 and in_doubt):
        return Answer(error, True, seconds_asked_for(retry_after), in_doubt or unknown)
    if 300 <= status < 400:
        error += "; redirects are not followed: set callback_url to where it leads"
    return Answer(error, reason=f"status_{status}")


def seconds_asked_for(retry_after: str | None) -> float:
    """The seconds that a Retry-After header means, within reason; 0 for none and for nonsense."""
    value = (retry_after or "").strip()
    # isdigit alone knows digits of other scripts, and a number may be longer than int() takes.
    if value.isascii() and value.isdigit():
        return min(float(value), MAX_RETRY_AFTER_S)
    try:
        until = parsedate_to_datetime(value)
        if until.tzinfo is None:  # "-0000": UTC, says RFC 5322
            until = until.replace(tzinfo=UTC)
        seconds = (until - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


def tls_for(settings: Settings) -> ssl.SSLContext:
    """Whom `settings` trust among receivers, and what they show them.

    Raises `ConfigError` for wrong files.
    """
    if settings.callback_tls_ca:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        certificates.trust(context, settings, "callback_tls_ca")
    else:
        context = httpx.create_ssl_context(trust_env=False)
    certificates.show_own(context, settings, "callback")
    return context


def client_for(settings: Settings, keep_alive: int, context: ssl.SSLContext) -> httpx.AsyncClient:
    """A client that goes only where `settings` allow, and nowhere but where it is told to.

    It keeps up to `keep_alive` connections for the next message. `context` is from `tls_for`.
    """
    return httpx.AsyncClient(
        timeout=None,  # noqa: S113 - `post` has a limit for the whole request
        transport=guarded_transport(Receivers.of(settings.callback_allow), keep_alive, context),
        follow_redirects=False,
        trust_env=False,  # no proxy, no .netrc: the config alone says where a callback goes
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
    )


async def post(
    client: httpx.AsyncClient,
    settings: Settings,
    url: str,
    key: str,
    body: str,
    *,
    in_doubt: bool = False,
) -> Answer:
    """Send a message once, signed if there is a secret. Never raises for what a receiver does.

    `in_doubt` says that the receiver may have it from an earlier attempt.
    """
    # Without its address, whose path may be secret: the status and the log say no more of it.
    with tracing.step("POST", "CLIENT", attributes={"http.request.method": "POST"}) as step:
        answer = await _send(client, settings, url, key, body, in_doubt=in_doubt)
        if answer.error:
            step.failed(answer.error)
        return answer


async def _send(
    client: httpx.AsyncClient,
    settings: Settings,
    url: str,
    key: str,
    body: str,
    *,
    in_doubt: bool,
) -> Answer:
    headers = {
        "Content-Type": "application/json",
        "Idempotency-Key": key,
        "Accept-Encoding": "identity",  # what an error says is read as it comes
    }
    if traceparent := about().traceparent:
        headers["traceparent"] = traceparent
    if settings.callback_secret:
        secret = settings.callback_secret.get_secret_value()
        headers |= sign(secret, key, int(time.time()), body)
    timeout_s = settings.callback_timeout_s
    answer = None
    try:
        # In all: a receiver that sends a byte now and then must not hold the request for ever.
        async with (
            asyncio.timeout(timeout_s),
            client.stream("POST", url, content=body, headers=headers) as response,
        ):
            retry_after = response.headers.get("Retry-After")
            answer = judge(response.status_code, retry_after, in_doubt=in_doubt)
            if _is_short(response) or response.is_error:
                # To its end, so that the connection can be used again.
                said = b""
                async for part in response.aiter_raw():
                    said += part
                    if len(said) > ANSWER_BYTES:
                        break
                text = said.decode(errors="replace")
                answer = judge(response.status_code, retry_after, text, in_doubt=in_doubt)
    except TimeoutError:
        silence = f"it gave no answer within {timeout_s:g} s"
        return answer or Answer(silence, retry=True, in_doubt=True)
    except _NEVER_SENT as error:
        why = f"the message can't be sent: {_sentence(error)}"
        return answer or Answer(why, reason="never_sent")
    # TLS 1.3 refuses a certificate after the handshake, and httpx lets that through as it comes.
    except (httpx.TransportError, ssl.SSLError) as error:
        reached = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
        return answer or Answer(_sentence(error), retry=True, in_doubt=in_doubt or reached)
    return answer


#: What is raised for a URL or a header that no attempt can send.
_NEVER_SENT = (
    httpx.InvalidURL,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
    NotAllowed,
    ValueError,  # a host name that is none
)


def _is_short(response: httpx.Response) -> bool:
    length = response.headers.get("Content-Length")
    return response.status_code == 204 or (length is not None and int(length) <= ANSWER_BYTES)


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
