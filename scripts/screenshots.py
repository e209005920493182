"""Takes the pictures of docs/explorer.md: `python -m scripts.screenshots`, while `make demo` runs.

The explorer is opened in the system's Chromium in both themes at three widths, asks the demo's index a question, and is
saved as it stands. Pictures are looked at before they are committed; nothing compares them.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Literal
from urllib.parse import urlencode
from urllib.request import urlopen

from playwright.sync_api import Browser, sync_playwright

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
HEIGHTS = {390: 1100, 768: 1100, 1440: 1000}
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def main() -> None:
    """Takes all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service")
    parser.add_argument("--prompt", default="Berin Birchall works for")
    parser.add_argument("--completion", default=" Emberly Chemicals")
    options = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        parser.error("expected Chromium on the PATH: `apt-get install chromium`")
    with urlopen(f"{options.url}/index") as response:  # noqa: S310  # nosec B310 -- an address of the operator
        index = next(item["name"] for item in json.load(response)["items"] if item["state"] == "ready")
    request = {
        "index": index,
        "prompt": options.prompt,
        "completion": options.completion,
        "direction": "both",
        "include": ["text", "metadata", "tokens", "words", "background"],
        "verify": {"top": 3, "controls": 3, "together": True},
    }
    PICTURES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        for width, height in HEIGHTS.items():
            for theme in THEMES:
                address = f"{options.url}/#{urlencode({'ask': json.dumps(request)})}"
                _take(browser, address, width, height, theme)
        browser.close()


def _take(browser: Browser, address: str, width: int, height: int, theme: Literal["light", "dark"]) -> None:
    """Saves a picture of the answer at `address`."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
    page.add_init_script("localStorage.setItem('bergson-seen', '1')")
    page.goto(address)
    page.locator(".verified").first.wait_for(timeout=120_000)
    page.evaluate("document.querySelector('.explained').scrollIntoView()")
    page.wait_for_timeout(300)  # until what fades has faded
    page.screenshot(path=PICTURES / f"explorer-{width}-{theme}.png")
    page.close()


if __name__ == "__main__":
    main()
