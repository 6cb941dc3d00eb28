"""Whom callbacks may go to: what is closed to everybody, and what an operator allows."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from shared.receivers import Receivers

ANYBODY = Receivers.of(None)


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "169.254.0.1",
        "[fe80::1]",
        "[fe80::1%25eth0]",
        "[fd00:ec2::254]",
        "[fd00:ec2::23]",
        "169.254.170.23",
        "[fd00:c1::a9fe:a9fe]",
        "192.0.0.192",
        "[fd20:ce::254]",
        "100.100.100.200",
        "168.63.129.16",
        "0.0.0.0",
        "0",
        "[::]",
        "224.0.0.1",
        "255.255.255.255",
        "[ff02::1]",
        # The same written otherwise.
        "2852039166",
        "0xa9fea9fe",
        "0xa9.0xfe.0xa9.0xfe",
        "0251.0376.0251.0376",
        "169.254.43518",
        "[::ffff:169.254.169.254]",
        "[::ffff:a9fe:a9fe]",
        "[::169.254.169.254]",
        "[64:ff9b::169.254.169.254]",
        "[64:ff9b:1::a9fe:a9fe]",
        "[2002:a9fe:a9fe::1]",
        "[2001:0:102:304:0:0:5601:5601]",  # Teredo, with its bits turned around
    ],
)
def test_what_is_closed_is_refused_in_any_form(host: str) -> None:
    """Also if it is allowed by name and by network: it can't be opened."""
    network = "0.0.0.0/0,::/0"
    for receivers in (ANYBODY, Receivers.of(network)):
        assert receivers.refusal_of_url(f"http://{host}:80/x")


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "10.0.0.1", "192.168.1.1", "[fd00::1]", "example.org"],
)
def test_all_others_are_open_by_default(host: str) -> None:
    """A chain node mostly is on this machine or in a private network."""
    assert ANYBODY.refusal_of_url(f"https://{host}/poc") is None


def test_a_name_is_judged_by_what_it_resolves_to() -> None:
    """Before that nothing is known about it."""
    url = "http://metadata.google.internal/"
    assert ANYBODY.refusal_of_url(url) is None
    why = ANYBODY.refusal_of_address("metadata.google.internal", ip_address("169.254.169.254"))
    assert why is not None
    assert why.startswith("metadata.google.internal (169.254.169.254) is a link-local address")


def test_a_list_of_names_lets_no_other_name_in() -> None:
    """Case and a dot at the end make no other name; `*.` is for what is below."""
    listed = Receivers.of("node.example.org, *.Chain.example")
    for host in ("node.example.org", "NODE.example.org.", "a.chain.example", "a.b.chain.example"):
        assert listed.refusal_of_url(f"http://{host}:9/") is None
        assert listed.refusal_of_address(host, ip_address("10.0.0.1")) is None
    for host in (
        "example.org",
        "x.node.example.org",
        "chain.example",
        "xchain.example",
        "10.0.0.1",
    ):
        assert listed.refusal_of_url(f"http://{host}/") == f"{host} is not in POC_CALLBACK_ALLOW"


def test_a_network_lets_in_what_a_name_resolves_to() -> None:
    """So with a network in the list a name waits until it is resolved."""
    listed = Receivers.of("10.1.0.0/16,192.168.0.7,fd00:1::/32")
    assert listed.refusal_of_url("http://10.1.2.3/") is None
    assert listed.refusal_of_url("http://192.168.0.7/") is None
    assert listed.refusal_of_url("http://[fd00:1::9]/") is None
    assert listed.refusal_of_url("http://[::ffff:10.1.2.3]/") is None
    assert listed.refusal_of_url("http://10.2.0.1/")
    assert listed.refusal_of_url("http://node.example/") is None
    assert listed.refusal_of_address("node.example", ip_address("10.1.0.1")) is None
    assert listed.refusal_of_address("node.example", ip_address("10.2.0.1"))


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("http://node", "without scheme and port"),
        ("node:80", "without scheme and port"),
        ("a b", "without scheme and port"),
        ("*", "without scheme and port"),
        ("a.*.b", "without scheme and port"),
        ("10.0.0.1/8", "no address or network"),
        ("10.0.0", "no address or network"),
        ("1.2.3.4.5", "no address or network"),
    ],
)
def test_an_entry_that_would_never_match_is_refused(entry: str, says: str) -> None:
    """An operator who believes that it allows something is told so."""
    with pytest.raises(ValueError, match=says):
        Receivers.of(f"good.example,{entry}")
