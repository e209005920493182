"""The pages have no serious barrier, fit every width, and can be read in both themes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.service.helpers import make_key_header
from tests.service.pages.test_explorer import address_of
from tests.service.pages.visit import Visit
from tests.service.routes.test_behaviours import keep_behaviour

pytestmark = pytest.mark.browser

ANSWER = address_of(
    completion="London, said the text",
    include=["text", "metadata", "tokens", "background"],
    verify={"top": 1},
)
THEMES = ("light", "dark")


def find_barriers(page: Page) -> list[dict[str, Any]]:
    """Returns the violations that axe-core calls serious or critical."""
    violations = Axe().run(page).response["violations"]
    return [
        {"id": violation["id"], "nodes": [node["html"] for node in violation["nodes"]]}
        for violation in violations
        if violation["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("theme", THEMES)
def test_the_start_of_the_explorer_has_no_serious_barrier(
    open_page: Callable[..., Visit], theme: str
) -> None:
    page = open_page("/", color_scheme=theme).page
    expect(page.locator(".indexes .tile")).to_be_visible()
    page.get_by_text("Options").click()
    assert find_barriers(page) == []


@pytest.mark.parametrize("theme", THEMES)
def test_an_answer_in_the_explorer_has_no_serious_barrier(
    open_page: Callable[..., Visit], theme: str
) -> None:
    page = open_page(ANSWER, color_scheme=theme).page
    expect(page.locator(".proponents .result")).to_have_count(2)
    page.get_by_role("button", name="What is a score?").first.click()
    page.get_by_role("button", name="Chat").click()
    page.get_by_text("Totals over all documents").click()
    page.get_by_role("button", name="Sum", exact=True).click()
    expect(page.locator(".totals-list li")).to_have_count(3)
    page.locator(".marks").focus()
    assert find_barriers(page) == []


@pytest.mark.parametrize("theme", THEMES)
def test_behaviours_and_what_a_key_may_not_do_have_no_serious_barrier(
    open_page: Callable[..., Visit], tmp_path: Path, theme: str
) -> None:
    keep_behaviour(tmp_path / "indexes" / "facts", "agreeing")
    key = make_key_header(tmp_path)["Authorization"].removeprefix("Bearer ")
    page = open_page(address_of(prompt=None, behaviour="agreeing"), color_scheme=theme).page
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Use the key").click()
    page.get_by_label("Put document doc-0 into the basket").check()
    page.get_by_role("button", name="See its questions").click()
    expect(page.get_by_role("dialog").locator(".locked")).to_be_visible()
    assert find_barriers(page) == []


@pytest.mark.parametrize("theme", THEMES)
def test_the_dashboard_has_no_serious_barrier(open_page: Callable[..., Visit], theme: str) -> None:
    page = open_page("/docs", color_scheme=theme).page
    expect(page.locator("#workers .tile")).to_be_visible()
    violations = Axe().run(page, context={"include": [[".top"], ["#board"]]}).response["violations"]
    assert [item["id"] for item in violations if item["impact"] in ("serious", "critical")] == []


@pytest.mark.parametrize("width", [320, 390, 768, 1440, 1920])
@pytest.mark.parametrize("path", ["/", ANSWER, "/docs"], ids=["start", "answer", "docs"])
def test_nothing_scrolls_sideways(open_page: Callable[..., Visit], width: int, path: str) -> None:
    page = open_page(path, viewport={"width": width, "height": 800}).page
    expect(page.locator(".indexes .tile, .result, #indexes .tile").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_on_a_phone_the_text_of_a_result_comes_before_its_numbers(open_page: Callable[..., Visit]) -> None:
    page = open_page(ANSWER, viewport={"width": 390, "height": 800}).page
    card = page.locator(".result").first
    text, numbers = card.locator(".sample-text").bounding_box(), card.locator(".score").bounding_box()
    assert text and numbers
    assert text["y"] + text["height"] <= numbers["y"]
    assert text["width"] > 300


def test_on_a_phone_the_text_of_the_first_result_is_on_the_first_screen_of_an_answer(
    open_page: Callable[..., Visit],
) -> None:
    page = open_page(ANSWER, viewport={"width": 390, "height": 800}).page
    text = page.locator(".proponents .sample-text").first
    expect(text).to_be_in_viewport(ratio=0.9)
    tools = page.get_by_role("button", name="Link", exact=True)
    expect(tools).to_be_hidden()
    page.get_by_text("About this answer").click()
    expect(tools).to_be_visible()
    expect(page.locator(".background")).to_be_visible()


def test_a_definition_opens_and_closes_with_the_keyboard(open_page: Callable[..., Visit]) -> None:
    page = open_page(ANSWER).page
    button = page.get_by_role("button", name="What is a score?").first
    button.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("note")).to_contain_text("above 0")
    page.keyboard.press("Escape")
    expect(page.get_by_role("note")).to_have_count(0)
    expect(button).to_be_focused()
