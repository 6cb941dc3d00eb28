"""Callbacks: delivering what the outbox holds.

    pipeline, clerk ─▶ messages ─▶ the script that commits the work ─▶ outbox (a stream)
                                                                            │
    receiver ◀─ POST (attempt, guard) ◀─ delivery ◀─ PoCCallbackSender.run ◀┘

Each worker has a sender. Delivery is at least once and in no order: a receiver knows a repeat by
its `Idempotency-Key`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

from shared.config import PoCConfig
from shared.errors import defect
from shared.schemes import Batch, Body, Verdict
from shared.settings import Settings
from shared.store import Message, Store
from worker.callbacks.attempt import Answer, client_for, post, tls_for
from worker.callbacks.delivery import MAX_REQUESTS, Delivery
from worker.callbacks.messages import message
from worker.outage import REST_S, Outage

log = logging.getLogger(__name__)


class PoCCallbackSender:
    """Delivers callbacks: `run` those of the outbox, `send_*` one at once, past the outbox."""

    def __init__(
        self, store: Store, name: str, settings: Settings, outage: Outage | None = None
    ) -> None:
        """`name` is this sender's own; an `outage` that is shared says that Redis is away once.

        Raises `ConfigError` for certificates that can't be used.
        """
        self._store, self._name, self._settings = store, name, settings
        self._tls = tls_for(settings)
        self._outage = outage or Outage(settings)

    def send_generated(self, batch: Batch, config: PoCConfig, key: str) -> str | None:
        """POST `batch` once and wait; None when it was delivered, else why not.

        `key` is the idempotency key. Without a `callback_url` there is nothing to do.
        """
        return self._send(message(config, "generated", Body(batch.model_dump_json()), key))

    def send_validated(self, batch: Verdict, config: PoCConfig, key: str) -> str | None:
        """POST a verdict once and wait; as `send_generated`."""
        return self._send(message(config, "validated", Body(batch.model_dump_json()), key))

    def _send(self, message: Message | None) -> str | None:
        async def once(message: Message) -> Answer:
            async with client_for(self._settings, MAX_REQUESTS, self._tls) as client:
                return await post(client, self._settings, message.url, message.key, message.body)

        if message is None:
            return None
        return asyncio.run(once(message)).error or None

    def run(self, stop: threading.Event) -> None:
        """A thread's body: deliver the outbox until `stop`, then end within about a second.

        What was not delivered by then is taken over by another sender when its lease ends.
        """
        # httpx logs every attempt, with the whole URL.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        while not stop.is_set():
            # Not asyncio.run: it waits at the end for every thread, and so for a Redis or a name
            # server that hangs.
            loop = asyncio.new_event_loop()
            loop.set_default_executor(ThreadPoolExecutor(2 * MAX_REQUESTS, "poc-sender"))
            try:
                loop.run_until_complete(self._serve(stop))
            except Exception as error:
                log.error("the sender failed and goes on: %s", error, exc_info=defect(error))
                stop.wait(REST_S)
            finally:
                loop.close()

    async def _serve(self, stop: threading.Event) -> None:
        async with client_for(self._settings, MAX_REQUESTS, self._tls) as client:
            await Delivery(
                self._store, self._name, self._settings, self._outage, client, stop
            ).serve()
