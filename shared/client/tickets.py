"""A command under way: sent until there is an answer, then followed to its end."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from typing import Any, Generic

from celery import Celery
from celery.exceptions import BackendError
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from shared.about import about
from shared.broker import celery_app
from shared.client.asking import Answer, Asked
from shared.client.steps import Steps
from shared.errors import NoAnswer, PoCError, StoreFailed, StoreRefused, StoreUnavailable
from shared.settings import Settings
from shared.store import meaning, words_of

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

Progress = Callable[[dict[str, Any]], None]


class Line:
    """Where commands go to and answers come from."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        # One connection to results for all threads: those of an event loop's pool come and go.
        conf = {"redis_socket_timeout": SILENT_S, "result_backend_thread_safe": True}
        self._app: Celery = celery_app(settings, **conf)
        options = self._app.conf.broker_transport_options
        self._app.conf.broker_transport_options = options | _ONCE | {"socket_timeout": SILENT_S}

    def look(self, id: str) -> tuple[str, Any]:
        """State and result of a task; PENDING while nobody has it."""
        meta = self._app.backend.get_task_meta(id, cache=False)
        return meta["status"], meta["result"]

    def send(self, id: str, task: str, kwargs: dict[str, Any], traceparent: str) -> None:
        """Put a command into the queue."""
        # Not `send_task`, which subscribes to the result as well: nobody would read that.
        message = self._app.amqp.create_task_message(id, task, kwargs=kwargs)
        if traceparent:
            message.headers["traceparent"] = traceparent
        with self._app.producer_or_acquire() as producer:
            try:
                self._app.amqp.send_task_message(
                    producer,
                    task,
                    message,
                    queue=self.settings.queue,
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

    def has_more(self) -> bool:
        """Whether the queue holds anything that workers have yet to take."""
        return bool(self._app.backend.client.llen(self.settings.queue))

    def close(self) -> None:
        """Give the connections back."""
        self._app.backend.client.close()
        self._app.backend.client.connection_pool.disconnect()
        self._app.close()


class Followed(Generic[Answer]):
    """A command under way. Its `id` is the Celery task's, as Flower shows it."""

    def __init__(self, line: Line, asked: Asked[Answer], id: str | None = None) -> None:
        self.id = id or str(uuid.uuid4())
        self._line = line
        self._asked: Asked[Answer] = asked
        self._traceparent = about().traceparent
        self._resend_s = RESEND_S[0]
        #: When it is to be sent again; 0 until it was sent.
        self._send_at = 0.0
        self._accepted = False
        #: What a worker said when it took the command on, such as the `round_id`.
        self.said: dict[str, Any] = {}
        self._began = time.monotonic()

    @property
    def round_id(self) -> str:
        """The round that it is about; empty for a validation."""
        return str(self.said.get("round_id", ""))

    def accepted(self, timeout: float | None) -> Steps[None]:
        """Until a worker has taken the command on."""
        said = yield from self._follow(timeout, lambda state: state != "PENDING", None)
        self.said = said if isinstance(said, dict) else {}

    def ended(self, timeout: float | None, on_progress: Progress | None = None) -> Steps[Answer]:
        """Until it has ended, for at most `timeout` seconds; `on_progress` gets each news of it."""
        result = yield from self._follow(timeout, lambda state: state == "SUCCESS", on_progress)
        answer: Answer = self._asked.answers(result)
        return answer

    def _follow(
        self, timeout: float | None, done: Callable[[str], bool], on_progress: Progress | None
    ) -> Steps[Any]:
        """Poll until the task's state is `done`, sending the command while it is unknown."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = POLL_S[0]
        seen: Any = None
        trouble: Exception | None = None
        while True:
            state: str = "PENDING"
            result: Any = None
            try:
                state, result = self._line.look(self.id)
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
                    log.warning("Redis at %s: %s; retrying", self._redis, words_of(error))
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
            yield min(pause, left)
            pause = min(pause * 1.5, POLL_S[1])

    def _send_when_due(self) -> None:
        # Past that the workers may have forgotten the id, and would carry it out anew.
        if time.monotonic() > self._began + self._line.settings.command_memory_s:
            raise NoAnswer(
                f"{self._asked.task} {self.id}: its result is gone, or no worker ever took it"
            )
        if time.monotonic() < self._send_at:
            return
        if self._send_at and self._line.has_more():
            # It may be in there. If it was lost, that shows when workers have taken the rest.
            self._send_at = time.monotonic() + self._resend_s
            return
        kwargs = self._asked.kwargs
        if self._accepted:
            # Redis forgot it. It may begin again, but must not replace what came since.
            kwargs = {name: value for name, value in kwargs.items() if name != "replace"}
        self._line.send(self.id, self._asked.task, kwargs, self._traceparent)
        self._send_at = time.monotonic() + self._resend_s
        self._resend_s = min(self._resend_s * 2, RESEND_S[1])

    def _in_vain(self, timeout: float | None, state: str, trouble: Exception | None) -> PoCError:
        task = self._asked.task
        if trouble:
            return StoreUnavailable(
                f"Redis at {self._redis} (POC_REDIS_URL) did not take it for {timeout:g} s: "
                f"{words_of(trouble)}"
            )
        if state == "PENDING":
            return NoAnswer(
                f"no worker of namespace {self._line.settings.namespace} answered {task} in "
                f"{timeout:g} s; the next one to come will still run it. `poc status` shows who "
                "lives, `poc worker` starts one"
            )
        return NoAnswer(f"{task} {self.id} has not ended after {timeout:g} s; it goes on")

    @property
    def _redis(self) -> str:
        return self._line.settings.safe_redis_url


def _as_expected(error: BaseException) -> PoCError:
    if isinstance(error, PoCError):
        return error
    return PoCError(f"a worker failed ({type(error).__name__}: {error}); its log says where")
