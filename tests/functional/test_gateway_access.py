"""Who gets at `poc gateway`, as a process of its own that has certificates and tokens."""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trustme

from calls import POW
from serving_api import serving_gateway
from shared.errors import PoCError
from support import ROOT, wait_until
from worker.tools.network.node import Credentials, Node

pytestmark = pytest.mark.functional

COMMANDS, READS = "commands-" + 16 * "c", "reads-" + 16 * "r"


@dataclass(frozen=True)
class Certificates:
    """The gateway's own, the authority of its clients, and two of these; one is a stranger."""

    directory: Path
    gateway: trustme.CA
    clients: trustme.CA
    client: trustme.LeafCert
    stranger: trustme.LeafCert

    def settings(self, *, mutual: bool) -> dict[str, str]:
        """What the gateway is told."""
        own = self.gateway.issue_cert("127.0.0.1")
        own.cert_chain_pems[0].write_to_path(str(self.directory / "gateway.pem"))
        own.private_key_pem.write_to_path(str(self.directory / "gateway.key"))
        self.clients.cert_pem.write_to_path(str(self.directory / "clients.pem"))
        files = {"CERT": "gateway.pem", "KEY": "gateway.key"}
        if mutual:
            files["CLIENT_CA"] = "clients.pem"
        return {f"POC_GATEWAY_TLS_{k}": str(self.directory / v) for k, v in files.items()}

    @contextmanager
    def caller(
        self, url: str, own: trustme.LeafCert | None = None, token: str = ""
    ) -> Iterator[httpx.Client]:
        """A client that trusts the gateway, and shows `own` and `token`."""
        context = ssl.create_default_context()
        self.gateway.configure_trust(context)
        if own:
            own.configure_cert(context)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with httpx.Client(base_url=url, verify=context, headers=headers, timeout=20) as client:
            yield client


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    clients = trustme.CA()
    return Certificates(
        directory=tmp_path,
        gateway=trustme.CA(),
        clients=clients,
        client=clients.issue_cert("controller.example", common_name="controller"),
        stranger=trustme.CA().issue_cert("controller.example", common_name="controller"),
    )


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "gateway.log"


def test_https(certificates: Certificates, redis_url: str, log: Path) -> None:
    """Whoever trusts its certificate is served, and HTTP without TLS is not."""
    with serving_gateway(redis_url, log, **certificates.settings(mutual=False)) as (_, url):
        assert url.startswith("https://")
        with certificates.caller(url) as client:
            assert client.get("/livez").json() == {"status": "alive"}
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{url}/livez")
        with pytest.raises(httpx.HTTPError):
            httpx.get(url.replace("https", "http") + "/livez")
        wait_until(lambda: "TLS with 127.0.0.1 failed" in log.read_text())


def test_a_request_may_come_with_the_end_of_the_handshake(
    certificates: Certificates, redis_url: str, log: Path
) -> None:
    """Given both in one packet, as TLS 1.3 allows, then the request is answered."""
    context = ssl.create_default_context()
    certificates.gateway.configure_trust(context)
    from_peer, to_peer = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(from_peer, to_peer, server_hostname="127.0.0.1")
    with (
        serving_gateway(redis_url, log, **certificates.settings(mutual=False)) as (_, url),
        socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0), 10) as peer,
    ):
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                peer.sendall(to_peer.read())
                from_peer.write(peer.recv(65_536))
        tls.write(b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\n")
        peer.sendall(to_peer.read())
        assert b"200 OK" in wait_until(lambda: answer(tls, from_peer, peer))


def answer(tls: ssl.SSLObject, from_peer: ssl.MemoryBIO, peer: socket.socket) -> bytes:
    """What is read next, if anything."""
    try:
        return tls.read(65_536)
    except ssl.SSLWantReadError:
        from_peer.write(peer.recv(65_536))
        return b""


def test_who_has_a_certificate_is_served(
    certificates: Certificates, redis_url: str, log: Path
) -> None:
    with (
        serving_gateway(redis_url, log, **certificates.settings(mutual=True)) as (_, url),
        certificates.caller(url, certificates.client) as client,
    ):
        assert client.get(f"{POW}/status").json()["status"] == "NO_BACKENDS"
        assert client.post(f"{POW}/stop", json={}).status_code == 200
    assert "failed" not in log.read_text()


@pytest.mark.parametrize(
    ("which", "why"),
    [
        ("none", "PEER_DID_NOT_RETURN_A_CERTIFICATE"),
        ("stranger", "unable to get local issuer certificate"),
    ],
)
def test_who_has_none_is_refused(
    certificates: Certificates, redis_url: str, log: Path, which: str, why: str
) -> None:
    """Also who has one of another authority, whatever name is in it; the log says who and why."""
    own = certificates.stranger if which == "stranger" else None
    with serving_gateway(redis_url, log, **certificates.settings(mutual=True)) as (_, url):
        with certificates.caller(url, own) as client, pytest.raises(httpx.HTTPError):
            client.get("/livez")
        wait_until(lambda: f"TLS with 127.0.0.1 failed: {why}" in log.read_text())


def test_a_certificate_replaces_no_token(
    certificates: Certificates, redis_url: str, log: Path
) -> None:
    """Given both, then both are needed, and a refusal is logged with the certificate's name."""
    variables = certificates.settings(mutual=True) | {
        "POC_GATEWAY_TOKENS": COMMANDS,
        "POC_GATEWAY_READ_TOKENS": READS,
    }
    with serving_gateway(redis_url, log, **variables) as (_, url):
        for token, read, command in (("wrong", 401, 401), (READS, 200, 403), (COMMANDS, 200, 200)):
            with certificates.caller(url, certificates.client, token) as client:
                assert client.get(f"{POW}/status").status_code == read
                assert client.post(f"{POW}/stop", json={}).status_code == command
    said = log.read_text()
    assert f"GET {POW}/status of 127.0.0.1 (controller): 401" in said
    assert f"POST {POW}/stop of 127.0.0.1 (controller): 403" in said
    assert "wrong" not in said
    assert READS not in said


def test_a_simulated_controller_can_show_both(
    certificates: Certificates, redis_url: str, log: Path, tmp_path: Path
) -> None:
    """As files; without a token it is refused, and with both it is told that no worker is there."""
    variables = certificates.settings(mutual=True) | {"POC_GATEWAY_TOKENS": COMMANDS}
    ca, cert, key = (tmp_path / name for name in ("ca.pem", "own.pem", "own.key"))
    certificates.gateway.cert_pem.write_to_path(str(ca))
    certificates.client.cert_chain_pems[0].write_to_path(str(cert))
    certificates.client.private_key_pem.write_to_path(str(key))
    with serving_gateway(redis_url, log, **variables) as (_, url):
        for token, told in (("", "answered 401"), (COMMANDS, "no worker is ready")):
            with pytest.raises(PoCError, match=told):
                Node(url, Credentials.of(token, ca, cert, key)).model()


def test_a_proxy_on_this_machine_says_for_whom_it_asks(redis_url: str, log: Path) -> None:
    with serving_gateway(redis_url, log, POC_GATEWAY_TOKENS=COMMANDS) as (_, url):
        refused = httpx.get(f"{url}{POW}/status", headers={"X-Forwarded-For": "192.0.2.7"})
        assert refused.status_code == 401
    assert f"GET {POW}/status of 192.0.2.7: 401" in log.read_text()


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_the_commands_of_the_docs(redis_url: str, tmp_path: Path, log: Path) -> None:
    """Two certificates that are nobody's but their own, and pin each other."""
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    section = page.partition("## The gateway")[2].partition("\n## ")[0]
    made, used = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    made, _, begun = made.partition("POC_")
    subprocess.run(["sh", "-euc", made], cwd=tmp_path, check=True, capture_output=True)
    variables = dict(re.findall(r"(POC_\w+)=(\S+)", f"POC_{begun}"))
    files = {name: str(tmp_path / file) for name, file in variables.items()}
    with serving_gateway(redis_url, log, **files) as (_, url):
        command = used.replace("https://127.0.0.1:8100", url)
        shown = subprocess.run(
            ["sh", "-euc", command], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        without = command.replace("--cert controller.pem --key controller.key", "")
        refused = subprocess.run(
            ["sh", "-euc", without], cwd=tmp_path, check=False, capture_output=True, text=True
        )
    assert json.loads(shown.stdout)["state"] == "STOPPED"
    assert refused.returncode != 0
    assert not refused.stdout
