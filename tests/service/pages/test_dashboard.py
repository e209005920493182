"""The dashboard in a real browser."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from service.auth.api_keys import KeyFile
from tests.service.fake_broker import FakeBroker
from tests.service.helpers import make_key_header
from tests.service.pages.visit import Visit

pytestmark = pytest.mark.browser


@pytest.fixture
def visit(open_page: Callable[..., Visit]) -> Visit:
    return open_page("/docs")


def test_the_page_loads_from_the_service_alone_and_without_errors(visit: Visit) -> None:
    expect(visit.page.locator("#status")).to_have_text("ready, 1 worker")
    expect(visit.page.locator("#indexes .tile strong")).to_contain_text(["facts"])
    expect(visit.page.locator("#workers .tile strong")).to_have_text("w-1")
    expect(visit.page.locator("#operations-Attribution-attribute")).to_be_visible()
    address = visit.page.url.removesuffix("/docs")
    assert all(url.startswith((address, "data:")) for url in visit.requests), visit.requests
    assert not visit.errors


def test_jobs_are_updated_by_their_events_and_can_be_cancelled(visit: Visit, broker: FakeBroker) -> None:
    card = visit.page.locator("#jobs .job", has_text="index-job-a")
    expect(card.locator(".row").first).to_contain_text("build")
    expect(card.locator(".badge")).to_have_text("running")
    broker.advance("job-a", "running", stage="gradients", done=25, total=100)
    expect(card.locator("progress")).to_have_js_property("value", 0.25)
    expect(card).to_contain_text("25 of 100 documents")
    assert [url for url in visit.requests if url.endswith("/jobs/job-a/events")]
    cancel = card.get_by_role("button", name="Cancel index-job-a")
    cancel.click()
    expect(cancel).to_have_text("Really cancel?")
    cancel.click()
    expect(card.locator(".badge")).to_have_text("cancelled")
    assert broker.records["job-a"].state == "cancelled"
    assert not visit.errors


def test_the_page_asks_for_a_key_sends_it_with_every_call_and_asks_again_after_its_revocation(
    open_page: Callable[..., Visit], tmp_path: Path, broker: FakeBroker
) -> None:
    page = open_page("/docs", haste=10).page
    message = page.locator("#key-message")
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
    broker.advance("job-a", "running", stage="gradients", done=25, total=100)
    expect(page.locator("#jobs .job", has_text="index-job-a")).to_contain_text("25 of 100 documents")
    KeyFile(tmp_path).revoke("ada")
    expect(message).to_contain_text("The key was refused")
    expect(page.locator(".board")).to_be_hidden()
    page.get_by_role("button", name="Forget the key").click()
    expect(message).to_contain_text("needs an API key")
