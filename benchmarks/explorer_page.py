"""How fast the explorer appears, and whether it scrolls smoothly: `python -m benchmarks.explorer_page [--loads 20]`.

The web service serves its pages on loopback to the system's Chromium, and answers the calls of the API by made-up
bodies, so that the page alone is measured. (The browser's own interception of requests would hold up every file.) The
output has the median and the 95th percentile of the first contentful paint over fresh pages, and, for an answer of 50
results of 500 tokens each, how long it takes to show it and the longest task of the main thread while the page is
scrolled from its top to its end. A task of more than 50 ms is felt as a jerk; the browser reports none that is
shorter.
"""

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import uvicorn
from playwright.sync_api import Page, sync_playwright
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.support.command_line import make_parser
from benchmarks.support.processes import find_free_port
from benchmarks.support.timing import percentile_ms
from service.app import create_app
from service.openapi import examples
from service.settings import ServiceSettings

RESULTS_EACH_SIDE, TOKENS = 25, 500
BODIES: dict[str, Any] = {
    "/index": {"items": [examples.INDEX_SUMMARY], "next_cursor": None},
    "/index/facts": examples.INDEX_DETAIL,
    "/jobs": {"items": [], "next_cursor": None},
    "/readyz": examples.READY,
    "/key": examples.KEY_PERMISSIONS,
}
_WATCH_TASKS = """() => {
  window.longTasks = [];
  new PerformanceObserver((list) => window.longTasks.push(...list.getEntries().map((entry) => entry.duration)))
    .observe({ type: "longtask", buffered: false });
}"""
_FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"


def main() -> None:
    """Runs the benchmark."""
    parser = make_parser(__doc__)
    parser.add_argument("--loads", type=int, default=20, help="pages to load")
    options = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        parser.error("expected Chromium on the PATH: `apt-get install chromium`")
    with _serve() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        seconds = [_first_paint_s(browser.new_page(), address) for _ in range(options.loads)]
        median_ms, slow_ms = percentile_ms(seconds, 50), percentile_ms(seconds, 95)
        print(f"first paint: median {median_ms:.0f} ms, 95th percentile {slow_ms:.0f} ms")
        shown_s, longest_ms = _scroll(browser.new_page(viewport={"width": 1440, "height": 900}), address)
        print(f"{2 * RESULTS_EACH_SIDE} results of {TOKENS} tokens: shown after {1e3 * shown_s:.0f} ms")
        print(f"longest task while scrolling: {f'{longest_ms:.0f} ms' if longest_ms else 'none over 50 ms'}")
        browser.close()


@contextmanager
def _serve() -> Iterator[str]:
    """Serves the pages, and yields their address."""
    with tempfile.TemporaryDirectory() as directory:
        port = find_free_port()
        app = create_app(ServiceSettings(data_dir=Path(directory)))
        server = uvicorn.Server(
            uvicorn.Config(_answer_calls(app), port=port, log_level="error", lifespan="off")
        )
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}/"
        server.should_exit = True
        thread.join()


def _answer_calls(app: ASGIApp) -> ASGIApp:
    """Returns the application with made-up answers to the page's calls of the API."""
    bodies = BODIES | {"/attribute": _make_answer()}

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        body = bodies.get(scope["path"])
        await (app if body is None else JSONResponse(body))(scope, receive, send)

    return answer


@cache
def _make_answer() -> dict[str, Any]:
    """Returns an answer with many results of many tokens."""

    def make_row(number: int, sign: int) -> dict[str, Any]:
        words = [f" word{number}x{place}" for place in range(TOKENS)]
        ends = [sum(map(len, words[: place + 1])) for place in range(TOKENS)]
        tokens = [
            {
                "token": word,
                "start": end - len(word),
                "end": end,
                "influence": sign * ((place * 37) % 100) / 100,
            }
            for place, (word, end) in enumerate(zip(words, ends, strict=True))
        ]
        row = examples.ATTRIBUTE_RESPONSE["results"][0]
        return row | {
            "id": f"doc-{sign}-{number}",
            "rank": number + 1,
            "prompt": "".join(words),
            "tokens": tokens,
        }

    sides = {"results": 1, "opponents": -1}
    rows = {
        side: [make_row(number, sign) for number in range(RESULTS_EACH_SIDE)] for side, sign in sides.items()
    }
    return examples.BACKGROUND_RESPONSE | rows


def _first_paint_s(page: Page, address: str) -> float:
    """Returns the seconds until a fresh page has painted something."""
    page.goto(address)
    paint = None
    while paint is None:  # the page's policy forbids `wait_for_function`
        page.wait_for_timeout(50)
        paint = page.evaluate(_FIRST_PAINT)
    page.close()
    return paint / 1e3


def _scroll(page: Page, address: str) -> tuple[float, float]:
    """Returns the seconds until the answer was shown, and the longest task in milliseconds while it was scrolled."""
    request = {"index": "facts", "prompt": "x", "include": ["text", "tokens"]}
    page.goto(address)
    page.locator(".indexes .tile").wait_for()
    started = time.perf_counter()
    page.evaluate("(fragment) => { location.hash = fragment; }", urlencode({"ask": json.dumps(request)}))
    page.locator(".opponents .result").nth(RESULTS_EACH_SIDE - 1).wait_for(state="attached")
    shown_s = time.perf_counter() - started
    page.evaluate(_WATCH_TASKS)
    page.mouse.move(400, 500)
    at_end = "scrollY + innerHeight >= document.documentElement.scrollHeight - 2"
    while not page.evaluate(at_end):
        page.mouse.wheel(0, 300)
        page.wait_for_timeout(30)
    page.wait_for_timeout(300)
    tasks: list[float] = page.evaluate("window.longTasks")
    page.close()
    return shown_s, max(tasks, default=0)


if __name__ == "__main__":
    main()
