"""Settings and fixtures of all tests.

The environment is set before torch, the libraries of Hugging Face or modules of this project are imported.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from tests import shapes

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


@pytest.fixture
def browser(require: Callable[..., str]) -> Iterator["Browser"]:
    """The system's Chromium."""
    from playwright.sync_api import sync_playwright  # most tests open no page, and loading this takes a while

    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        program = require("chromium", "chromium-browser")
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()
