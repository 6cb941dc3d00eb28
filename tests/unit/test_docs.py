"""What the pages say is true today, and said in a way that can be read."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from typer.main import get_command

from shared import api, gateway, metrics
from shared.config import PoCState
from shared.data import ValidatedBatch
from shared.gateway.app import PREFIXES
from shared.settings import Settings, load_settings, table
from shared.status import RoundStatus
from shared.store import Store
from support import ROOT, headings
from transitions import RULES, Command
from worker.cli.app import app
from worker.cli.options import CONFIG_FIELDS
from worker.node import node

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
#: Tests that a page names at least: else they are named in a way that nobody looks for.
NAMED = {"security.md": 40, "reliability.md": 30, "numerics.md": 5}
#: The longest README, the widest line and the longest sentence of prose.
LINES, COLUMNS, WORDS = 130, 100, 28

NAME = re.compile(r"`(\w+)`")
CODE = re.compile(r"```\w*\n.*?```", re.DOTALL)
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", "\n".join(TEXTS.values()), re.DOTALL))
POC_LINES = sorted(
    set(re.findall(r"(?:^|[ =/])poc ([a-z].*)$", SHELL, re.MULTILINE))
    | {line for text in TEXTS.values() for line in re.findall(r"`poc ([a-z-][^`]*)`", text)}
)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def prose(text: str) -> Iterator[str]:
    """The lines that are neither code, nor of a table, nor a heading."""
    for line in CODE.sub("", text).splitlines():
        if line.strip() and not line.lstrip().startswith(("|", "#", "<!--", "```")):
            yield line


def between(text: str, marker: str) -> str:
    """What stands between two markers."""
    return text.partition(f"{marker} -->\n")[2].partition("\n<!-- end")[0]


def test_the_readme_is_short() -> None:
    """The rest has pages of its own, and the table leads to each of them."""
    assert len(TEXTS["README.md"].splitlines()) <= LINES
    for page in PAGES[1:]:
        assert f"(docs/{page.name})" in TEXTS["README.md"]


@pages
def test_lines_are_as_wide_as_a_terminal(page: Path) -> None:
    """Tables and code are as wide as they must be."""
    assert [line for line in prose(TEXTS[page.name]) if len(line) > COLUMNS] == []


@pages
def test_sentences_are_short(page: Path) -> None:
    """One thought each."""
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", "\n".join(_blocks(TEXTS[page.name])))
    long = [
        sentence
        for paragraph in paragraphs
        for sentence in re.split(r"(?<=[.!?:;])\s+", " ".join(paragraph.split()))
        if len(sentence.split()) > WORDS
    ]
    assert long == []


def _blocks(text: str) -> Iterator[str]:
    """The page without code and tables; blank lines stay, which end a paragraph."""
    for line in CODE.sub("\n", text).splitlines():
        skip = line.lstrip().startswith(("|", "#", "<!--"))
        yield "" if skip else line


@pages
def test_tests_are_named_in_tables_only(page: Path) -> None:
    """A promise stands beside its proof; prose is for reading."""
    named = re.compile(r"`(tests/\S+\.py)?::\w+")
    assert [line for line in prose(TEXTS[page.name]) if named.search(line)] == []


def test_the_page_of_settings_has_every_setting() -> None:
    """After a change: put what `python -m shared.settings` prints between the markers."""
    assert between(TEXTS["settings.md"], "<!-- settings: python -m shared.settings") == table()


def test_the_page_of_metrics_has_every_metric() -> None:
    """After a change: put what `python -m shared.metrics` prints between the markers."""
    assert between(TEXTS["metrics.md"], "<!-- metrics: python -m shared.metrics") == metrics.table()


@pytest.mark.parametrize("line", POC_LINES)
def test_every_command_in_the_docs_parses(line: str) -> None:
    """A renamed command or option is noticed here."""
    name, *args = shlex.split(re.split(r" > | && | \|", line)[0], comments=True)
    group = get_command(app)
    commands = group.commands  # type: ignore[attr-defined]
    if not name.startswith("-"):
        # A mention without all of its arguments is not a command line.
        commands[name].make_context(name, args, resilient_parsing=not args)


@pytest.mark.parametrize(
    ("heading", "app"),
    [
        ("## Read over HTTP", lambda settings: api.create_app(settings)),
        ("## The network's HTTP", lambda settings: gateway.create_app(settings, Store(settings))),
    ],
)
def test_the_protocol_has_every_route(heading: str, app: Callable[[Settings], FastAPI]) -> None:
    """And no other. What the gateway has below two prefixes is named below the first."""
    first, second = PREFIXES
    served = {
        (method.upper(), path.replace(second, first) if "network" in heading else path)
        for path, methods in app(load_settings({})).openapi()["paths"].items()
        for method in methods
    }
    told = {
        (method, path)
        for row in cells("protocol.md", heading)
        for method, path in re.findall(r"`(GET|POST) (/\S+)`", row[0])
    }
    assert told == served


def cells(page: str, heading: str) -> list[list[str]]:
    """The rows of the tables below a heading, without their heads."""
    section = TEXTS[page].partition(f"{heading}\n")[2].partition("\n#")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:2] == "| "]
    return rows[2:]


@pytest.mark.parametrize(
    ("heading", "fields", "told_in_prose"),
    [
        ("### The config of a round", CONFIG_FIELDS, set()),
        (
            "### The status",
            RoundStatus.model_fields,
            {"valid_nonces", "valid_distances", "valid_proofs"},
        ),
        (
            "### The verdict",
            ValidatedBatch.model_fields,
            {"public_key", "block_hash", "block_height", "node_id"}
            | {"nonces", "received_dist", "dist"},
        ),
    ],
)
def test_the_protocol_has_every_field(
    heading: str, fields: Iterable[str], told_in_prose: set[str]
) -> None:
    named = {name for row in cells("protocol.md", heading) for name in NAME.findall(row[0])}
    assert named - {"url", "distance", "artifact"} == set(fields) - told_in_prose


def test_the_protocol_has_every_transition() -> None:
    """The table of states is that of the scripts, which `transitions.RULES` specifies."""
    told = {}
    for first, *after in cells("protocol.md", "### States"):
        state = None if first == "no round yet" else PoCState(first)
        for command, cell in zip(("init", "generate", "validate", "stop"), after, strict=True):
            outcome, _, replaced = cell.partition("; ")
            told[state, Command(command)] = outcome
            if command == "init":
                told[state, Command.REPLACE] = replaced.removesuffix(" with `replace`") or outcome
    ruled = {key: str(v) if isinstance(v, PoCState) else "refused" for key, v in RULES.items()}
    assert told == ruled


def test_the_diagram_is_that_of_the_code() -> None:
    """One picture, in the page and in the file that is the architecture."""
    shown = re.search(r"```text\n(controller .*?)```", TEXTS["develop.md"], re.DOTALL)
    drawn = [line[4:] for line in (node.__doc__ or "").splitlines() if line.startswith("    ")]
    assert shown is not None
    assert shown[1].splitlines() == drawn


@pytest.mark.parametrize(("what", "least"), [("generate", 12), ("validation", 5)])
def test_where_a_command_goes_is_where_the_code_is(what: str, least: int) -> None:
    """Each file and each name that its life passes is there."""
    life = TEXTS["develop.md"].partition(f"## The life of one {what}")[2].partition("## ")[0]
    files = re.findall(r"`((?:shared|worker)/\S+?\.py|lua/\w+\.lua)`", life)
    assert len(files) >= least
    code = ""
    for file in files:
        path = ROOT / ("shared/store/" if file.startswith("lua/") else "") / file
        code += path.read_text(encoding="utf-8")
    for name in re.findall(r"`([A-Za-z_]+(?:\.[a-z_]+)?)`", life):
        assert re.search(rf"(def|class|function) {name.rpartition('.')[2]}\b", code), name


@pages
def test_links_lead_somewhere(page: Path) -> None:
    """The files that a page links to are there, and so are the headings in them."""
    links = re.findall(r"\]\(([^)#:]*)(?:#([^):]*))?\)", TEXTS[page.name])
    lost = []
    for path, heading in links:
        target = page.parent / path if path else page
        if not target.exists() or (heading and heading not in headings(target)):
            lost.append((path, heading))
    assert lost == []


@pages
def test_each_test_that_proves_a_promise_is_there(page: Path) -> None:
    """`file` or `file::test`; `::test` is of the file that was named last."""
    named = re.findall(r"`(tests/\S+?\.py)?((?:::\w+)*)`", TEXTS[page.name])
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
