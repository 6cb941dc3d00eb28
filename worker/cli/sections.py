"""Help as plain text in sections: names are never cut, however narrow the terminal is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from typer.core import TyperCommand, TyperGroup

Row = tuple[str, str]


class Command(TyperCommand):
    """A command whose options stand below the headings that they were given."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each heading."""
        _write(formatter, _options(self, ctx))


class Group(TyperGroup):
    """The commands below their headings."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands first, which are what one looks for."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        _write(
            formatter, ((_heading(it, "Commands"), (name, _summary(it))) for name, it in commands)
        )
        _write(formatter, _options(self, ctx))


def _options(command: Any, ctx: Any) -> Iterable[tuple[str, Row]]:
    for param in command.get_params(ctx):
        if row := param.get_help_record(ctx):
            yield _heading(param, f"{param.param_type_name.capitalize()}s"), row


def _heading(item: Any, usual: str) -> str:
    heading: str | None = getattr(item, "rich_help_panel", None)
    return heading or usual


def _summary(command: Any) -> str:
    return (command.help or "").strip().partition("\n\n")[0].replace("\n", " ")


def _write(formatter: Any, rows: Iterable[tuple[str, Row]]) -> None:
    sections: dict[str, list[Row]] = {}
    for heading, row in rows:
        sections.setdefault(heading, []).append(row)
    for heading, listed in sections.items():
        with formatter.section(heading):
            formatter.write_dl(listed)
