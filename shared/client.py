"""What a controller in Python uses: commands by name, and tickets for long work.

    client = PoCClient(load_settings())
    ticket = client.generate(PoCConfig(block_hash="...", ...))
    client.stop()
    print(ticket.wait().total_valid)

A Redis that crashes can lose a command. The client therefore sends it again, under the same id,
until there is an answer; the id makes sure that it is carried out once. Answers are polled, since a
subscription does not outlive a restart of Redis.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from celery import Celery
from celery.exceptions import BackendError
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from shared import requests, tracing
from shared.about import about
from shared.broker import celery_app
from shared.config import PoCConfig, Strict
from shared.data import ProofBatch, ValidatedBatch
from shared.errors import NoAnswer, PoCError, StoreFailed, StoreRefused, StoreUnavailable
from shared.settings import Settings
from shared.status import RoundStatus
from shared.store import meaning, words_of

__all__ = ["PoCClient", "Ticket"]

log = logging.getLogger(__name__)

#: Seconds until an unanswered command is sent again: the first time, and at most.
RESEND_S = (2.0, 30.0)
#: Seconds between two looks at the answer: at first, and at most.
POLL_S = (0.05, 0.5)
#: Seconds after which a Redis that says nothing is given up; its driver tries four times.
SILENT_S = 3.0
#: A lost connection is ours to retry, so Celery shall report it instead of hanging on.
_ONCE = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}

_AWAY = (RedisError, OperationalError, BackendError, OSError)

Request = TypeVar("Request", bound=Strict)
Answer = TypeVar("Answer", RoundStatus, ValidatedBatch)
Progress = Callable[[dict[str, Any]], None]
#: A config, or a mapping of its fields.
Config = PoCConfig | Mapping[str, Any]


class PoCClient:
    """Sends commands to the workers of `settings.namespace`. Thread-safe.

    Every method returns when a worker has carried the command out or taken it on. It raises what
    the command raised there (see `shared.errors`), `InvalidRequest` before anything is sent,
    `NoAnswer` when no worker answers within `timeout` seconds, `StoreUnavailable` when Redis is
    away that long (a Redis that hangs may add some seconds) and, at once, `StoreRefused`.
    """

    def __init__(self, settings: Settings, timeout: float = 30.0) -> None:
        self._settings, self._timeout = settings, timeout
        self._app = celery_app(settings, redis_socket_timeout=SILENT_S)
        options = self._app.conf.broker_transport_options
        self._app.conf.broker_transport_options = options | _ONCE | {"socket_timeout": SILENT_S}

    def init(
        self, config: Config, round_id: str | None = None, replace: bool = False
    ) -> RoundStatus:
        """Open a round; `replace` ends one that is generating instead of being refused."""
        asked = _opening(requests.InitRequest, config, round_id, replace)
        return self._send("poc.init", asked, RoundStatus).wait(self._timeout)

    def generate(
        self, config: Config | None = None, round_id: str | None = None, replace: bool = False
    ) -> Ticket[RoundStatus]:
        """Generate in the current round, or with a `config` in a new one.

        The ticket ends with the round's final status when anybody ends the generation.
        """
        asked = _opening(requests.GenerateRequest, config, round_id, replace)
        return self._send("poc.generate", asked, RoundStatus)

    def validate(
        self, config: Config | None = None, round_id: str | None = None, replace: bool = False
    ) -> RoundStatus:
        """End the generation of the current round, or open a round in that state."""
        asked = _opening(requests.ValidateRequest, config, round_id, replace)
        return self._send("poc.validate", asked, RoundStatus).wait(self._timeout)

    def validate_batch(
        self, batch: ProofBatch | Mapping[str, Any], config: Config | None = None
    ) -> Ticket[ValidatedBatch]:
        """Have the distances of `batch` recomputed and judged, by `config` or the current round's.

        The ticket ends with the verdict.
        """
        asked = requests.read(requests.ValidateRequest, {"batch": batch, "config": config})
        return self._send("poc.validate", asked, ValidatedBatch)

    def stop(self, round_id: str | None = None) -> RoundStatus:
        """Stop the round; one that is named and not there yet is refused when it comes."""
        asked = requests.read(requests.StopRequest, {"round_id": round_id})
        return self._send("poc.stop", asked, RoundStatus).wait(self._timeout)

    def close(self) -> None:
        """Give the connections back."""
        self._app.backend.client.close()
        self._app.backend.client.connection_pool.disconnect()
        self._app.close()

    def _send(self, name: str, asked: Strict, kind: type[Answer]) -> Ticket[Answer]:
        kwargs = asked.model_dump(mode="json", exclude_none=True)
        tracing.adopt()
        with tracing.step(f"send {name}", "PRODUCER"):
            ticket = Ticket(self._app, self._settings, kind, name, kwargs)
            ticket.wait_accepted(self._timeout)
            return ticket


class Ticket(Generic[Answer]):
    """A command under way. Its `id` is the Celery task's, as Flower shows it."""

    def __init__(
        self,
        app: Celery,
        settings: Settings,
        kind: type[Answer],
        name: str,
        kwargs: dict[str, Any],
    ) -> None:
        self.id = str(uuid.uuid4())
        self._app, self._settings = app, settings
        self._kind: type[Answer] = kind
        self._name, self._kwargs = name, kwargs
        self._traceparent = about().traceparent
        self._resend_s = RESEND_S[0]
        self._send_at = 0.0
        self._accepted = False
        #: What a worker said when it took the command on, such as the `round_id`.
        self.said: dict[str, Any] = {}
        self._began = time.monotonic()

    def wait_accepted(self, timeout: float | None = None) -> None:
        """Wait until a worker has taken the command on. Raises as `wait` does."""
        said = self._follow(timeout, lambda state: state != "PENDING", None)
        self.said = said if isinstance(said, dict) else {}

    def wait(self, timeout: float | None = None, on_progress: Progress | None = None) -> Answer:
        """Wait for the end, for at most `timeout` seconds; `on_progress` gets each news of it.

        Raises what ended the work, `NoAnswer` after the timeout (the work goes on), or
        `StoreUnavailable` when Redis is away then. May be called again.
        """
        result = self._follow(timeout, lambda state: state == "SUCCESS", on_progress)
        answer: Answer = self._kind.model_validate(result)
        return answer

    def _follow(
        self, timeout: float | None, done: Callable[[str], bool], on_progress: Progress | None
    ) -> Any:
        """Poll until the task's state is `done`, sending the command while it is unknown."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = POLL_S[0]
        seen: Any = None
        trouble: Exception | None = None
        while True:
            state: str = "PENDING"
            result: Any = None
            try:
                meta = self._app.backend.get_task_meta(self.id, cache=False)
                state, result = meta["status"], meta["result"]
                if state != "PENDING":
                    self._accepted = True
                else:
                    self._send_when_due()
                if trouble:
                    log.info("Redis is back")
                trouble = None
            except _AWAY as error:
                cause = error.__cause__ or error  # kombu wraps it
                means = meaning(cause) if isinstance(cause, RedisError) else None
                if isinstance(means, StoreRefused | StoreFailed):
                    raise means from None
                if not trouble:
                    log.warning(
                        "Redis at %s: %s; retrying",
                        self._settings.safe_redis_url,
                        words_of(error),
                    )
                trouble = error
            if isinstance(result, BaseException):
                raise _as_expected(result)
            if on_progress and state == "PROGRESS" and result != seen:
                on_progress(result)
                pause, seen = POLL_S[0], result
            if done(state):
                return result
            left = POLL_S[1] if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise self._in_vain(timeout, state, trouble)
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, POLL_S[1])

    def _send_when_due(self) -> None:
        # Past that the workers may have forgotten the id, and would carry it out anew.
        if time.monotonic() > self._began + self._settings.command_memory_s:
            raise NoAnswer(f"{self._name} {self.id}: its result is gone, or no worker ever took it")
        if time.monotonic() < self._send_at:
            return
        kwargs = self._kwargs
        if self._accepted:
            # Redis forgot it. It may begin again, but must not replace what came since.
            kwargs = {name: value for name, value in kwargs.items() if name != "replace"}
        # Not `send_task`, which subscribes to the result as well: nobody would read that.
        message = self._app.amqp.create_task_message(self.id, self._name, kwargs=kwargs)
        if self._traceparent:
            message.headers["traceparent"] = self._traceparent
        with self._app.producer_or_acquire() as producer:
            try:
                self._app.amqp.send_task_message(
                    producer,
                    self._name,
                    message,
                    queue=self._settings.queue,
                    retry=True,
                    retry_policy=_ONCE,
                )
            except AttributeError as error:
                if producer.channel.connection.client is not None:
                    raise
                # kombu lost the connection and kept its channel, by which nothing can be sent any
                # more. Without it the pooled connection opens another.
                producer.connection._default_channel = None  # noqa: SLF001
                raise OperationalError(f"a connection was lost ({error})") from error
        self._send_at = time.monotonic() + self._resend_s
        self._resend_s = min(self._resend_s * 2, RESEND_S[1])

    def _in_vain(self, timeout: float | None, state: str, trouble: Exception | None) -> PoCError:
        if trouble:
            return StoreUnavailable(
                f"Redis at {self._settings.safe_redis_url} (POC_REDIS_URL) did not take it for "
                f"{timeout:g} s: {words_of(trouble)}"
            )
        if state == "PENDING":
            return NoAnswer(
                f"no worker of namespace {self._settings.namespace} answered {self._name} in "
                f"{timeout:g} s; the next one to come will still run it. `poc status` shows who "
                "lives, `poc worker` starts one"
            )
        return NoAnswer(f"{self._name} {self.id} has not ended after {timeout:g} s; it goes on")


def _opening(
    model: type[Request], config: Config | None, round_id: str | None, replace: bool
) -> Request:
    return requests.read(model, {"config": config, "round_id": round_id, "replace": replace})


def _as_expected(error: BaseException) -> PoCError:
    if isinstance(error, PoCError):
        return error
    return PoCError(f"a worker failed ({type(error).__name__}: {error}); its log says where")
