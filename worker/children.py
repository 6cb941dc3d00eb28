"""Child processes that never outlive the process that started them.

The embedded server, the demo and the functional tests start processes. A parent can end in ways
that run no clean-up (kill -9, a crash in native code), so on Linux the kernel is asked to kill
the child with its parent. Elsewhere `end` is all there is.

Children that `multiprocessing` spawns are covered by `end_with_us`, for which this file is also a
program that becomes another one. What others take from it (vLLM's engine) is forked, by `forks_of`,
from a process that has imported already what they need.

Mind: the kernel counts the *thread* that started a child as its parent. Start children from a
thread that lives as long as they shall, normally the main thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import multiprocessing.context
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import multiprocessing.spawn
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

#: prctl(2): the signal that the kernel sends to a process when its parent ends.
_PR_SET_PDEATHSIG = 1

# Loaded before any fork: between fork and exec a child of a threaded process may find the
# loader's lock held for ever.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def aside(call: Callable[..., object]) -> Callable[..., None]:
    """What has `call` called soon, in a thread that is there for that, and takes no lock.

    For what a signal has to do: it interrupts the main thread anywhere, with any lock held, and
    a second signal interrupts what the first one does.
    """
    calls = _calls()
    return lambda *args: calls.put(functools.partial(call, *args))


@functools.cache
def _calls() -> SimpleQueue[Callable[[], object]]:
    calls: SimpleQueue[Callable[[], object]] = SimpleQueue()  # whose put takes no lock

    def follow() -> None:
        while True:
            calls.get()()

    threading.Thread(target=follow, name="signals", daemon=True).start()
    return calls


def on_end_signal(handler: Callable[[signal.Signals], object]) -> None:
    """Have `handler` called `aside` for each signal by which this process is told to end."""
    told = aside(lambda number: handler(signal.Signals(number)))
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Of SIGHUP that is nohup's wish; SIGINT is ignored by all that a script starts with &.
        if each != signal.SIGHUP or signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, lambda number, _: told(number))


def spawn(
    args: Sequence[str | os.PathLike[str]],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    log_path: str | os.PathLike[str] | None = None,
    piped: bool = False,
    own_session: bool = False,
) -> subprocess.Popen[bytes]:
    """Start `args` as a child that the kernel kills when the calling thread ends.

    `env` replaces the environment (default: this process'). Standard output and error are
    appended to `log_path`, or shared with this process, or `piped` into the process' `stdout`. With
    `own_session` a Ctrl-C at the terminal reaches only this process, which then decides about its
    children.
    """
    with contextlib.ExitStack() as stack:
        log = None if log_path is None else stack.enter_context(Path(log_path).open("ab"))
        # preexec_fn is unsafe among threads only where it takes locks; this one makes two
        # system calls through a library that is already loaded.
        return subprocess.Popen(
            list(args),
            env=None if env is None else dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if piped else log,
            stderr=subprocess.STDOUT if piped else log,
            start_new_session=own_session,
            preexec_fn=_die_with(os.getpid()),
        )


@contextlib.contextmanager
def vanishing_directory(prefix: str) -> Iterator[Path]:
    """A temporary directory that is removed when the block ends, or this process, however.

    A shell in a session of its own waits for the end of a pipe that only this process holds.
    """
    directory = Path(tempfile.mkdtemp(prefix=prefix))
    # A second for what else is killed with us to be gone.
    script = 'cat >/dev/null; rm -rf -- "$0" || { sleep 1; rm -rf -- "$0"; }'
    remover = subprocess.Popen(
        ["/bin/sh", "-c", script, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield directory
    finally:
        remover.communicate()  # closes the pipe, and waits


def end(process: subprocess.Popen[bytes], timeout: float = 10.0) -> int:
    """End `process` and wait: SIGTERM, after `timeout` seconds SIGKILL. Returns its exit status."""
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


@contextlib.contextmanager
def end_with_us() -> Iterator[None]:
    """Within it, processes that `multiprocessing` spawns have a session of their own.

    And the kernel kills them when the thread that started them ends, from their first moment
    on: the interpreter that multiprocessing starts is replaced by this file, which asks the
    kernel and then becomes that interpreter. Holds for the whole process while it lasts, and
    not for the children's own children.
    """
    # Started before: it cleans up after us, so it has to outlive us for a moment.
    multiprocessing.resource_tracker.ensure_running()
    before = multiprocessing.spawn.get_executable()
    multiprocessing.set_executable(f"{_launcher().name}/python")
    try:
        yield
    finally:
        multiprocessing.set_executable(before)


class Forks(multiprocessing.context.ForkServerContext):
    """A context of `multiprocessing` whose processes are forks of one that `forks_of` started."""

    class Process(multiprocessing.context.ForkServerProcess):
        """With the environment of whoever makes it."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._environment = dict(os.environ)

        def run(self) -> None:
            """In the child."""
            follow(os.getppid())  # should the server not have imported its module
            os.environ.clear()
            os.environ.update(self._environment)
            super().run()


@functools.cache
def forks_of(module: str) -> Forks:
    """Start a process that imports `module`, and return at once; what forks it.

    `module` is to call `lead_and_follow`. Then a fork leads a session, and the kernel kills it with
    this process. There is one such process to fork, for one module, until this process ends.
    """
    forks = Forks()
    forks.set_forkserver_preload([module])
    started: Future[None] = Future()

    def start_and_stay() -> None:
        try:
            with end_with_us():
                multiprocessing.forkserver.ensure_running()
            started.set_result(None)
        except BaseException as error:  # noqa: BLE001 - raised again below
            started.set_exception(error)
            return
        threading.Event().wait()  # for the kernel this thread is the parent

    threading.Thread(target=start_and_stay, name="poc-forks", daemon=True).start()
    started.result()
    return forks


def lead_and_follow() -> None:
    """Have each fork of this process lead a session of its own, and end with this process."""
    parent = 0

    def note() -> None:
        nonlocal parent
        parent = os.getpid()  # a child that asked might hear of another, once this one is gone

    os.register_at_fork(before=note, after_in_child=lambda: follow(parent))


def follow(parent: int) -> None:
    """Lead a session, and end with `parent`; nothing if this process leads one already."""
    if os.getsid(0) == os.getpid():
        return
    os.setsid()
    if (ask := _die_with(parent)) is not None:
        ask()


def kill_spawned() -> None:
    """Kill what was spawned within `end_with_us`, or forked, with all that it has started.

    For an end without clean-up: a grandchild that hangs in a device does not notice that its
    parent is gone.
    """
    for child in multiprocessing.active_children():
        # It leads its session; one that was spawned elsewhere leads no group, and is left alone.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(cast(int, child.pid), signal.SIGKILL)


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that spawned it ends, however it does.

    For children of `multiprocessing` that were spawned outside `end_with_us`; in any other process
    it does nothing.
    """
    parent = multiprocessing.parent_process()
    if parent and (ask := _die_with(cast(int, parent.pid))):
        ask()


@functools.cache
def _launcher() -> tempfile.TemporaryDirectory[str]:
    """A directory with a `python` that asks the kernel first; kept until this process ends.

    A child may still have to read it when its parent has gone on.
    """
    directory: tempfile.TemporaryDirectory[str] = tempfile.TemporaryDirectory(prefix="poc-")
    interpreter = shlex.quote(sys.executable)
    # -IS: no site-packages, which takes 10 ms instead of 100.
    command = f"{interpreter} -IS {shlex.quote(__file__)} {os.getpid()} {interpreter}"
    start = Path(directory.name) / "python"
    start.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    start.chmod(0o700)
    return directory


def _die_with(parent: int) -> Callable[[], None] | None:
    """What the child runs between fork and exec, or None where the kernel can't be asked."""
    if _libc is None:
        return None
    libc = _libc

    def ask_the_kernel() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # the parent ended before the request: no signal will ever come

    return ask_the_kernel


if __name__ == "__main__":
    # PARENT PROGRAM ARGUMENT...: PROGRAM in a session of its own that ends with PARENT.
    os.setsid()
    if (_ask := _die_with(int(sys.argv[1]))) is not None:
        _ask()
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - no shell is the point
