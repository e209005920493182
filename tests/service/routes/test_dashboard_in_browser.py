"""The dashboard in a real browser. These tests are skipped without Chromium, but never in CI."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI

from bergson_core.schemas.build import BuildSpec
from service.app import create_app
from service.auth.api_keys import KeyFile
from service.settings import ServiceSettings
from tests.service.fake_broker import NOW, FakeBroker, publish_manifest
from tests.service.helpers import make_key_header, serve_app
from worker.messages import JobRecord

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"

if not os.environ.get("CI"):
    pytest.importorskip("playwright")

from playwright.sync_api import ConsoleMessage, Page, Request, expect, sync_playwright  # noqa: E402

pytestmark = pytest.mark.browser

expect.set_options(timeout=30_000)  # the page is refreshed every few seconds, and CI is busy


class Visit:
    """An open page, the requests that it made, and its errors."""

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.requests, self.errors = page, [], []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("requestfailed", self._record_failure)
        page.on("console", self._record_message)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(f"{address}/docs")

    def _record_message(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def _record_failure(self, request: Request) -> None:
        """Records a failed request, except event streams, which fail for the browser when the page closes them."""
        if not request.url.endswith("/events"):
            self.errors.append(f"failed: {request.url}")


@pytest.fixture
def browser_broker() -> FakeBroker:
    broker = FakeBroker()
    for job_id, state in (("job-a", "running"), ("job-b", "succeeded")):
        broker.put(
            JobRecord.model_validate(
                {
                    "job_id": job_id,
                    "kind": "build",
                    "index": f"index-{job_id}",
                    "state": state,
                    "created_at": NOW,
                }
            )
        )
    broker.texts = ["Ada Lovelace's birthplace is London", HOSTILE]
    return broker


@pytest.fixture
def visit(
    tmp_path: Path, spec: BuildSpec, browser_broker: FakeBroker, require: Callable[..., str]
) -> Iterator[Visit]:
    chromium = require("chromium", "chromium-browser")
    publish_manifest(tmp_path / "indexes", "facts", spec)
    app: FastAPI = create_app(ServiceSettings(data_dir=tmp_path), browser_broker)  # pyright: ignore[reportArgumentType]
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with serve_app(app) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        page = browser.new_page()
        page.set_default_timeout(15_000)
        yield Visit(page, address)
        browser.close()


def test_the_page_loads_from_the_service_alone_and_without_errors(visit: Visit) -> None:
    expect(visit.page.locator("#status")).to_have_text("ready, 1 worker")
    expect(visit.page.locator("#indexes .tile strong")).to_contain_text(["facts"])
    expect(visit.page.locator("#workers .tile strong")).to_have_text("w-1")
    expect(visit.page.locator("#operations-Attribution-attribute")).to_be_visible()
    address = visit.page.url.removesuffix("/docs")
    assert all(url.startswith((address, "data:")) for url in visit.requests), visit.requests
    assert not visit.errors


def test_jobs_are_updated_by_their_events_and_can_be_cancelled(
    visit: Visit, browser_broker: FakeBroker
) -> None:
    card = visit.page.locator("#jobs .job", has_text="index-job-a")
    expect(card.locator(".badge")).to_have_text("running")
    browser_broker.advance("job-a", "running", stage="gradients", done=25, total=100)
    expect(card.locator("progress")).to_have_js_property("value", 0.25)
    expect(card).to_contain_text("25 of 100 documents")
    assert [url for url in visit.requests if url.endswith("/jobs/job-a/events")]
    cancel = card.get_by_role("button", name="Cancel index-job-a")
    cancel.click()
    expect(cancel).to_have_text("Really cancel?")
    cancel.click()
    expect(card.locator(".badge")).to_have_text("cancelled")
    assert browser_broker.records["job-a"].state == "cancelled"
    assert not visit.errors


def test_an_answer_is_shown_and_hostile_text_stays_text(visit: Visit, browser_broker: FakeBroker) -> None:
    page = visit.page
    expect(page.get_by_role("combobox", name="Index")).to_have_value("facts")
    page.get_by_label("Prompt").fill("Ada Lovelace was born in")
    page.get_by_label("Completion").fill(" London")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#answer tbody tr")).to_have_count(2)
    expect(page.locator("#answer .text").nth(1)).to_have_text(HOSTILE)
    assert page.locator("#answer img, #answer script").count() == 0
    assert page.title() == "Bergson Service"
    assert browser_broker.queries[0][0].completion == " London"
    expect(page.locator("#answer .score .faint")).to_have_text(["above 99.90 %", "above 99.80 %"])
    expect(page.locator("#answer")).to_contain_text("no strong influence found")
    expect(page.locator("#answer .warning")).to_have_count(0)
    page.get_by_label("Completion").fill("London")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#answer .warning")).to_contain_text('no space before it. Probably meant: " London".')
    page.get_by_label("Completion").fill(" London")
    page.get_by_label("Shade the tokens").check()
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#answer .token")).to_have_text(["<b>Ada</b>", " London"] * 2)
    expect(page.locator("#answer .token.negative")).to_have_count(2)
    page.get_by_label("Unlearn the best three").check()
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#answer")).to_contain_text("1 random document: −2.0000 on average")
    expect(page.locator("#answer .score").first).to_contain_text("unlearned: −2.0000")
    assert not visit.errors


def test_the_page_asks_for_a_key_sends_it_with_every_call_and_asks_again_after_its_revocation(
    visit: Visit, tmp_path: Path, browser_broker: FakeBroker
) -> None:
    page, message = visit.page, visit.page.locator("#key-message")
    expect(page.locator("#workers .tile")).to_have_count(1)
    key = make_key_header(tmp_path, scope="write")["Authorization"].removeprefix("Bearer ")
    page.reload()
    expect(message).to_contain_text("needs an API key")
    expect(page.locator(".board")).to_be_hidden()
    expect(page.locator("#status")).to_have_text("ready, 1 worker")
    page.get_by_label("API key").fill(key[:-1] + ("B" if key.endswith("A") else "A"))
    page.get_by_role("button", name="Use the key").click()
    expect(message).to_contain_text("The key was refused")
    page.get_by_label("API key").fill(f" {key} ")
    page.get_by_role("button", name="Use the key").click()
    expect(page.locator("#indexes .tile strong")).to_contain_text(["facts"])
    expect(message).to_be_hidden()
    browser_broker.advance("job-a", "running", stage="gradients", done=25, total=100)
    expect(page.locator("#jobs .job", has_text="index-job-a")).to_contain_text("25 of 100 documents")
    KeyFile(tmp_path).revoke("ada")
    expect(message).to_contain_text("The key was refused")
    expect(page.locator(".board")).to_be_hidden()
    page.get_by_role("button", name="Forget the key").click()
    expect(message).to_contain_text("needs an API key")
