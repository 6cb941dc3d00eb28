"""`POC_REDIS_URL`: one URL for the broker, the results and the store.

    redis://[user:password@]host[:port][/database]
    sentinel://[user:password@]host[:port],host[:port],.../name[/database]

The second asks Sentinels for the primary that they call `name`. User and password are those of
Redis. What Sentinels ask for is behind the `?`: `sentinel_user=...&sentinel_password=...`.
With TLS it is `rediss://` or `sentinels://`, with `ssl_ca_certs=...` and the like behind the `?`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

#: Seconds that a Sentinel has for its answer: another one may know.
SENTINEL_TIMEOUT_S = 2

_PORTS = {"redis": 6379, "rediss": 6379, "sentinel": 26379, "sentinels": 26379}
_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[^:/?,\[\]\s]+)"
#: What lies behind user and password.
_PLACE = re.compile(
    rf"(?P<hosts>{_HOST}(?::\d{{1,5}})?(?:,{_HOST}(?::\d{{1,5}})?)*)"
    r"(?:/(?P<path>[^?\s]*))?(?:\?(?P<query>.*))?"
)
_TLS = ("ssl_ca_certs", "ssl_cert_reqs", "ssl_certfile", "ssl_keyfile")
_SENTINEL = ("sentinel_password", "sentinel_user")


@dataclass(frozen=True)
class RedisUrl:
    """A URL that all three can use, in its parts."""

    scheme: str
    #: `user:password`, as it stands in the URL.
    login: str = field(repr=False)
    #: As they stand in the URL, with or without a port.
    hosts: tuple[str, ...]
    #: What the Sentinels call the primary; empty without Sentinels.
    name: str
    database: int
    options: Mapping[str, str] = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> Self:
        """Raises `ValueError` that says what its users would each trip over in their own way."""
        scheme, _, rest = url.partition("://")
        if scheme not in _PORTS:
            raise ValueError("must begin with redis://, rediss://, sentinel:// or sentinels://")
        login, at, behind = rest.rpartition("@")
        if set(login) & set("/?#[] "):
            raise ValueError(
                "in user and password write / as %2F, ? as %3F, # as %23, [ as %5B, ] as %5D and a "
                "blank as %20; behind a ? write @ as %40"
            )
        if at and ":" not in login:
            # Everybody would take it for a name, and show it.
            raise ValueError("before the @ must be user:password, or :password without a user")
        place = _PLACE.fullmatch(behind)
        sentinel = scheme.startswith("sentinel")
        shape = (
            f"{scheme}://host:port,host:port/name-of-the-primary/number-of-a-database"
            if sentinel
            else f"{scheme}://host:port/number-of-a-database"
        )
        if place is None:
            raise ValueError(f"must be {shape}")
        hosts = tuple(place["hosts"].split(","))
        path = (place["path"] or "").split("/")
        name = path.pop(0) if sentinel else ""
        database = "/".join(path)
        if (
            (len(hosts) > 1 and not sentinel)
            or (sentinel and not re.fullmatch(r"[\w.-]+", name))
            or not re.fullmatch(r"\d{0,9}", database)
        ):
            raise ValueError(f"must be {shape}")
        for each in hosts:
            host, port = _split(each, _PORTS[scheme])
            if not 1 <= port <= 65535:
                raise ValueError(f"must be {shape}")
            try:
                host.encode("idna")  # as whoever connects to it does
            except UnicodeError:
                raise ValueError(
                    "between the dots of its host must be 1 to 63 characters each"
                ) from None
        options = _options(scheme, place["query"] or "")
        return cls(scheme, login, hosts, name, int(database or 0), options)

    @property
    def tls(self) -> dict[str, str]:
        """What a connection needs for TLS, by the names that redis-py has; empty without."""
        return {name: unquote(self.options[name]) for name in _TLS if name in self.options}

    @property
    def sentinels(self) -> list[tuple[str, int]]:
        """Hosts and ports; empty without Sentinels."""
        return [_split(each, _PORTS[self.scheme]) for each in self.hosts] if self.name else []

    @property
    def sentinel_options(self) -> dict[str, Any]:
        """How to connect to a Sentinel, by the names that redis-py has."""
        named = {"sentinel_user": "username", "sentinel_password": "password"}
        login = {
            to: unquote(self.options[name]) for name, to in named.items() if name in self.options
        }
        return {
            "socket_timeout": SENTINEL_TIMEOUT_S,
            "socket_connect_timeout": SENTINEL_TIMEOUT_S,
            # By itself redis-py asks a silent one again and again, for half a minute.
            "retry": None,
            **login,
            **({"ssl": True} | self.tls if self.tls else {}),
        }

    @property
    def credentials(self) -> dict[str, str]:
        """User and password of Redis, by the names that redis-py has, as they are."""
        user, _, password = self.login.partition(":")
        named = {"username": unquote(user), "password": unquote(password)}
        return {name: value for name, value in named.items() if value}

    @property
    def celery(self) -> str:
        """As Celery's broker and results take it."""
        if not self.name:
            return str(self)
        before = f"sentinel://{_at(self.login)}"
        return ";".join(
            f"{before}{f'[{host}]' if ':' in host else host}:{port}/{self.database}"
            for host, port in self.sentinels
        )

    @property
    def celery_options(self) -> dict[str, Any]:
        """What Celery needs besides for its transport, and for its results; empty for one Redis."""
        if not self.name:
            return {}
        return {"master_name": self.name, "sentinel_kwargs": self.sentinel_options}

    @property
    def safe(self) -> str:
        """With its passwords hidden, for logs and screens."""
        login = f"{self.login.partition(':')[0]}:***" if self.login else ""
        hidden = {name: "***" for name in self.options if name == "sentinel_password"}
        return self._written(login, {**self.options, **hidden})

    def __str__(self) -> str:
        return self._written(self.login, self.options)

    def _written(self, login: str, options: Mapping[str, str]) -> str:
        path = "".join(f"/{part}" for part in (self.name, str(self.database)) if part)
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return (
            f"{self.scheme}://{_at(login)}{','.join(self.hosts)}{path}"
            f"{f'?{query}' if query else ''}"
        )


def _at(login: str) -> str:
    return f"{login}@" if login else ""


def _split(host: str, usual: int) -> tuple[str, int]:
    name, port = re.fullmatch(rf"({_HOST})(?::(\d+))?", host).groups()  # type: ignore[union-attr]
    return name.strip("[]"), int(port or usual)


def _options(scheme: str, query: str) -> dict[str, str]:
    options = dict(pair.partition("=")[::2] for pair in query.split("&") if pair)
    sentinel, tls = scheme.startswith("sentinel"), scheme in ("rediss", "sentinels")
    allowed = (*_TLS, *_SENTINEL) if sentinel else _TLS
    if options.keys() - set(allowed):
        raise ValueError(f"behind the ? there may be {', '.join(sorted(allowed))} only")
    if not tls and options.keys() & set(_TLS):
        raise ValueError(f"options are for {scheme}s://")
    if options.get("ssl_cert_reqs", "required") not in ("required", "optional", "none"):
        raise ValueError("ssl_cert_reqs must be required, optional or none")
    for name in sorted(options.keys() & set(_TLS) - {"ssl_cert_reqs"}):
        if not Path(unquote(options[name])).is_file():
            raise ValueError(f"{name} must name a file: there is no such file")
    if tls and "ssl_cert_reqs" not in options:
        # One of the three would not verify, and another would refuse to guess.
        options["ssl_cert_reqs"] = "required"
    return options
