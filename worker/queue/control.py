"""Remote control of a worker: what it takes, and where its answers may go.

Whoever may publish to Redis' one channel for it can ask, so an answer must not be a way to write
to other keys.
"""

from __future__ import annotations

import logging
import uuid
from typing import Any

from celery.app.control import Control
from celery.worker.control import Panel
from kombu.pidbox import Mailbox

log = logging.getLogger(__name__)

#: What Flower and `celery inspect` show, and what ends a worker or a command. Not, for one, to
#: consume from another list, which the rights on our own queue don't guard.
TAKEN = frozenset({
    "active", "active_queues", "conf", "disable_events", "enable_events", "heartbeat", "ping",
    "query_task", "registered", "report", "reserved", "revoke", "revoked", "scheduled", "shutdown",
    "stats",
})  # fmt: skip


def take_no_more() -> None:
    """Forget, in this process, the commands of Celery's that are not taken."""
    for name in Panel.data.keys() - TAKEN:
        del Panel.data[name]


class _Mailbox(Mailbox):  # type: ignore[misc]
    """Answers to the list of whoever asked, and to no other."""

    def _publish_reply(
        self, reply: Any, exchange: str, routing_key: str, ticket: str, *args: Any, **more: Any
    ) -> None:
        try:
            asker = uuid.UUID(routing_key)
        except (ValueError, TypeError, AttributeError):
            log.warning("remote control: no answer to %.80r, which is no asker's id", routing_key)
            return
        # Straight to the list that the asker waits at: bindings of the exchange, by which it would
        # be found, are for every asker to write.
        queue = f"{asker}.{self.reply_exchange.name}"
        super()._publish_reply(reply, "", queue, ticket, *args, **more)


class GuardedControl(Control):  # type: ignore[misc]
    """Celery's, with a mailbox that answers to askers only."""

    Mailbox = _Mailbox
