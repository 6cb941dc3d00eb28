"""rediss://: broker, results and store over TLS, and what is said when it can't be trusted.

The server is Valkey behind a proxy that speaks TLS, since its binary here has none built in; and
a Redis with TLS of its own where there is one (Debian's redis-server).
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from shared.client import PoCClient
from shared.errors import StoreUnavailable
from shared.settings import Settings, load_settings
from shared.store import Store
from support import ROOT, clean_environment, free_port, running, wait_until
from worker.tools.embedded import server_binary

pytestmark = pytest.mark.functional

CONFIG = {"block_hash": "b", "block_height": 1, "public_key": "k", "r_target": 1.9, "seq_len": 8}


class Certificates:
    """A CA of the test's own, a server's certificate for this machine, and a client's."""

    def __init__(self, directory: Path) -> None:
        self.authority = trustme.CA()
        self.ca = directory / "ca.pem"
        self.authority.cert_pem.write_to_path(str(self.ca))
        self.server, self.server_key = self._issue("127.0.0.1", at=directory / "srv")
        self.client, self.client_key = self._issue("worker@poc", at=directory / "client")
        self.other_ca = directory / "other-ca.pem"
        trustme.CA().cert_pem.write_to_path(str(self.other_ca))

    def _issue(self, *names: str, at: Path) -> tuple[Path, Path]:
        made = self.authority.issue_cert(*names)
        chain, key = at.with_suffix(".pem"), at.with_suffix(".key")
        for n, blob in enumerate(made.cert_chain_pems):
            blob.write_to_path(str(chain), append=n > 0)
        made.private_key_pem.write_to_path(str(key))
        return chain, key


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@contextlib.contextmanager
def terminating(
    certificates: Certificates, behind: str, directory: Path, *ports: str
) -> Iterator[int]:
    """A port that takes TLS, with a client's certificate, and passes on what is in it.

    But where the first of `ports` is told, it tells the second.
    """
    files = (certificates.server, certificates.server_key, certificates.ca)
    command = [sys.executable, ROOT / "tests" / "tls_proxy.py", *files, behind, *ports]
    with running(command, r"^port (\d+)\n", directory / f"proxy-{behind}.log") as (_, found):
        yield int(found[1])


@contextlib.contextmanager
def redis_with_tls(certificates: Certificates, directory: Path) -> Iterator[int]:
    """Debian's redis-server, which listens for TLS alone."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no redis-server is installed, whose own TLS could be tested")
    port = free_port()
    options = {
        "bind": "127.0.0.1",
        "port": "0",
        "tls-port": str(port),
        "tls-cert-file": str(certificates.server),
        "tls-key-file": str(certificates.server_key),
        "tls-ca-cert-file": str(certificates.ca),
        "save": "",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    with running([binary, *words], "Ready to accept", directory / "redis.log", cwd=directory):
        yield port


@pytest.fixture(params=["a proxy", "redis-server"])
def tls_port(
    request: pytest.FixtureRequest, certificates: Certificates, redis_url: str, tmp_path: Path
) -> Iterator[int]:
    """Where a Redis speaks TLS and asks for a client's certificate."""
    if request.param == "redis-server":
        with redis_with_tls(certificates, tmp_path) as port:
            yield port
    else:
        behind = redis_url.rpartition(":")[2].partition("/")[0]
        with terminating(certificates, behind, tmp_path) as port:
            yield port


def settings_for(
    port: int, certificates: Certificates, host: str = "127.0.0.1", **options: Path | None
) -> Settings:
    """Settings of a worker that knows the CA and has a certificate, unless `options` say else."""
    given: dict[str, Path | None] = {
        "ssl_ca_certs": certificates.ca,
        "ssl_certfile": certificates.client,
        "ssl_keyfile": certificates.client_key,
    }
    query = "&".join(f"{name}={path}" for name, path in (given | options).items() if path)
    url = f"rediss://{host}:{port}/0?{query}"
    return load_settings({}, redis_url=url, namespace="test", lease_s="2", heartbeat_s="0.2")


@pytest.fixture(params=["itself", "named by a Sentinel"])
def settings(
    request: pytest.FixtureRequest,
    tls_port: int,
    certificates: Certificates,
    redis_url: str,
    tmp_path: Path,
) -> Iterator[Settings]:
    """Of a worker that knows the Redis, or a Sentinel that speaks TLS as well."""
    direct = settings_for(tls_port, certificates)
    if request.param == "itself":
        yield direct
        return
    plain, port = redis_url.rpartition(":")[2].partition("/")[0], str(free_port())
    config = tmp_path / "sentinel.conf"
    config.write_text(f"port {port}\nsentinel monitor node 127.0.0.1 {plain} 1\n")
    command = [server_binary(), config, "--sentinel"]
    with (
        running(command, "monitor master", tmp_path / "sentinel.log", cwd=tmp_path),
        terminating(certificates, port, tmp_path, plain, str(tls_port)) as sentinel,
    ):
        query = direct.redis_url.partition("?")[2]
        url = f"sentinels://127.0.0.1:{sentinel}/node/0?{query}"
        yield direct.model_copy(update={"redis_url": url})


def test_a_round_over_tls(
    settings: Settings, client: PoCClient, store: Store, start_worker: Any
) -> None:
    """Given certificates on both sides, then broker, results, store and pub/sub all work."""
    worker = start_worker("w0", seconds=0.02)
    ticket = client.generate(CONFIG)
    wait_until(lambda: store.status().total_valid, description="a valid nonce")
    stopped = client.stop()
    assert ticket.wait(20).total_checked == stopped.total_checked > 0
    worker.process.terminate()
    assert worker.process.wait(20) == 0
    assert "Traceback" not in worker.log


@pytest.fixture(params=["a CA that is another", "no CA", "a certificate for another host"])
def broken(request: pytest.FixtureRequest, tls_port: int, certificates: Certificates) -> Settings:
    """Settings by which the server can't be trusted."""
    if request.param == "a CA that is another":
        return settings_for(tls_port, certificates, ssl_ca_certs=certificates.other_ca)
    if request.param == "no CA":
        return settings_for(tls_port, certificates, ssl_ca_certs=None)
    return settings_for(tls_port, certificates, host="localhost")


def test_a_server_that_can_t_be_verified_is_not_talked_to(broken: Settings) -> None:
    """None of the three users of the URL is less strict than the others, and each says why."""
    says = "certificate verify failed"
    with contextlib.closing(Store(broken)) as store, pytest.raises(StoreUnavailable, match=says):
        store.status()
    client = PoCClient(broken, timeout=2)
    with contextlib.closing(client), pytest.raises(StoreUnavailable, match=says):
        client.stop()
    with (
        client._line._app.connection_for_write() as connection,
        pytest.raises(Exception, match=says),
    ):
        connection.ensure_connection(max_retries=1, timeout=2)


def test_a_client_without_a_certificate_is_refused(
    tls_port: int, certificates: Certificates
) -> None:
    """By the server: with a CA alone it does not know who asks."""
    settings = settings_for(tls_port, certificates, ssl_certfile=None, ssl_keyfile=None)
    with contextlib.closing(Store(settings)) as store, pytest.raises(StoreUnavailable):
        store.status()


def test_a_command_says_what_is_wrong(broken: Settings) -> None:
    """In one line, without a traceback."""
    env = clean_environment()
    done = subprocess.run(
        [sys.executable, "-m", "worker.cli", "status"],
        cwd=ROOT,
        env=env | {"POC_REDIS_URL": broken.redis_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "certificate verify failed" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_commands_of_the_docs(redis_url: str, tmp_path: Path) -> None:
    """Their certificates are good for a server, and for who is verified as strictly as can be."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    section = page.partition("### TLS")[2].partition("\n## ")[0]
    _, made, used = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    made, redis_server, options = made.partition("redis-server ")
    subprocess.run(["sh", "-euc", made], cwd=tmp_path, check=True, capture_output=True)
    command = ["openssl", "verify", "-x509_strict", "-CAfile", "ca.pem", "redis.pem", "worker.pem"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "redis.key").stat().st_mode & 0o077 == 0

    port = free_port()
    server = [*shlex.split((redis_server + options).replace("6380", str(port))), "--save", ""]
    says = "Ready to accept"
    if not shutil.which("redis-server"):
        behind = redis_url.rpartition(":")[2].partition("/")[0]
        proxy = ROOT / "tests" / "tls_proxy.py"
        server = [sys.executable, str(proxy), "redis.pem", "redis.key", "ca.pem", behind]
        says = r"^port (\d+)\n"
    with running(server, says, tmp_path / "server.log", cwd=tmp_path) as (_, found):
        port = found[1] if found.groups() else port
        used = used.replace(":6380/", f":{port}/")
        used = used.replace("poc ", f"{shlex.quote(sys.executable)} -m worker.cli ")
        env = clean_environment(PYTHONPATH=str(ROOT))
        done = subprocess.run(
            ["sh", "-euc", used], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert "IDLE" in done.stdout


def test_a_file_that_is_not_there_is_named(certificates: Certificates) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worker.cli", "worker"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "POC_REDIS_URL": "rediss://h/0?ssl_ca_certs=/no/ca.pem"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "ssl_ca_certs must name a file: there is no such file" in done.stderr.replace("\n", " ")
