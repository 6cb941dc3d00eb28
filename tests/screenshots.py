"""Takes the pictures of docs/images/: a real node's page, in a real browser.

    PYTHONPATH=.:tests python -m screenshots

For each scheme it runs `poc demo --stay`, waits until a round has a course to show, and ends it.
Needs Chromium.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser

from chromium import chromium
from support import ROOT

IMAGES = ROOT / "docs" / "images"
#: Name, colours, width, height of each picture, by the scheme of the round that it shows.
PICTURES = {
    "distance": (
        ("page-light", "light", 1180, 760),
        ("page-dark", "dark", 1000, 1240),
        ("page-phone", "dark", 390, 844),
    ),
    "artifact": (("page-artifact", "light", 1000, 1040),),
}


def main() -> None:
    """Read the command line, run the node, take the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=45, help="of the round that is shown")
    options = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    with chromium() as browser:
        for scheme in PICTURES:
            with demo(scheme) as url:
                time.sleep(options.seconds)
                take(browser, url, scheme)


def take(browser: Browser, url: str, scheme: str) -> None:
    """Each picture, once the page shows a round."""
    for name, colours, width, height in PICTURES[scheme]:
        page = browser.new_page(
            color_scheme=colours,  # type: ignore[arg-type]
            viewport={"width": width, "height": height},
        )
        page.goto(url)
        page.wait_for_selector("#worker-table tbody tr")
        page.wait_for_timeout(500)
        path = IMAGES / f"{name}.png"
        page.screenshot(path=path)
        page.close()
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


@contextmanager
def demo(scheme: str) -> Iterator[str]:
    """A node whose rounds go on; gives its page's address."""
    words = "demo", "--seconds", "10", "--stay", "--scheme", scheme
    command = [sys.executable, "-m", "worker.cli", *words]
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        for line in process.stdout:
            print(line, end="")
            if found := re.search(r"watch them at (http\S+)", line):
                yield found[1]
                return
        raise SystemExit("the demo ended before its page stayed")
    finally:
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        process.wait()


if __name__ == "__main__":
    main()
