"""Who may receive callbacks: what an operator allows, and what nobody may reach.

A controller chooses its `callback_url`, and a worker posts to it from inside the node's network.
So the addresses that answer every machine with its own secrets are closed to it, whatever form
they are written in: `refusal_of_address` is asked for the address that is connected to, after
names were resolved. Loopback and private networks are open, since a chain node mostly is there.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Never connected to, allowed or not: no receiver can be there, but a cloud's metadata service is.
CLOSED: dict[Network, str] = {
    ipaddress.ip_network(network): what
    for what, networks in {
        "a link-local address, where clouds give out credentials": ("169.254.0.0/16", "fe80::/10"),
        "a cloud's metadata service": (
            "fd00:ec2::/32",  # AWS: instances (::254), pods of EKS (::23)
            "fd20:ce::254",  # Google
            "fd00:c1::a9fe:a9fe",  # Oracle
            "fd00:42::42",  # Scaleway
            "100.100.100.200",  # Alibaba
            "168.63.129.16",  # Azure
            "192.0.0.192",  # Oracle
        ),
        # Linux takes 0.0.0.0 for this machine.
        "no address of a receiver": ("0.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4", "::", "ff00::/8"),
    }.items()
    for network in networks
}
_NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
_IPV4_COMPATIBLE = ipaddress.ip_network("::/96")

_NAME = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*")


@dataclass(frozen=True, slots=True)
class Receivers:
    """The hosts that callbacks may go to; without names and networks all that are not closed."""

    #: Host names in lower case; `*.example.org` stands for all below example.org.
    names: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def of(cls, text: str | None) -> Self:
        """Read `POC_CALLBACK_ALLOW`. Raises `ValueError` with the number of a bad entry.

        Without the entry itself: it may be a URL with a password.
        """
        names: set[str] = set()
        networks: list[Network] = []
        entries = (text or "").lower().split(",")
        for number, entry in enumerate((each.strip() for each in entries), start=1):
            try:
                networks.append(ipaddress.ip_network(entry))
            except ValueError:
                if re.fullmatch(r"[0-9a-f.:]*[.:/][0-9a-f.:/]*", entry):
                    raise ValueError(
                        f"entry {number} is no address or network; write 10.1.2.3 or 10.1.0.0/16"
                    ) from None
                if entry and not _NAME.fullmatch(entry):
                    raise ValueError(
                        f"entry {number} is no host; write names, *.names, addresses and networks, "
                        "without scheme and port"
                    ) from None
                if entry:
                    names.add(entry)
        return cls(frozenset(names), tuple(networks))

    def refusal_of_url(self, url: str) -> str | None:
        """Why nothing may be sent to `url`, as far as that is known before its name is resolved."""
        host = urlsplit(url).hostname or ""
        address = _literal(host)
        if address is not None:
            return self.refusal_of_address(host, address)
        if self.networks or self._allows_name(host):
            return None
        return f"{host} is not in POC_CALLBACK_ALLOW"

    def refusal_of_address(self, host: str, address: Address) -> str | None:
        """Why nothing may be sent to `address`, which `host` stands for."""
        shown = host if host == str(address) else f"{host} ({address})"
        for form in _forms(address):
            for network, what in CLOSED.items():
                if form in network:
                    return f"{shown} is {what}: callbacks don't go there"
        if self._allows_name(host) or any(
            form in network for form in _forms(address) for network in self.networks
        ):
            return None
        return f"{shown} is not in POC_CALLBACK_ALLOW"

    def _allows_name(self, host: str) -> bool:
        if not self.names and not self.networks:
            return True
        labels = host.lower().rstrip(".").split(".")
        parents = ("*." + ".".join(labels[i:]) for i in range(1, len(labels)))
        return ".".join(labels) in self.names or any(each in self.names for each in parents)


def _literal(host: str) -> Address | None:
    """The address that `host` is in itself, also in forms that C knows, such as 2852039166."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None


def _forms(address: Address) -> Iterator[Address]:
    """The address, and the IPv4 address that it leads to by mapping, NAT64 or a tunnel."""
    yield address
    if isinstance(address, ipaddress.IPv6Address):
        last = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        old_form = address in _IPV4_COMPATIBLE and int(address) > 1  # not :: and ::1
        if address.ipv4_mapped or old_form or any(address in network for network in _NAT64):
            yield last
        if address.sixtofour:
            yield address.sixtofour
        if address.teredo:
            yield address.teredo[1]
