"""Everything that the explorer offers is done with the keyboard alone: a test for each part of the page."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from bergson_core.schemas.build import BuildSpec
from service.indexes import catalog
from service.openapi import examples, link_examples
from tests.service.fake_broker import FakeBroker, publish_manifest
from tests.service.pages.test_explorer import address_of, last_query
from tests.service.pages.visit import Visit
from tests.worker.helpers import wait_until
from worker.messages import UnlearnJob

pytestmark = pytest.mark.browser

ANSWER = address_of(completion=" London", direction="both", include=["text", "metadata", "tokens", "words"])
MAX_STOPS = 150


def go_to(page: Page, target: Locator, key: str = "Tab") -> None:
    """Presses Tab, or Shift+Tab, until the target has the focus."""
    expect(target).to_be_visible()
    for _ in range(MAX_STOPS):
        if target.evaluate("node => node === document.activeElement"):
            return
        page.keyboard.press(key)
    raise AssertionError(f"{target} is no stop of the keyboard")


def press(page: Page, target: Locator, key: str = "Enter") -> None:
    """Goes to a target, and presses a key there."""
    go_to(page, target)
    page.keyboard.press(key)


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def test_ask_with_the_keyboard(
    open_page: Callable[..., Visit], broker: FakeBroker, spec: BuildSpec, tmp_path: Path
) -> None:
    publish_manifest(tmp_path / "indexes", "news", spec)
    page = open_page().page
    go_to(page, page.get_by_role("combobox", name="Index"))
    page.keyboard.press("ArrowDown")
    go_to(page, page.get_by_label("Prompt", exact=True))
    page.keyboard.type("Ada Lovelace was born in")
    page.keyboard.press("Tab")
    page.keyboard.type("London")
    page.keyboard.press("Control+Enter")
    press(page, button(page, 'Use " London" instead'))
    expect(page.locator(".warning")).to_have_count(0)
    query = last_query(broker)
    assert (query.index, query.prompt, query.completion) == ("news", "Ada Lovelace was born in", " London")


def test_build_with_the_keyboard(open_page: Callable[..., Visit], broker: FakeBroker) -> None:
    page = open_page().page
    press(page, page.get_by_role("link", name="Build an index"))
    go_to(page, page.get_by_label("Name"))
    page.keyboard.type("news")
    go_to(page, page.get_by_label("Model"))
    page.keyboard.type("tiny")
    press(page, button(page, "Texts of your own"))
    go_to(page, page.get_by_role("textbox", name="Documents"))
    page.keyboard.type("Ada was born in London.")
    press(page, button(page, "Estimate first"))
    expect(page.locator(".estimate")).to_contain_text("10,000")
    press(page, button(page, "Build"))
    card = page.locator("#build .job")
    expect(card).to_contain_text("queued")
    press(page, card.get_by_role("button", name="Cancel news"))
    page.keyboard.press("Enter")
    expect(card.locator(".badge")).to_have_text("cancelled")
    assert "news" in broker.specs


def test_point_with_the_keyboard(open_page: Callable[..., Visit], broker: FakeBroker) -> None:
    page = open_page(address_of(completion=" was born in London")).page
    go_to(page, page.locator(".word").first)
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    expect(page.locator(".word.on")).to_have_text(["London"])
    go_to(page, page.get_by_label("Rather than"))
    page.keyboard.type(" Paris")
    press(page, button(page, "Ask about this"))
    expect(page.locator(".explained")).to_contain_text('" Paris" is 3.0 % likely')
    assert (last_query(broker).span, last_query(broker).instead_of) == ((13, 19), " Paris")


def test_see_with_the_keyboard(open_page: Callable[..., Visit], broker: FakeBroker) -> None:
    copy = "Ada Lovelace, whose birthplace is London, was a mathematician"
    broker.texts = [copy, f"{copy}.", "Alan Turing was born in Maida Vale"]
    page = open_page(ANSWER).page
    go_to(page, page.locator(".proponents .sample-text").first)
    expect(page.locator(".proponents .readout").first).to_contain_text("−0.100")
    column = page.locator(".proponents")
    press(page, column.get_by_role("button", name="Show 1 near copy"))
    expect(column.locator(".result .result")).to_have_count(1)
    go_to(page, button(page, "Moved it only"), "Shift+Tab")
    page.keyboard.press("Enter")
    expect(column.locator(".result")).to_have_count(2)
    go_to(page, page.locator(".facet").get_by_role("button", name="wiki"), "Shift+Tab")
    page.keyboard.press("Enter")
    press(page, button(page, "Remove the filter source"))
    expect(button(page, "Remove the filter source")).to_have_count(0)


def test_try_with_the_keyboard(
    open_page: Callable[..., Visit], broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "require_documents", lambda *arguments: None)
    page = open_page(ANSWER).page
    press(page, button(page, "Unlearn the best 3 for real"))
    expect(page.locator(".verified").first).to_contain_text("changes by −2.00")
    press(page, page.get_by_label("Put document doc-0 into the basket"), "Space")
    go_to(page, page.get_by_label("Other questions to watch"), "Shift+Tab")
    page.keyboard.type("Alan was born in | Maida Vale")
    press(page, button(page, "Unlearn them together"))
    expect(page.locator(".basket .job")).to_contain_text("queued")
    job = broker.submitted_jobs[-1]
    assert isinstance(job, UnlearnJob)
    assert [query.completion for query in job.spec.queries] == [" London", " Maida Vale"]


def test_act_with_the_keyboard(open_page: Callable[..., Visit]) -> None:
    page = open_page(ANSWER).page
    page.route("**/links", lambda route: route.fulfill(status=201, json=link_examples.LINK))
    press(page, button(page, "Link"))
    expect(page.get_by_role("textbox", name="Permanent link")).to_be_visible()
    page.keyboard.press("Escape")
    with page.expect_download() as saved:
        press(page, button(page, "JSONL"))
    assert len(saved.value.path().read_text().splitlines()) == 4
    press(page, button(page, "curl"))
    expect(page.get_by_role("textbox", name="As a curl command")).to_have_value(
        re.compile('"completion":" London"')
    )
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(button(page, "curl")).to_be_focused()


def test_take_a_document_down_with_the_keyboard(open_page: Callable[..., Visit]) -> None:
    page = open_page(ANSWER).page
    methods: list[str] = []

    def answer(route: object) -> None:
        methods.append(route.request.method)  # pyright: ignore[reportAttributeAccessIssue]
        is_gone = methods[-1] == "DELETE"
        route.fulfill(status=204 if is_gone else 200, json=None if is_gone else examples.DOCUMENT)  # pyright: ignore[reportAttributeAccessIssue]

    page.route("**/documents/*", answer)
    press(page, page.get_by_role("button", name="Open document doc-0"))
    press(page, button(page, "Take down…"))
    expect(page.get_by_role("dialog")).to_contain_text("This cannot be undone")
    expect(button(page, "Keep it")).to_be_focused()
    page.keyboard.press("Enter")
    expect(button(page, "Take down…")).to_be_focused()
    page.keyboard.press("Enter")
    press(page, button(page, "Take it down for good"))
    expect(page.get_by_role("dialog")).to_contain_text("The document was taken down.")
    expect(button(page, "Close")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator(".proponents .result")).to_have_count(1)
    assert methods == ["GET", "DELETE"]


def test_compare_with_the_keyboard(
    open_page: Callable[..., Visit], broker: FakeBroker, spec: BuildSpec, tmp_path: Path
) -> None:
    publish_manifest(tmp_path / "indexes", "news", spec)
    page = open_page(ANSWER).page
    go_to(page, page.get_by_label("Compare with"))
    page.keyboard.type("news")
    expect(page.get_by_role("region", name="news")).to_be_visible()
    assert last_query(broker).index == "news"
    press(page, button(page, "Back to one answer"))
    expect(page.locator(".answer")).to_have_count(1)


def test_understand_with_the_keyboard(open_page: Callable[..., Visit], broker: FakeBroker) -> None:
    page = open_page().page
    press(page, button(page, "Got it"))
    expect(page.get_by_role("complementary", name="Introduction")).to_have_count(0)
    page.goto(page.url.partition("#")[0] + ANSWER[1:])
    press(page, button(page, "What is this probability?"))
    expect(page.get_by_role("note")).to_contain_text("The probability that the model gives")
    page.keyboard.press("Tab")
    expect(page.get_by_role("note").get_by_role("link")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("note")).to_have_count(0)
    wait_until(lambda: broker.queries)
