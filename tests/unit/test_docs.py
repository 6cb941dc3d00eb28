"""What the README says is true today."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from shared.api import create_app
from shared.settings import PREFIX, Settings, load_settings
from worker.cli import app
from worker.node import node

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Tests that a page names at least: else they are named in a way that nobody looks for.
NAMED = {"security.md": 40, "reliability.md": 30, "numerics.md": 5}
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
POC_LINES = sorted(
    set(re.findall(r"(?:^|[ =])poc ([a-z].*)$", SHELL, re.MULTILINE))
    | set(re.findall(r"`poc ([a-z-][^`]*)`", README))
)


def settings_table() -> str:
    """The README's table of settings."""
    rows = ["| variable | default | what it is |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = field.default
        shown = str(default).lower() if isinstance(default, bool) else str(default)
        default = "" if field.default is None else f"`{shown}`"
        rows.append(f"| `{PREFIX}{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


def test_the_readme_has_every_setting() -> None:
    """After a change: put this table between the markers."""
    shown = README.partition("<!-- settings -->\n")[2].partition("\n<!-- end of settings")[0]
    assert shown == settings_table()


@pytest.mark.parametrize("line", POC_LINES)
def test_every_command_in_the_readme_parses(line: str) -> None:
    """A renamed command or option is noticed here."""
    name, *args = shlex.split(line.partition(" > ")[0], comments=True)
    group = get_command(app)
    commands = group.commands  # type: ignore[attr-defined]
    if not name.startswith("-"):
        # A mention without all of its arguments is not a command line.
        commands[name].make_context(name, args, resilient_parsing=not args)


def test_the_readme_has_every_route() -> None:
    """The status API's routes, and no other."""
    served = set(create_app(load_settings({})).openapi()["paths"])
    assert set(re.findall(r"\| `GET (\S+)` \|", README)) == served


def test_the_readme_shows_the_diagram_of_the_code() -> None:
    """One picture, in the README and in the file that is the architecture."""
    shown = re.search(r"```text\n(.*?)```", README, re.DOTALL)
    drawn = [line[4:] for line in (node.__doc__ or "").splitlines() if line.startswith("    ")]
    assert shown is not None
    assert shown[1].splitlines() == drawn


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: Path) -> None:
    """The files that a page links to are there, and so are the headings in them."""
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]*)(?:#([^):]*))?\)", text)
    lost = []
    for path, heading in links:
        target = page.parent / path if path else page
        if not target.exists() or (heading and heading not in headings(target)):
            lost.append((path, heading))
    assert lost == []


def headings(page: Path) -> set[str]:
    """What the headings of a page are called in links, as GitHub does it."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in titles}


@pytest.mark.parametrize("page", PAGES)
def test_each_test_that_proves_a_promise_is_there(page: Path) -> None:
    """`file` or `file::test`; `::test` is of the file that was named last."""
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`(tests/\S+?\.py)?((?:::\w+)*)`", text)
    named = [each for each in named if any(each)]
    assert len(named) >= NAMED.get(page.name, 0)
    file = ""
    missing = []
    for path, names in named:
        file = path or file
        source = (ROOT / file).read_text(encoding="utf-8")
        missing += [
            f"{file}::{name}"
            for name in names.split("::")[1:]
            if not re.search(rf"(def|class) {name}\b", source)
        ]
    assert missing == []
