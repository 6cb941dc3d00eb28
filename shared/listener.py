"""The socket that a server listens on, taken first: what is wrong is then one sentence."""

from __future__ import annotations

import errno
import socket


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on `host`, a name or an IPv4 or IPv6 address. Raises `OSError`."""
    try:
        host.encode("idna")  # as the socket does, whose error about it would be none of its own
    except UnicodeError:
        raise OSError(errno.EINVAL, "it is no name of a host") from None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)
