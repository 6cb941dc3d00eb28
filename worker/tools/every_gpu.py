"""`poc worker --gpu all`: a worker process for each GPU, and this one, which looks after them.

A worker that ends by a failure is started again. One that could not start, whose device gives
wrong numbers or that was told to end is not: another start would end the same way. This process
imports no CUDA, and asks nvidia-smi what there is.
"""

from __future__ import annotations

import logging
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from rich.markup import escape

from shared import logs
from shared.errors import ConfigError
from shared.settings import EVERY_GPU, Settings, environment
from worker.children import on_end_signal, spawn
from worker.notify import WORD_S, Supervisor
from worker.queue.app import QUARANTINED, START_FAILED
from worker.tools import show
from worker.tools.again import poc

log = logging.getLogger(__name__)

#: Seconds until a worker that failed is started again: at first, and at most. One that lived for
#: longer than the latter is started as if it had not failed before.
FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 60.0
#: Seconds that nvidia-smi may take: the first call wakes the driver.
FIND_S = 60
#: Seconds that the last words of a worker may take: what it started may keep the pipe open.
LAST_WORDS_S = 2.0


class Gpu(NamedTuple):
    """A GPU, or a part of one in MIG mode, by the names of a log and of CUDA."""

    label: str
    uuid: str


def find_gpus() -> list[Gpu]:
    """What `nvidia-smi -L` lists; of a GPU in MIG mode its parts. Raises `ConfigError` if none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        raise _no_gpu("there is no nvidia-smi here, which comes with NVIDIA's driver")
    try:
        done = subprocess.run(
            [program, "-L"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=FIND_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _no_gpu(f"nvidia-smi fails: {error}") from None
    if done.returncode:
        said = " ".join((done.stdout + done.stderr).split())
        raise _no_gpu(f"nvidia-smi fails: {said.rstrip('.') or f'status {done.returncode}'}")
    found: list[Gpu] = []
    for kind, number, uuid in re.findall(
        r"^(GPU |\s+MIG .*Device\s+)(\d+):.*\(UUID: ([\w-]+)\)", done.stdout, re.MULTILINE
    ):
        if kind == "GPU ":
            gpu = Gpu(f"gpu{number}", uuid)
            found.append(gpu)
        else:  # instead of the whole, which can't be used beside its parts
            if gpu in found:
                found.remove(gpu)
            found.append(Gpu(f"{gpu.label}-mig{number}", uuid))
    if not found:
        raise _no_gpu("nvidia-smi lists none")
    return found


def _no_gpu(why: str) -> ConfigError:
    return ConfigError(
        f"POC_GPU={EVERY_GPU}: no GPU was found: {why}; leave it out to compute on the CPU, or run "
        "`poc doctor`"
    )


def run_every_gpu(settings: Settings, given: Mapping[str, Any]) -> int:
    """Run a worker for each GPU, until all have ended; the worst of their exit statuses.

    `given` are those settings that are not in the environment. Raises `ConfigError`. For the main
    thread, which takes the signals.
    """
    logs.as_json(settings)
    for setting, wrong in {
        "POC_TENSOR_PARALLEL": settings.tensor_parallel > 1,
        "POC_DEVICE": settings.device != "auto" and settings.device != "cuda",
    }.items():
        if wrong:
            value = getattr(settings, setting.removeprefix("POC_").lower())
            raise ConfigError(
                f"{setting}={value} can't be with POC_GPU={EVERY_GPU}, which starts a worker for "
                "each GPU; start those workers one by one, or leave one of the two out"
            )
    return _Workers(settings, given, find_gpus()).run()


class _Workers:
    """A worker for each GPU, each kept by a thread: the kernel ends a child with its thread."""

    def __init__(self, settings: Settings, given: Mapping[str, Any], gpus: list[Gpu]) -> None:
        self._name, self._port = settings.worker_name, settings.serve_port
        self._given, self._gpus = given, gpus
        self._supervisor = Supervisor()
        self._ending = threading.Event()
        # Whoever has it starts a worker, or ends all.
        self._lock = threading.Lock()
        self._running: dict[Gpu, subprocess.Popen[bytes]] = {}
        self._statuses: dict[Gpu, int] = {}

    def run(self) -> int:
        """Until all have ended; the worst exit status."""
        on_end_signal(self._pass_on)
        _say(f"starts {', '.join(f'{gpu.label} ({gpu.uuid})' for gpu in self._gpus)}")
        keepers = [threading.Thread(target=self._keep, args=(gpu,)) for gpu in self._gpus]
        for keeper in keepers:
            keeper.start()
        self._supervisor.ready()
        for keeper in keepers:
            while keeper.is_alive():
                self._supervisor.alive()
                keeper.join(WORD_S)
        return max(self._statuses.values(), default=0 if self._ending.is_set() else 1)

    def _pass_on(self, number: signal.Signals) -> None:
        """Once: a second signal would have the workers drop what they compute."""
        if self._ending.is_set():
            return
        self._supervisor.stopping()
        self._ending.set()
        with self._lock:
            _say(f"{number.name}: waits for {len(self._running)} to end")
            for process in self._running.values():
                process.send_signal(number)

    def _keep(self, gpu: Gpu) -> None:
        """Run the worker of `gpu`, and again if it fails; note what it ended with at last."""
        pause = FIRST_PAUSE_S
        while (process := self._start(gpu)) is not None:
            began = time.monotonic()
            status = self._follow(gpu, process)
            self._statuses[gpu] = status
            if self._ending.is_set():
                return
            if status in (0, START_FAILED, QUARANTINED):
                _say(f"{gpu.label} ended with status {status}: it is not started again")
                return
            if time.monotonic() - began > MAX_PAUSE_S:
                pause = FIRST_PAUSE_S
            _say(f"{gpu.label} ended with status {status}: it is started again in {pause:g} s")
            if self._ending.wait(pause):
                self._statuses[gpu] = 0  # told to end while none was there
            pause = min(2 * pause, MAX_PAUSE_S)

    def _start(self, gpu: Gpu) -> subprocess.Popen[bytes] | None:
        """A worker, unless all are to end."""
        its_own: dict[str, Any] = {"gpu": gpu.uuid}
        if self._port:  # of the first; with 0 each takes a free one
            its_own["serve_port"] = self._port + self._gpus.index(gpu)
        if self._name:
            own, at, host = self._name.partition("@")
            its_own["worker_name"] = f"{own}-{gpu.label}{at}{host}"
        env = environment(**{**self._given, **its_own})
        with self._lock:
            if self._ending.is_set():
                return None
            # In a session of its own: a Ctrl-C reaches this process alone, which passes it on.
            process = spawn(poc("worker"), env=env, own_session=True, piped=True)
            self._running[gpu] = process
            return process

    def _follow(self, gpu: Gpu, process: subprocess.Popen[bytes]) -> int:
        """Show what it says until it ends; its exit status.

        Of a signal that killed it that is 1, or 0 if it was told to end: it could not do so in
        order yet.
        """
        reader = threading.Thread(target=_relay, args=(gpu.label, process), daemon=True)
        reader.start()
        status = process.wait()
        with self._lock:
            del self._running[gpu]
        reader.join(LAST_WORDS_S)
        if status >= 0:
            return status
        return 0 if self._ending.is_set() else 1


def _relay(label: str, process: subprocess.Popen[bytes]) -> None:
    """Write each line of a worker to standard error, with `label` in front if it is text."""
    prefix = b"" if logs.are_json() else f"{label} | ".encode()
    assert process.stdout is not None  # noqa: S101 - as it was asked for
    with process.stdout as lines:
        for line in filter(bytes.strip, lines):
            # One call: lines of several workers don't mix.
            sys.stderr.buffer.write(b"%s%s\n" % (prefix, line.rstrip(b"\n")))
            sys.stderr.buffer.flush()


def _say(text: str) -> None:
    if logs.are_json():
        log.info("%s", text)
        return
    show.news.print(escape(text), soft_wrap=True, highlight=False)
