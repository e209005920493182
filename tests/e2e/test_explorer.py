"""The explorer against real processes: an index is built in the page, asked, linked, and a document is taken down."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from service.cli.support.process_group import ProcessGroup
from tests import tiny

pytestmark = [pytest.mark.e2e, pytest.mark.browser]

TIMEOUT_MS = 120_000


def test_a_person_builds_asks_verifies_links_and_takes_down(
    browser: Browser, start_service: Callable[..., ProcessGroup], sources: Path
) -> None:
    system, page = start_service(), browser.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    expect.set_options(timeout=TIMEOUT_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    # On a busy machine a worker may be late to say that it lives, and the page asks for that every few seconds.
    page.on(
        "console",
        lambda message: (
            message.type == "error"
            and not message.location["url"].endswith("/readyz")
            and errors.append(f"{message.text} {message.location['url']}")
        ),
    )

    page.goto(f"{system.url}/")
    page.get_by_role("link", name="Build an index").click()
    page.get_by_label("Name").fill("facts")
    page.get_by_label("Model").fill(str(sources / "model"))
    page.get_by_label("Dataset", exact=False).fill(str(sources / "documents.jsonl"))
    page.get_by_label("Column of the ids").fill("id")
    page.get_by_label("Columns of metadata").fill("source")
    page.get_by_role("button", name="Build", exact=True).click()
    expect(page.locator("#build .badge")).to_have_text("succeeded")
    page.get_by_role("link", name="Back").click()

    text = tiny.texts(40)[5]
    page.get_by_label("Prompt", exact=True).fill(text[:8])
    page.get_by_role("textbox", name="Completion").fill(text[8:])
    page.get_by_role("button", name="Ask", exact=True).click()
    best = page.locator(".proponents .result").first
    expect(best.locator(".sample-text")).to_have_text(text)
    expect(page.locator(".token").first).to_be_visible()
    page.get_by_role("button", name="Unlearn the best 3 for real").click()
    expect(page.locator(".verified").first).to_be_visible()

    page.get_by_role("button", name="Link", exact=True).click()
    link = page.get_by_role("textbox", name="Permanent link").input_value()
    page.get_by_role("button", name="Close").click()
    best.get_by_role("button", name="Open document").click()
    dialog = page.get_by_role("dialog")
    name = (dialog.get_by_role("heading").text_content() or "").removeprefix("Document ")
    expect(dialog.locator(".sample-text")).to_have_text(text)
    dialog.get_by_role("button", name="Take down…").click()
    dialog.get_by_role("button", name="Take it down for good").click()
    expect(dialog).to_contain_text("was taken down")
    dialog.get_by_role("button", name="Close").click()
    expect(page.locator(".results code", has_text=name)).to_have_count(0)

    page.goto(link)
    expect(page.locator("#answer")).to_contain_text("are not in the index any more")
    expect(page.locator(".results code", has_text=name)).to_have_count(0)
    assert not errors
