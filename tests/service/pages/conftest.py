"""Pages of the service over a fake broker, in a real browser.

All pages are opened at one address and in one profile of the browser, whose cache keeps the files of the pages: what
a server and a profile for each test took was most of the time of the tests. Behind the address, each test has a service
of its own, and what a page stores in the browser is removed at the end of its test.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import BrowserContext, ViewportSize, expect

from bergson_core.schemas.build import BuildSpec
from service.app import create_app
from service.settings import ServiceSettings
from tests.chromium import Chromium
from tests.service.fake_broker import NOW, FakeBroker, publish_manifest
from tests.service.helpers import serve_app
from tests.service.pages.visit import HOSTILE, Visit
from tests.service.stage import Stage
from worker.messages import JobRecord

expect.set_options(timeout=30_000)  # a page is refreshed every few seconds, and CI is busy
HASTE = "const wait = setTimeout; window.setTimeout = (call, ms, ...rest) => wait(call, ms / %d, ...rest);"


@pytest.fixture
def broker() -> FakeBroker:
    """A broker with two jobs, which answers with an innocent text and a hostile one."""
    broker = FakeBroker()
    for job_id, state in (("job-a", "running"), ("job-b", "succeeded")):
        record = {"job_id": job_id, "kind": "build", "index": f"index-{job_id}", "state": state}
        broker.put(JobRecord.model_validate(record | {"created_at": NOW}))
    broker.texts = ["Ada Lovelace's birthplace is London", HOSTILE]
    return broker


@pytest.fixture(scope="session")
def stage() -> Iterator[Stage]:
    """A server that stays while the services behind its address change."""
    stage = Stage()
    with serve_app(stage) as stage.address:
        yield stage


@pytest.fixture
def address(tmp_path: Path, spec: BuildSpec, broker: FakeBroker, stage: Stage) -> str:
    """The address of the service over the fake broker, with one published index, `facts`, with the column `source`."""
    columns = spec.columns.model_copy(update={"metadata": ("source",)})
    publish_manifest(tmp_path / "indexes", "facts", spec.model_copy(update={"columns": columns}))
    stage.app = create_app(ServiceSettings(data_dir=tmp_path), broker)  # pyright: ignore[reportArgumentType]
    return stage.address


@pytest.fixture(scope="session")
def profile(chromium: Chromium) -> BrowserContext:
    """The profile of the browser that all pages are opened in."""
    with chromium.driven() as browser:
        return browser.new_context()


@pytest.fixture
def open_page(address: str, chromium: Chromium, profile: BrowserContext) -> Iterator[Callable[..., Visit]]:
    """`open_page(path, viewport=…, color_scheme=…, haste=…)` opens a page of the service.

    The timers of a page with haste end earlier by this factor: those that refresh it, and those that it waits for
    before it tries again.
    """

    def open_page(
        path: str = "/",
        *,
        viewport: ViewportSize | None = None,
        color_scheme: Literal["light", "dark"] | None = None,
        haste: int | None = None,
    ) -> Visit:
        page = profile.new_page()
        page.set_default_timeout(15_000)
        if viewport:
            page.set_viewport_size(viewport)
        if color_scheme:
            page.emulate_media(color_scheme=color_scheme)
        if haste:
            page.add_init_script(HASTE % haste)
        return Visit(page, f"{address}{path}")

    with chromium.driven():
        yield open_page
        for page in profile.pages:
            stored = {"origin": address, "storageTypes": "local_storage"}
            profile.new_cdp_session(page).send("Storage.clearDataForOrigin", stored)
            page.close()
