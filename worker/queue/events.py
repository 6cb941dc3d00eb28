"""What Flower hears of a worker: said once each, and never waited for."""

from __future__ import annotations

from typing import Any

from celery.app.events import Events
from celery.events.dispatcher import EventDispatcher


class Dispatcher(EventDispatcher):  # type: ignore[misc]
    """Celery's, without its repeats: those of a heartbeat know no end, and hold up a shutdown."""

    def send(self, type: str, *args: Any, **kwargs: Any) -> Any:
        """One attempt, and none while Redis is away, of which each costs a time-out."""
        if self.app.node.outage.goes_on:
            return None
        return super().send(type, *args, **kwargs | {"retry": False})


class PatientEvents(Events):  # type: ignore[misc]
    """Celery's, with that dispatcher."""

    dispatcher_cls = Dispatcher
