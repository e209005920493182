"""Totals by a metadata column as bars, and results that the service has folded into groups."""

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from service.openapi import totals_examples
from tests.service.fake_broker import FakeBroker
from tests.service.pages.test_explorer import address_of, ask, last_query
from tests.service.pages.visit import HOSTILE, Visit

pytestmark = pytest.mark.browser

ANSWER = address_of(prompt="Ada was born in", completion=" London", direction="both", span=[1, 7])


def open_totals(page: Page) -> None:
    page.get_by_text("Totals over all documents").click()
    page.get_by_role("button", name="Sum", exact=True).click()


def test_totals_are_of_the_question_that_was_asked(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    visit = open_page(ANSWER)
    open_totals(visit.page)
    rows = visit.page.get_by_role("list", name="Totals by source").get_by_role("listitem")
    expect(rows).to_contain_text(["wiki", "no value", "forum"])
    expect(rows.first).to_contain_text("3.90[3.10, 4.70]612 documents")
    query = last_query(broker)
    assert (query.prompt, query.completion, query.span) == ("Ada was born in", " London", (1, 7))
    assert broker.totals_specs[-1].by == "source"
    assert not visit.errors


def test_bars_of_sums_begin_at_zero_on_one_scale(open_page: Callable[..., Visit]) -> None:
    page = open_page(ANSWER).page
    open_totals(page)
    bars = page.locator(".total-bar .fill")
    expect(bars).to_have_count(3)
    spans = bars.evaluate_all("nodes => nodes.map(({ style }) => [style.left, style.width].map(parseFloat))")
    # The axis reaches from the lowest end of an interval, -0.91, to the highest, 4.7.
    zero = 100 * 0.91 / 5.61
    assert spans[0] == [pytest.approx(zero, abs=0.01), pytest.approx(100 * 3.9 / 5.61, abs=0.01)]
    assert spans[1] == [pytest.approx(zero, abs=0.01), 0]
    assert spans[2] == [
        pytest.approx(zero - 100 * 0.62 / 5.61, abs=0.01),
        pytest.approx(100 * 0.62 / 5.61, abs=0.01),
    ]
    expect(page.locator(".whisker")).to_have_count(2)  # one sum has no interval


def test_a_sum_filters_by_its_value_with_the_keyboard_alone(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    page = open_page(ANSWER).page
    page.locator(".totals summary").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Sum by")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    value = page.locator(".totals-list").get_by_role("button", name="forum")
    value.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Remove the filter source")).to_be_visible()
    assert last_query(broker).model_dump()["filter"] == {"source": ("forum",)}


def test_hostile_values_of_totals_are_shown_as_text_and_an_error_in_full(
    open_page: Callable[..., Visit],
) -> None:
    visit = open_page(ANSWER)
    page = visit.page
    group = totals_examples.TOTALS_RESPONSE["groups"][0]
    values = [HOSTILE, "left \u202e right \u200b", "x" * 10_000, 7, True, None, {"a": 1}]
    groups = [group | {"value": value} for value in values]
    body: dict[str, Any] = totals_examples.TOTALS_RESPONSE | {"groups": groups, "group_count": 500}
    page.route("**/totals", lambda route: route.fulfill(json=body))
    open_totals(page)
    rows = page.locator(".totals-list li")
    expect(rows).to_have_count(7)
    expect(rows.first.locator(".chip")).to_have_text(HOSTILE)
    expect(page.locator(".totals")).to_contain_text("the largest 7 of 500 sums")
    assert page.locator("#page img, #page script").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.route(
        "**/totals", lambda route: route.fulfill(status=429, json={"title": "Queue full", "detail": HOSTILE})
    )
    page.get_by_role("button", name="Sum", exact=True).click()
    expect(page.locator(".totals [role=alert]")).to_contain_text(HOSTILE)
    assert [error for error in visit.errors if "429" not in error] == []


def test_near_copies_are_folded_by_the_service_if_that_is_chosen(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    page = open_page().page
    page.get_by_text("Options").click()
    page.get_by_label("Fold").select_option("near_duplicates")
    expect(page.get_by_label("Shade the words of each document")).to_be_disabled()
    ask(page)
    card = page.locator(".proponents .result")
    expect(card).to_have_count(1)
    expect(card.locator(".group")).to_contain_text("2 documents, together 1.50")
    query = last_query(broker)
    assert (query.group_by, "tokens" in query.include) == ("near_duplicates", False)
    card.get_by_role("button", name="Show the others").click()
    expect(card.locator(".member")).to_contain_text("0.700 doc-1")
    page.reload()
    expect(page.get_by_label("Fold")).to_have_value("near_duplicates")


def test_results_are_folded_by_a_column_with_the_keyboard_alone(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    page = open_page().page
    page.get_by_text("Options").focus()
    page.keyboard.press("Enter")
    page.get_by_label("Fold").focus()
    page.keyboard.type("all of the same source")
    page.get_by_label("Prompt", exact=True).focus()
    page.keyboard.type("Ada was born in")
    page.keyboard.press("Control+Enter")
    group = page.locator(".proponents .group")
    expect(group).to_contain_text("wiki: 2 documents")
    assert last_query(broker).group_by == "source"
    group.get_by_role("button", name="Show the others").press("Enter")
    group.get_by_role("button", name="Open document doc-1").press("Enter")
    expect(page.get_by_role("dialog", name="Document doc-1")).to_be_visible()
