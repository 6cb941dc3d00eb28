"""The Celery side of a worker: its application, its boot step, and how it is run."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
import warnings
from typing import Any, NoReturn

from celery import Celery, bootsteps, signals
from celery.app import trace
from celery.apps import worker as celerys_worker
from celery.exceptions import CPendingDeprecationWarning, SecurityWarning
from celery.worker import state
from celery.worker.consumer import consumer
from celery.worker.consumer.consumer import UNKNOWN_TASK_ERROR
from kombu.transport import TRANSPORT_ALIASES

from shared import logs, tracing
from shared.broker import celery_app
from shared.errors import ConfigError, Hung, Quarantined, StoreError, defect
from shared.receivers import Receivers
from shared.settings import EVERY_GPU, Settings
from worker.children import aside, kill_spawned
from worker.manager import PoCManager
from worker.node.node import Node
from worker.node.threads import Repeating
from worker.queue import tasks
from worker.queue.control import GuardedControl, take_no_more
from worker.queue.events import PatientEvents
from worker.queue.taken import Taken
from worker.queue.tickets import CeleryTickets
from worker.queue.transport import SentinelChannel
from worker.queue.wakeup import Wakeup

log = logging.getLogger(__name__)

#: What Celery says of a task that went well, results and all: our own lines say what it did.
_CELERYS_LINES = frozenset({trace.LOG_SUCCESS, trace.LOG_IGNORED})


def _shorten(line: logging.LogRecord) -> bool:
    """Say in one line what Celery says of a task that there is not, in a page and a traceback."""
    if line.msg == UNKNOWN_TASK_ERROR:
        line.msg, line.exc_info = "a command is refused: there is no task %.100s", None
        line.args = line.args[:1] if isinstance(line.args, tuple) else ()
    return True


#: Exit status of a worker that could not start, of one that failed while it ran, and of one
#: whose device gives wrong numbers, whenever that was seen.
START_FAILED, FAILED, QUARANTINED = 2, 3, 4


class NodeStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Starts the node before the worker consumes, and stops it before the pool ends."""

    # Requiring the consumer instead would silently drop the step.
    requires = ("celery.worker.components:Pool",)

    def start(self, parent: Any) -> None:
        """Load and register; what fails ends the process, before it took a task."""
        node: Node = parent.app.node
        logs.call_process(parent.hostname)
        tracing.start(parent.hostname, node.settings.namespace)
        # With each outage, about late acknowledgements, which nobody asks for. Celery has just
        # turned it on.
        warnings.simplefilter("ignore", CPendingDeprecationWarning)
        if threading.current_thread() is threading.main_thread():  # else signals are not ours
            _end_with_terminal(parent.app)
        try:
            node.start(parent.hostname, CeleryTickets(parent.app, node.store, parent.hostname))
        except Exception as error:  # noqa: BLE001 - said, and ends the worker
            told_to_end = node.closing.is_set()
            if not told_to_end:
                parent.app.on_start_error(error)
            node.stop()  # Celery does not stop what failed to start
            status = QUARANTINED if isinstance(error, Quarantined) else START_FAILED
            raise SystemExit(0 if told_to_end else status) from None
        parent.app.conf.broker_transport_options["taken_key"] = node.store.commands.taken_key(
            parent.hostname
        )
        taken = Taken(node.store, parent.hostname, node.closing)
        taken.follow(parent.app)
        self._commands = Repeating("commands", taken.turn, node.closing, node.outage, node.failed)
        self._commands.start()
        parent.app.manager = PoCManager(
            node.engine,
            node.store,
            pipeline=node.pipeline,
            receivers=Receivers.of(node.settings.callback_allow),
        )

    def stop(self, parent: Any) -> None:
        """Commit or give back, then end the threads."""
        parent.app.node.closing.set()
        self._commands.join(timeout=5)
        parent.app.node.stop()


def _is_set_up(**_: Any) -> None:
    """Celery leaves logging to whoever listens to its signal."""


def _say_why(error: Exception) -> None:
    log.critical("the worker can't start: %s", error, exc_info=defect(error))


def _end_with_terminal(app: Celery) -> None:
    """Celery would start the whole worker anew, or leave it to the system to end it at once."""
    end = signal.SIG_IGN if app.outlives_terminal else signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGHUP, end)


def pin(settings: Settings) -> None:
    """Let this process see no other GPU than that of `settings`; before torch is imported."""
    if settings.gpu == EVERY_GPU:
        raise ConfigError(
            f"POC_GPU={EVERY_GPU} is for `poc worker`, which starts a worker for each GPU; name one"
        )
    if settings.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = settings.gpu
        # Numbers as nvidia-smi has them; CUDA's own order is fastest first.
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"


def create_app(settings: Settings) -> Celery:
    """The application of a worker process, pinned to its GPU."""
    pin(settings)
    if logs.as_json(settings):
        signals.setup_logging.connect(_is_set_up, weak=False)
        celerys_worker.safe_say = lambda text, *_: logs.say_at_once(text)
    url = settings.redis
    kind = "Sentinel" if url.name else ""
    transport = f"{__package__}.transport:{kind}Transport"
    if url.name:
        # kombu turns from one Sentinel's URL to the next, and then goes by their scheme.
        TRANSPORT_ALIASES["sentinel"] = transport
    app = celery_app(
        settings,
        broker_transport=transport,
        result_backend=f"{__package__}.results:{kind}Results+{url.celery}",
        # Senders of a worker take turns: each connection of the pool is two to Redis, which counts
        # them. Flower, which asks for much at once, would stand still.
        broker_pool_limit=2,
    )
    if url.name:
        # Not where remote control shows it: it may have a password.
        SentinelChannel.sentinel_kwargs = app.conf.broker_transport_options.pop("sentinel_kwargs")
        app.conf.result_backend_transport_options = {}
    app.node = Node(settings, on_failure=_end_process)
    app.conf.broker_transport_options = {
        **app.conf.broker_transport_options,
        **app.node.store.broker_options(),
    }
    app.control_cls, app.events_cls = GuardedControl, PatientEvents
    logging.getLogger(consumer.__name__).addFilter(_shorten)
    take_no_more()
    app.manager = None  # until the worker is ready
    app.on_start_error = _say_why
    app.signalled = False
    # By nohup, say. Before Celery installs a handler of its own.
    app.outlives_terminal = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    # Of a worker that runs as root. It is about pickles, which nobody here reads.
    warnings.simplefilter("ignore", SecurityWarning)
    app.steps["worker"].add(NodeStep)
    app.steps["consumer"].add(Wakeup)
    tasks.register(app)

    close_node = aside(app.node.closing.set)

    @signals.worker_shutting_down.connect(weak=False)  # type: ignore[untyped-decorator]
    def close(**_: Any) -> None:
        # Celery only takes a note of a signal: a worker that waits for Redis has to be told.
        app.signalled = True
        close_node()
        if app.node.loading.is_set():
            log.warning("ends before the model was loaded, as a signal asked")
            _end_at_once(0)

    return app


def run_worker(settings: Settings) -> int:
    """Run a worker in this process until it is told to end; its exit status."""
    return run_app(create_app(settings))


def run_app(app: Celery) -> int:
    """Run the worker of `app` until it is told to end; its exit status."""
    settings: Settings = app.node.settings
    if settings.log_level != "DEBUG":
        logging.getLogger(trace.__name__).addFilter(lambda line: line.msg not in _CELERYS_LINES)
    worker = app.Worker(
        hostname=worker_name(settings),
        loglevel=settings.log_level,
        quiet=True,  # our own lines say what it is
        without_gossip=True,
        without_mingle=True,
    )
    worker.start()
    if app.manager:  # it did start
        # Not before Celery has closed the channel: until then it may still take one.
        try:
            if app.node.reached:
                app.node.store.commands.put_back_of_the_dead()
        except StoreError as error:
            log.warning("%s: commands that this worker took are put back by the next one", error)
        app.node.store.close()
    if worker.exitcode not in (FAILED, QUARANTINED) and app.signalled:
        return 0  # Celery gives 1 after SIGINT, as after a crash
    return int(worker.exitcode or 0)


def worker_name(settings: Settings) -> str:
    """The name in Redis and Flower, by default one that no other process has.

    Not by its process id alone: in containers that share a host's name each may be 1.
    """
    name = settings.worker_name or f"poc-{os.getpid()}-{secrets.token_hex(2)}"
    return name if "@" in name else f"{name}@{socket.gethostname()}"


def _end_at_once(status: int) -> NoReturn:
    """End without clean-up, which a thread that hangs, or loads, would hold up."""
    kill_spawned()
    logging.shutdown()
    os._exit(status)


def _end_process(error: Exception) -> None:
    if isinstance(error, Hung):
        _end_at_once(FAILED)
    # Celery's consumer looks at it: a warm shutdown that ends with this status.
    state.should_stop = QUARANTINED if isinstance(error, Quarantined) else FAILED
