"""The page comes with all that it needs, and lets a browser load nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import fakeredis
import pytest
from fastapi.testclient import TestClient

from shared.api import create_app, page
from shared.settings import load_settings
from shared.store import Store

STATIC = Path(page.__file__).with_name("static")


@pytest.fixture(params=["", "/below/this"], ids=["at the root", "below a path"])
def prefix(request: pytest.FixtureRequest) -> str:
    """POC_API_ROOT_PATH."""
    return str(request.param)


@pytest.fixture
def api(prefix: str) -> Iterator[TestClient]:
    """With tokens: the page is for everybody all the same."""
    settings = load_settings(
        {}, namespace="test", api_root_path=prefix, api_tokens="a-token-0123456789"
    )
    store = Store(settings, fakeredis.FakeRedis(decode_responses=True))
    with TestClient(create_app(settings, store)) as client:
        yield client


@pytest.mark.parametrize("taken_away", [True, False])
def test_all_that_it_names_is_there(api: TestClient, prefix: str, taken_away: bool) -> None:
    """Below the prefix, whether or not a proxy takes that away."""

    def get(path: str) -> str:
        answer = api.get(path.removeprefix(prefix) if taken_away else path)
        assert answer.status_code == 200, path
        return answer.text

    html = get(f"{prefix}/")
    assert f'<base href="{prefix}/">' in html
    named = re.findall(r'(?:src|href)="(\w[^"]*)"', html)
    assert len(named) >= 5
    modules = {"static/page.js"}
    for path in named:
        get(f"{prefix}/{path}")
    while modules:
        code = get(f"{prefix}/{modules.pop()}")
        modules |= {f"static/{name}" for name in re.findall(r'from "\./([\w.]+)"', code)}


def test_a_path_without_its_slash_is_the_page(api: TestClient, prefix: str) -> None:
    assert "<base href" in api.get(prefix or "/").text


def test_a_browser_may_load_nothing_from_elsewhere(api: TestClient) -> None:
    """Nor run what stands in the page, nor make markup of text."""
    policy = api.get("/").headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "require-trusted-types-for 'script'" in policy
    assert "unsafe" not in policy
    html = (STATIC / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", html)
    for path in STATIC.iterdir():
        if path.suffix in (".html", ".css", ".js") and "uPlot" not in path.name:
            code = re.sub(r"^\s*//.*$|/\*.*?\*/", "", path.read_text(), flags=re.MULTILINE)
            assert "//" not in code, path


def test_an_upgrade_reaches_browsers(api: TestClient) -> None:
    """They ask whether a file has changed, and it is not sent again if not."""
    for path in ("/", "/static/page.js"):
        answer = api.get(path)
        assert answer.headers["Cache-Control"] == "no-cache"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    again = api.get("/static/page.js", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_only_its_files_are_there(api: TestClient) -> None:
    assert api.get("/static/../page.py").status_code == 404
    assert api.get("/static/%2e%2e/page.py").status_code == 404
    assert api.get("/static/").status_code == 404


def test_the_library_comes_with_its_version_and_licence() -> None:
    licence = (STATIC / "uPlot.LICENSE").read_text()
    version = re.search(r"uPlot ([\d.]+),", licence)
    assert version
    assert "MIT License" in licence
    for name in ("uPlot.iife.min.js", "uPlot.min.css"):
        assert f"(v{version[1]})" in (STATIC / name).read_text()[:100]
