"""The alerts, the dashboard and the scrape config in deploy/, by Prometheus' own tool."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.metrics import METRICS
from support import ROOT, headings

PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))["groups"][0][
    "rules"
]
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text(encoding="utf-8"))

NAMES = {each.name for each in METRICS}
#: Of each metric the labels that a query may name; Prometheus adds the last two.
LABELS = {each.name: {*each.labels, "instance", "job"} for each in METRICS}

rules = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])


def promtool(*words: str | Path) -> str:
    """What it says; it must find nothing wrong."""
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed (Debian: apt install prometheus)")
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def queries(node: Any) -> Iterator[str]:
    """Every query of the dashboard, with values in place of Grafana's variables."""
    if isinstance(node, dict):
        if isinstance(found := node.get("expr"), str):
            yield found.replace("$__rate_interval", "1m").replace("$instance", ".*")
        node = list(node.values())
    if isinstance(node, list):
        for each in node:
            yield from queries(each)


def unknown(query: str) -> set[str]:
    """What a query names that no metric is called, and labels that its metric lacks."""
    missing = set(re.findall(r"\bpoc_\w+", query)) - NAMES
    for name, matchers in re.findall(r"\b(poc_\w+)\{([^}]*)\}", query):
        missing |= set(re.findall(r"(\w+)\s*(?:=|!)", matchers)) - LABELS.get(name, set())
    return missing


@rules
def test_an_alert_is_about_metrics_that_there_are(rule: dict[str, Any]) -> None:
    assert unknown(rule["expr"]) == set()
    assert "poc_" in rule["expr"] or 'up{job="poc"}' in rule["expr"]


@rules
def test_an_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    """In a summary, a description and a section of a page."""
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    page, _, heading = rule["annotations"]["runbook_url"].partition("#")
    assert heading in headings(ROOT / page)


def test_alerts_fire_when_they_should() -> None:
    """As alerts_test.yml says, where each fires at least once; and the rules are well-formed."""
    tests = (PROMETHEUS / "alerts_test.yml").read_text(encoding="utf-8")
    fired = set(re.findall(r'alertname="(\w+)"', tests))
    assert fired == {rule["alert"] for rule in RULES}
    promtool("check", "rules", "--lint=all", "--lint-fatal", PROMETHEUS / "alerts.yml")
    promtool("test", "rules", PROMETHEUS / "alerts_test.yml")


def test_the_scrape_config_is_one() -> None:
    """And names the rules beside it."""
    file = PROMETHEUS / "prometheus.yml"
    promtool("check", "config", "--syntax-only", file)
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert [(PROMETHEUS / each).exists() for each in config["rule_files"]] == [True]
    # What an alert takes for the job of the status API.
    assert config["scrape_configs"][0]["job_name"] == "poc"


def test_the_dashboard_shows_metrics_that_there_are() -> None:
    found = list(queries(DASHBOARD))
    assert len(found) > 30
    assert {query: unknown(query) for query in found if unknown(query)} == {}


def test_every_query_of_the_dashboard_parses(tmp_path: Path) -> None:
    recorded = [{"record": f"q{n}", "expr": query} for n, query in enumerate(queries(DASHBOARD))]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": recorded}]}))
    assert f"{len(recorded)} rules found" in promtool("check", "rules", file)


def test_panels_of_the_dashboard_have_room() -> None:
    """None lies on another, and each has a name and a number of its own."""
    panels = DASHBOARD["panels"]
    cells = [
        (x, y)
        for each in panels
        for place in [each["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({each["id"] for each in panels}) == len(panels)
    assert all(each["title"] for each in panels)
