"""The histogram of random documents' scores, with the results marked on it."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from service.openapi import examples
from tests.service.fake_broker import FakeBroker
from tests.service.pages.test_explorer import address_of, ask, last_query
from tests.service.pages.visit import HOSTILE, Visit

pytestmark = pytest.mark.browser

ANSWER = address_of(completion=" London", include=["text", "background"], direction="both")


def places(page: Page, selector: str) -> list[float]:
    """Returns where marks are, in percent of the width."""
    marks = page.locator(selector)
    return [float(text.rstrip("%")) for text in marks.evaluate_all("nodes => nodes.map((n) => n.style.left)")]


def test_every_result_is_marked_where_its_score_is(open_page: Callable[..., Visit]) -> None:
    visit = open_page(ANSWER)
    page = visit.page
    expect(page.locator(".background")).to_contain_text(
        "Of 1,000 random documents, half score below 0.000204 and 99 of 100 below 0.118. "
        "2 results score above all of them."
    )
    # The scores are -0.2, -0.175, 0.7 and 0.8; random documents score from -0.3 to 0.3.
    assert places(page, ".mark.negative") == [pytest.approx(9.09, abs=0.01), pytest.approx(11.36, abs=0.01)]
    assert places(page, ".mark:not(.negative)") == [pytest.approx(90.91, abs=0.01), 100]
    assert not visit.errors


def test_the_bars_are_as_high_as_the_logarithms_of_their_counts(open_page: Callable[..., Visit]) -> None:
    page = open_page(ANSWER).page
    outline = page.locator(".plot .bars").get_attribute("d") or ""
    tops = [float(step.split(",")[1]) for step in outline.split("L")[1:-1:2]]
    # log(10), log(981) and log(12), in parts of the highest, which reaches from 60 to 0.
    assert tops == [pytest.approx(39.9, abs=0.1), 0, pytest.approx(38.4, abs=0.1)]


def test_a_mark_tells_its_result_and_leads_to_its_card_by_mouse(open_page: Callable[..., Visit]) -> None:
    page = open_page(ANSWER).page
    page.locator(".mark").first.hover()
    expect(page.locator(".marks .readout")).to_have_text("−0.200 rank 1, not-doc-0")
    page.locator(".mark").first.click()
    expect(page.locator(".opponents .result").first).to_be_focused()


def test_marks_are_read_out_and_followed_with_the_keyboard_alone(open_page: Callable[..., Visit]) -> None:
    page = open_page(ANSWER).page
    page.get_by_role("button", name="What is this histogram?").focus()
    page.keyboard.press("Tab")
    readout = page.locator(".marks .readout")
    expect(readout).to_have_text("0.800 rank 1, doc-0")
    page.keyboard.press("ArrowLeft")
    expect(readout).to_have_text("0.700 rank 2, doc-1")
    page.keyboard.press("Enter")
    expect(page.locator(".proponents .result").nth(1)).to_be_focused()


def test_exact_scores_are_not_marked_among_scores_of_the_index(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    page = open_page().page
    page.get_by_text("Options").click()
    page.get_by_label("Score the best 200 exactly").check()
    ask(page)
    expect(page.locator(".proponents .result")).to_have_count(2)
    assert "background" not in last_query(broker).include
    expect(page.locator(".background")).to_have_count(0)


def test_one_score_and_hostile_ids_are_shown_as_they_are(open_page: Callable[..., Visit]) -> None:
    visit = open_page("/")
    page = visit.page
    row = examples.ATTRIBUTE_RESPONSE["results"][0] | {"id": HOSTILE, "score": 0.0}
    background = {"edges": [0.0, 0.0], "counts": [1]}
    body = examples.ATTRIBUTE_RESPONSE | {"results": [row], "background": background}
    page.route("**/attribute", lambda route: route.fulfill(json=body))
    ask(page)
    page.locator(".marks").focus()
    expect(page.locator(".marks .readout")).to_have_text(f"0 rank 1, {HOSTILE}")
    assert page.locator("#page img, #page script").count() == 0
    assert not visit.errors
