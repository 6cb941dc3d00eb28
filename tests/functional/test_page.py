"""The live page in a real Chromium: a real node, real rounds, and what breaks around them."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

import chromium
from serving_api import serving_api
from shared.client import PoCClient
from shared.config import PoCConfig
from shared.data import ProofBatch
from shared.requests import GenerateRequest
from shared.settings import Settings, load_settings
from shared.status import Incident, RoundStatus
from shared.store import Store
from support import free_port, wait_until
from worker.tools.embedded import EmbeddedRedis

pytestmark = [
    pytest.mark.functional,
    pytest.mark.skipif(not chromium.PATH, reason="there is no Chromium: apt install chromium"),
]

#: What a caller may write where a public key is expected.
HOSTILE = "<img src=x onerror=\"document.title='taken'\">\u202e<b>"
#: Milliseconds that the page has to show what is there.
PATIENCE_MS = 20_000
PHONE = {"width": 360, "height": 740}
TOKEN = "a-token-of-the-page-0123456789"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE_MS)
    with chromium.chromium() as browser:
        yield browser


@pytest.fixture
def settings(shared_settings: Settings) -> Settings:
    """Those of the worker that all tests share."""
    return shared_settings


@pytest.fixture(scope="module")
def url(shared_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An API that asks for no token."""
    log = tmp_path_factory.mktemp("api") / "api.log"
    with serving_api(shared_settings.redis_url, log) as (_, url):
        yield url


@pytest.fixture(scope="module")
def round_(shared_settings: Settings, shared_worker: object) -> Iterator[RoundStatus]:
    """A round with its validations, honest and not, and an incident; all of a hostile caller's."""
    config = PoCConfig(
        block_hash="b10c",
        block_height=1234,
        public_key=HOSTILE,
        r_target=0.5,
        batch_size=8,
        callback_url=f"http://127.0.0.1:{free_port()}",
        callback_deadline_s=600,
    )
    with (
        contextlib.closing(PoCClient(shared_settings)) as client,
        contextlib.closing(Store(shared_settings)) as store,
    ):
        client.generate(config, until_valid=100_000)
        found = wait_until(
            lambda: len((now := store.status(newest=100)).valid_nonces) >= 8 and now,
            30,
            "some valid nonces",
        )
        assert isinstance(found, RoundStatus)
        honest = ProofBatch.of(config, found.valid_nonces[:8], found.valid_distances[:8])
        forged = ProofBatch.of(config, list(range(10**6, 10**6 + 8)), [0.25] * 8)
        for batch in (honest, forged):
            client.validate_batch(batch).wait(timeout=30)
        store.workers.report(
            Incident(worker="w9", host=HOSTILE, at=store.overview().at, reason="it hung")
        )
        yield found
        client.stop()


Open = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Open]:
    """Open a page of a new browser profile; what it logs as an error fails the test."""
    wrong: list[str] = []
    with contextlib.ExitStack() as stack:

        def open_page(url: str, **options: Any) -> Page:
            context = browser.new_context(**options)
            stack.callback(context.close)
            page = context.new_page()
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
            page.goto(url)
            return page

        yield open_page
    # A browser itself logs each answer that is an error, and each connection that breaks.
    assert [each for each in wrong if "Failed to load resource" not in each] == []


def row(page: Page, table: str, number: int = 0) -> list[str]:
    """The texts of a row's cells."""
    line = page.locator(f"#{table} tbody tr").nth(number)
    expect(line).to_be_visible()
    return line.locator("td").all_inner_texts()


def value(page: Page, name: str) -> str:
    return page.locator(f"[data-is={name}]").inner_text()


class TestRound:
    """A round as the page shows it."""

    @pytest.fixture
    def page(self, round_: RoundStatus, url: str, open_page: Open) -> Page:
        page = open_page(url)
        expect(page.locator("#state")).to_have_text("Generating")
        expect(page.locator("#outcome-table tbody tr")).to_have_count(2)
        return page

    def test_the_first_glance_answers(self, page: Page, round_: RoundStatus) -> None:
        """Whether it runs, how fast, what came of it, and whether somebody cheats."""
        assert round_.round_id in page.locator("#round").inner_text()
        assert "b10c at height 1,234" in page.locator("#round").inner_text()
        expect(page.locator("#link")).to_have_text("live")
        assert re.fullmatch(r"[\d,.]+/s", value(page, "rate"))
        assert int(value(page, "checked").replace(",", "")) >= round_.total_checked
        assert int(value(page, "valid").replace(",", "")) >= 8
        assert "expected" in value(page, "valid-more")
        expect(page.locator("#eta")).to_have_text(
            re.compile(r"[\d.]+% of the way to 100,000 valid nonces: \d.* to go")
        )
        assert value(page, "workers") == "1"
        assert "waiting" in value(page, "callbacks")
        assert value(page, "verdicts") == "1 fraud"
        concerns = page.locator("#concerns").inner_text()
        assert "1 worker had to end in the last day." in concerns
        assert "This node found fraud in 1 validation" in concerns

    def test_each_section_tells_its_own(self, page: Page) -> None:
        worker = row(page, "worker-table")
        assert worker[0] == "shared@test"
        assert worker[1] in ("generating", "validating")
        assert re.search(r"now|ago", worker[5])
        forged, honest = row(page, "outcome-table"), row(page, "outcome-table", 1)
        assert (forged[3], forged[7], honest[7]) == ("8", "fraud", "honest")
        assert float(forged[5]) < 0.01 < float(honest[5])
        assert row(page, "incident-table")[2] == "it hung"
        expect(page.locator("#callback-facts")).to_contain_text("Oldest waits")
        expect(page.locator("#callback-facts")).to_contain_text("tried again: ")
        (kept,) = page.locator("#round-table tbody tr").all()
        assert kept.locator("td").last.inner_text() == "the current one"
        expect(page.locator("#total-facts")).to_contain_text("Commands that wait")

    def test_charts_are_drawn_and_said(self, page: Page) -> None:
        """Each has marks on its canvas, and a text for those who don't see it."""
        for chart, said in (
            ("Rate over time", r"Nonces a second: [\d.,]+ at last"),
            ("Distances", r"[\d.]+% of [\d,]+ nonces lie below 0\.5000, r_target"),
        ):
            image = page.get_by_role("img", name=chart)
            expect(image).to_have_accessible_name(re.compile(said))
            marks = """box => {
                const canvas = box.querySelector("canvas");
                const all = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
                return new Set(new Uint32Array(all.data.buffer)).size;
            }"""
            assert image.evaluate(marks) > 3

    def test_text_of_callers_is_inert(self, page: Page) -> None:
        """Given markup in a key and a host, it is shown as it was written, and does nothing."""
        assert page.locator("img").count() == 0
        assert page.locator("main b").count() == 6
        assert HOSTILE[:12] in row(page, "outcome-table")[1]
        assert HOSTILE in row(page, "incident-table")[1]
        assert "taken" not in page.title()

    def test_it_is_live(self, page: Page) -> None:
        """What is counted moves on a page that was loaded once."""
        page.evaluate("window.same = true")
        before, listed = value(page, "checked"), row(page, "round-table")[5]
        expect(page.locator("[data-is=checked]")).not_to_have_text(before)
        expect(page.locator("#round-table tbody td").nth(5)).not_to_have_text(listed)
        assert page.evaluate("window.same")
        assert re.match(r"Generating · [\d,.]+/s · test", page.title())

    def test_it_is_built_for_those_who_listen(self, page: Page) -> None:
        """Landmarks, headings in order, names of tables, and one voice that speaks by itself."""
        for landmark in ("banner", "main", "contentinfo"):
            expect(page.get_by_role(landmark)).to_have_count(1)  # type: ignore[arg-type]
        expect(page.get_by_role("heading", level=1)).to_have_count(1)
        headings = page.get_by_role("heading", level=2).all_inner_texts()
        assert headings[0] == "Generating"
        assert {"Workers", "Incidents", "Callbacks", "Validations"} <= set(headings)
        expect(page.get_by_role("table", name="Workers that live")).to_be_visible()
        expect(page.locator("[aria-live], [role=status], [role=alert]")).to_have_count(1)
        expect(page.get_by_role("status")).to_have_text("Generating. live.")

    @pytest.mark.parametrize(
        ("colours", "size"),
        [("light", None), ("dark", PHONE)],
        ids=["light", "dark on a phone"],
    )
    def test_axe_finds_nothing(
        self, colours: str, size: Any, round_: RoundStatus, url: str, open_page: Open
    ) -> None:
        """No violation of WCAG A or AA, contrast included."""
        # axe itself is what the page's policy would refuse.
        more = {"viewport": size} if size else {}
        page = open_page(url, color_scheme=colours, bypass_csp=True, **more)
        expect(page.locator("#outcome-table tbody tr")).to_have_count(2)
        found = Axe().run(page).response["violations"]
        assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []

    def test_a_phone_scrolls_in_one_direction(
        self, round_: RoundStatus, url: str, open_page: Open
    ) -> None:
        """Given 360 pixels, nothing is wider; and tables are tables still to those who listen."""
        page = open_page(url, viewport=PHONE)
        expect(page.locator("#outcome-table tbody tr")).to_have_count(2)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        expect(
            page.get_by_role("table", name="How the last batches").get_by_role("row")
        ).to_have_count(3)

    def test_colours_follow_the_system(
        self, round_: RoundStatus, url: str, open_page: Open
    ) -> None:
        """Dark on a dark screen, light on paper, and still for those who want no motion."""
        page = open_page(url, color_scheme="dark", reduced_motion="reduce")
        expect(page.locator("#link")).to_have_text("live")

        def ground() -> int:
            colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
            return sum(map(int, re.findall(r"\d+", colour)))

        assert ground() < 100
        moving = "getComputedStyle(document.getElementById('link'), '::before').animationName"
        assert page.evaluate(moving) == "none"
        page.emulate_media(media="print")
        assert ground() > 700


class TestWithout:
    """What is not there is said."""

    def test_before_the_first_round(
        self, redis_server: EmbeddedRedis, tmp_path: Path, open_page: Open
    ) -> None:
        """Given no worker and no round, it says so, and what to do."""
        with serving_api(redis_server.url, tmp_path / "log", POC_NAMESPACE="new") as (_, url):
            page = open_page(url)
            expect(page.locator("#state")).to_have_text("No worker, no round")
            expect(page.locator("#workers")).to_contain_text("Start one: poc worker")
            expect(page.locator("#rate-text")).to_have_text("Nothing has been computed yet.")
            assert value(page, "checked") == "0"

    def test_a_gpu_that_tells_half(
        self, redis_server: EmbeddedRedis, tmp_path: Path, open_page: Open
    ) -> None:
        """Given one card that tells all, and one that tells its name, what is known is shown."""
        gpus = [
            {
                "name": "H100",
                "utilization": 0.97,
                "memory_used_bytes": 60 * 2**30,
                "memory_total_bytes": 80 * 2**30,
                "temperature_celsius": 86.4,
                "power_watts": 512.3,
            },
            {"name": "T4"},
        ]
        settings = load_settings({}, redis_url=redis_server.url, namespace="gpus", lease_s="600")
        with (
            contextlib.closing(Store(settings)) as store,
            serving_api(redis_server.url, tmp_path / "log", POC_NAMESPACE="gpus") as (_, url),
        ):
            fields = {"state": "idle", "gpus": json.dumps(gpus)}
            store.workers.heartbeat("w", {"fingerprint": "f"}, fields, tokens=[])
            page = open_page(url)
            expect(page.locator("#state")).to_have_text("Ready: no round yet")
            assert row(page, "worker-table")[8] == (
                "H100\n97% utilised · 60.0 of 80.0 GiB · 86 °C · 512 W\nT4"
            )
            expect(page.locator("#concerns")).to_contain_text("1 GPU hot: above 85 °C.")

    def test_a_worker_that_is_not_heard(
        self, redis_server: EmbeddedRedis, tmp_path: Path, open_page: Open
    ) -> None:
        """Its name is said, and since when, before it counts as gone."""
        settings = load_settings({}, redis_url=redis_server.url, namespace="late", lease_s="600")
        with (
            contextlib.closing(Store(settings)) as store,
            serving_api(redis_server.url, tmp_path / "log", POC_NAMESPACE="late") as (_, url),
        ):
            late = {"heartbeat_at": str(store.overview().at - settings.worker_lives_s * 0.6)}
            store.workers.heartbeat("gpu3@host", {"fingerprint": "f"}, late, tokens=[])
            expect(open_page(url).locator("#concerns")).to_have_text(
                re.compile(r"gpu3@host was last heard \d+ s ago\.")
            )

    @pytest.mark.parametrize(("r_target", "which"), [(0.5, "none"), (1.9, "all")])
    def test_an_r_target_that_does_not_suit(
        self,
        r_target: float,
        which: str,
        redis_server: EmbeddedRedis,
        tmp_path: Path,
        open_page: Open,
    ) -> None:
        """Given a model none or all of whose distances lie below it, all is not well."""
        settings = load_settings({}, redis_url=redis_server.url, namespace=which, lease_s="600")
        config = PoCConfig(block_hash="b10c", block_height=1, public_key="k", r_target=r_target)
        with (
            contextlib.closing(Store(settings)) as store,
            serving_api(redis_server.url, tmp_path / "log", POC_NAMESPACE=which) as (_, url),
        ):
            store.workers.heartbeat("w", {"fingerprint": "f"}, {"vocab_size": "1024"}, tokens=[])
            store.rounds.generate("g", GenerateRequest(config=config))
            concerns = open_page(url).locator("#concerns")
            expect(concerns).to_have_text(
                f"r_target does not suit the model: {which} of the nonces will be valid."
            )

    def test_a_lost_connection_is_said_and_found_again(
        self, redis_server: EmbeddedRedis, tmp_path: Path, open_page: Open
    ) -> None:
        """Given an API that goes and comes, the page says since when, and goes on by itself."""
        port = str(free_port())
        with serving_api(redis_server.url, tmp_path / "1", POC_API_PORT=port) as (_, url):
            page = open_page(url)
            expect(page.locator("#link")).to_have_text("live")
        expect(page.locator("#lost")).to_have_text(re.compile(r"Last seen \d\d:\d\d:\d\d\."))
        expect(page.get_by_role("status")).to_contain_text("not connected")
        with serving_api(redis_server.url, tmp_path / "2", POC_API_PORT=port):
            expect(page.locator("#link")).to_have_text("live")
            expect(page.locator("#lost")).to_be_hidden()

    @pytest.mark.parametrize("prefix", ["", "/below"])
    def test_a_token_is_asked_for(
        self, prefix: str, redis_server: EmbeddedRedis, tmp_path: Path, open_page: Open
    ) -> None:
        """By keyboard alone: a wrong one is refused, the right one stays in this tab."""
        variables = {"POC_API_TOKENS": TOKEN, "POC_API_ROOT_PATH": prefix}
        with serving_api(redis_server.url, tmp_path / "log", **variables) as (_, url):
            page = open_page(f"{url}{prefix}/")
            dialog = page.get_by_role("dialog", name="A token, please")
            expect(dialog).to_be_visible()
            expect(page.get_by_role("textbox", name="Token")).to_be_focused()
            page.keyboard.type("a-wrong-token-0123456789")
            page.keyboard.press("Enter")
            expect(dialog).to_contain_text("That is none of the node's tokens.")
            page.keyboard.type(TOKEN)
            page.keyboard.press("Tab")
            expect(page.get_by_role("button", name="Show the node")).to_be_focused()
            page.keyboard.press("Enter")
            expect(dialog).to_be_hidden()
            expect(page.locator("#link")).to_have_text("live")
            page.reload()
            expect(page.locator("#link")).to_have_text("live")
            assert page.evaluate("JSON.stringify([{...localStorage}, document.cookie])") == (
                json.dumps([{}, ""], separators=(",", ":"))
            )
            page.keyboard.press("Tab")
            expect(page.get_by_role("button", name="Forget token")).to_be_focused()
            page.keyboard.press("Tab")
            expect(page.get_by_role("link", name="The API behind this page")).to_be_focused()
            page.get_by_role("button", name="Forget token").click()
            expect(dialog).to_be_visible()
            page.keyboard.press("Escape")
            page.get_by_role("button", name="Enter token").click()
            expect(dialog).to_be_visible()
