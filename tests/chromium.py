"""The system's Chromium, and the event loop that drives it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@dataclass(frozen=True)
class Chromium:
    """A browser that runs as long as the tests.

    Attributes:
        browser: The browser.
        loop: Playwright's event loop.
    """

    browser: "Browser"
    loop: asyncio.AbstractEventLoop

    @contextmanager
    def driven(self) -> Iterator["Browser"]:
        """Yields the browser for use in this thread, where Playwright's loop counts as running only meanwhile.

        So other tests can run their own loops there.
        """
        asyncio._set_running_loop(self.loop)
        try:
            yield self.browser
        finally:
            asyncio._set_running_loop(None)
