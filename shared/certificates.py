"""Certificates in PEM files that settings name, for whichever side of TLS."""

from __future__ import annotations

import ssl
from pathlib import Path

from shared.errors import ConfigError
from shared.settings import PREFIX, Settings


def show_own(context: ssl.SSLContext, settings: Settings, part: str) -> None:
    """Have `context` show the certificate of `part` (gateway, callback), if it has one.

    Raises `ConfigError` for files that can't be used.
    """
    chain, key = _file(settings, f"{part}_tls_cert"), _file(settings, f"{part}_tls_key")
    if chain is None:
        return
    try:
        context.load_cert_chain(chain, key)
    except (ssl.SSLError, OSError) as error:
        names = " and ".join(f"{PREFIX}{part.upper()}_TLS_{which}" for which in ("CERT", "KEY"))
        raise ConfigError(f"{names} can't be used together: {error}") from None


def trust(context: ssl.SSLContext, settings: Settings, name: str) -> bool:
    """Have `context` trust the authorities that the setting `name` has, if any; whether it has.

    Raises `ConfigError` for a file that can't be used.
    """
    authorities = _file(settings, name)
    if authorities is None:
        return False
    try:
        context.load_verify_locations(authorities)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"{PREFIX}{name.upper()}={authorities}: no certificates in PEM: {error}"
        ) from None
    return True


def _file(settings: Settings, name: str) -> str | None:
    path: str | None = getattr(settings, name)
    if path and not Path(path).is_file():
        raise ConfigError(f"{PREFIX}{name.upper()}={path}: there is no such file")
    return path
