"""Pages of the service over a fake broker, in a real browser."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser, expect

from bergson_core.schemas.build import BuildSpec
from service.app import create_app
from service.settings import ServiceSettings
from tests.service.fake_broker import NOW, FakeBroker, publish_manifest
from tests.service.helpers import serve_app
from tests.service.pages.visit import HOSTILE, Visit
from worker.messages import JobRecord

expect.set_options(timeout=30_000)  # a page is refreshed every few seconds, and CI is busy


@pytest.fixture
def broker() -> FakeBroker:
    """A broker with two jobs, which answers with an innocent text and a hostile one."""
    broker = FakeBroker()
    for job_id, state in (("job-a", "running"), ("job-b", "succeeded")):
        record = {"job_id": job_id, "kind": "build", "index": f"index-{job_id}", "state": state}
        broker.put(JobRecord.model_validate(record | {"created_at": NOW}))
    broker.texts = ["Ada Lovelace's birthplace is London", HOSTILE]
    return broker


@pytest.fixture
def address(tmp_path: Path, spec: BuildSpec, broker: FakeBroker) -> Iterator[str]:
    """The address of the service over the fake broker, with one published index, `facts`, with the column `source`."""
    columns = spec.columns.model_copy(update={"metadata": ("source",)})
    publish_manifest(tmp_path / "indexes", "facts", spec.model_copy(update={"columns": columns}))
    app: FastAPI = create_app(ServiceSettings(data_dir=tmp_path), broker)  # pyright: ignore[reportArgumentType]
    with serve_app(app) as address:
        yield address


@pytest.fixture
def open_page(address: str, browser: Browser) -> Callable[..., Visit]:
    """`open_page(path, **options)` opens a page of the service; the options are those of Playwright's pages."""

    def open_page(path: str = "/", **options: object) -> Visit:
        page = browser.new_page(**options)  # pyright: ignore[reportArgumentType]
        page.set_default_timeout(15_000)
        return Visit(page, f"{address}{path}")

    return open_page
