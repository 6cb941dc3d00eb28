"""A sink for tickets that keeps what it is told."""

from __future__ import annotations

from typing import Any

from shared.errors import PoCError


class KeptTickets:
    """Everything in the order in which it came; nothing is sorted out."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, dict[str, Any]]] = []
        self.results: list[tuple[str, dict[str, Any]]] = []
        self.errors: list[tuple[str, PoCError]] = []

    @property
    def ended(self) -> list[str]:
        """The tasks that ended well."""
        return [task for task, _ in self.results]

    def progress(self, task: str, state: dict[str, Any], open_in: str) -> None:
        self.reports.append((task, state))

    def succeeded(self, task: str, result: dict[str, Any]) -> None:
        self.results.append((task, result))

    def failed(self, task: str, error: PoCError) -> None:
        self.errors.append((task, error))
