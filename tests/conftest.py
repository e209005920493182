"""Settings and fixtures of all tests.

The environment is set before torch, the libraries of Hugging Face or modules of this project are imported.
"""

import asyncio
import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import certifi
import pytest

from tests import shapes
from tests.chromium import Chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser

os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
)
# Tiny matrices gain nothing from a second thread, and the workers that tests start should not compete for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The developer's own settings must not reach the tests, least of all the URL of a Redis in use.
for _name in [name for name in os.environ if name == "REDIS_URL" or name.startswith("BERGSON_")]:
    del os.environ[_name]

shapes.install()

# A shell that starts a program in the background lets it ignore Ctrl-C, and so its children: tests send SIGINT to both.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _first_certificate() -> str:
    """Returns the path of a file with one of certifi's certificates, since each client takes 16 ms to read all."""
    certificate, end, _ = Path(certifi.where()).read_text().partition("-----END CERTIFICATE-----\n")
    with tempfile.NamedTemporaryFile("w", suffix=".pem", delete=False) as file:
        file.write(certificate + end)
    atexit.register(os.unlink, file.name)
    return file.name


# No test asks a server with a public certificate.
certifi.where = partial(str, _first_certificate())

os.fsync = lambda file: None  # It waits for the disk to guard against power cuts, which no test simulates.


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, as uvicorn does."""
    return "asyncio"


@pytest.fixture(scope="session")
def require() -> Callable[..., str]:
    """Finds a program by its names, for example `require("redis-server")`, and returns its path.

    A test that needs a missing program is skipped; in CI it fails, so that no check is lost silently.
    """

    def find(*names: str) -> str:
        for name in names:
            if path := shutil.which(name):
                return path
        missing = f"none of these programs is installed: {', '.join(names)} (`make test` installs them where it may)"
        if os.environ.get("CI"):
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)

    return find


@pytest.fixture(scope="session")
def chromium(require: Callable[..., str]) -> Iterator[Chromium]:
    """The system's Chromium, which is started once. Tests take `browser`."""
    from playwright.sync_api import sync_playwright  # most tests open no page, and loading this takes a while

    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    program = require("chromium", "chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        loop = asyncio.get_running_loop()
        asyncio._set_running_loop(None)
        yield Chromium(browser, loop)
        asyncio._set_running_loop(loop)
        browser.close()


@pytest.fixture
def browser(chromium: Chromium) -> Iterator["Browser"]:
    """The system's Chromium; pages that a test opens with it are closed at its end."""
    with chromium.driven() as browser:
        others = browser.contexts
        yield browser
        for context in browser.contexts:
            if context not in others:
                context.close()
