"""What is very long, very many or hostile leaves the page usable, and so does what disappears while it is shown."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from bergson_core.errors import NoWorker
from bergson_core.schemas.build import BuildSpec
from service.openapi import examples
from tests.service.fake_broker import FakeBroker, publish_manifest
from tests.service.pages.test_explorer import address_of, ask, last_query
from tests.service.pages.visit import HOSTILE, Visit
from tests.worker.helpers import wait_until

pytestmark = pytest.mark.browser

REVERSING = "left \u202e right \u200b\u2066 مرحبا"


def answer_with(page: Page, **fields: object) -> None:
    """Lets the service answer with two results that have these fields."""
    rows = [
        examples.ATTRIBUTE_RESPONSE["results"][0] | {"id": f"doc-{n}", "rank": n} | fields for n in (1, 2)
    ]
    body: dict[str, Any] = examples.ATTRIBUTE_RESPONSE | {"results": rows}
    page.route("**/attribute", lambda route: route.fulfill(json=body))
    ask(page)


@pytest.mark.parametrize("width", [390, 1440])
def test_very_long_texts_ids_and_values_neither_widen_the_page_nor_fill_it(
    open_page: Callable[..., Visit], width: int
) -> None:
    page = open_page("/", viewport={"width": width, "height": 800}).page
    long = "x" * 10_000
    answer_with(page, id=long, prompt=long, metadata={long[:300]: long, "tags": [long, long]})
    card = page.locator(".proponents .result").first
    expect(card).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    height = card.evaluate("node => node.getBoundingClientRect().height")
    assert height < 1600
    assert len(card.locator(".chip").first.text_content() or "") < 300


def test_a_long_question_is_scrolled_with_the_keyboard(open_page: Callable[..., Visit]) -> None:
    page = open_page(address_of(prompt="word " * 2000, completion=" London")).page
    question = page.locator(".query")
    expect(question).to_have_attribute("tabindex", "0")
    question.focus()
    page.keyboard.press("End")
    wait_until(
        lambda: question.evaluate("node => node.scrollTop > 0")
    )  # the page's policy forbids wait_for_function


def test_hundreds_of_columns_are_shown_when_they_are_asked_for(open_page: Callable[..., Visit]) -> None:
    page = open_page("/").page
    answer_with(page, metadata={f"column-{number}": f"value-{number % 3}" for number in range(500)})
    facets, card = page.locator(".facet"), page.locator(".proponents .result").first
    expect(facets).to_have_count(6)
    expect(card.locator(".chip")).to_have_count(8)
    page.get_by_role("button", name="494 more columns").click()
    expect(facets).to_have_count(500)
    card.get_by_role("button", name="492 more").click()
    expect(card.locator(".chip")).to_have_count(500)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_text_that_changes_its_direction_does_not_turn_the_words_after_it(
    open_page: Callable[..., Visit],
) -> None:
    visit = open_page("/")
    page = visit.page
    answer_with(page, id=REVERSING, metadata={REVERSING: HOSTILE})
    card = page.locator(".proponents .result").first
    for selector in ("code", ".chip", ".chip b"):
        node = card.locator(selector).first
        assert REVERSING in (node.text_content() or "")
        assert node.evaluate("node => getComputedStyle(node).unicodeBidi") == "isolate"
    assert page.locator("#page img, #page script").count() == 0
    assert not [error for error in visit.errors if "404" not in error]


def test_the_options_show_the_number_of_documents_of_an_address(open_page: Callable[..., Visit]) -> None:
    page = open_page(address_of(completion=" London", top_k=30)).page
    page.get_by_text("Options").click()
    expect(page.get_by_label("Documents on each side")).to_have_value("30")


def test_more_documents_than_the_model_reads_again_are_asked_for_without_shades(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    page = open_page().page
    page.get_by_text("Options").click()
    page.get_by_label("Documents on each side").select_option("100")
    expect(page.get_by_label("Shade the words")).to_be_disabled()
    expect(page.locator(".options")).to_contain_text("Words are shaded for at most 32 documents")
    ask(page)
    expect(page.locator(".proponents .result")).to_have_count(2)
    query = last_query(broker)
    assert (query.top_k, "tokens" in query.include) == (100, False)


def test_a_prompt_that_changes_its_direction_does_not_turn_the_completion(
    open_page: Callable[..., Visit],
) -> None:
    page = open_page(address_of(prompt=REVERSING, completion=" was born in London")).page
    boxes = [page.locator(".word", has_text=word).bounding_box() for word in ("was", "London")]
    assert boxes[0] is not None
    assert boxes[1] is not None
    assert boxes[0]["x"] < boxes[1]["x"]


def test_an_answer_stays_when_its_index_is_deleted_and_the_next_question_says_so(
    open_page: Callable[..., Visit], tmp_path: Path
) -> None:
    page = open_page(address_of(completion=" London")).page
    expect(page.locator(".proponents .result")).to_have_count(2)
    expect(page.get_by_text("Totals over all documents")).to_be_visible()  # the columns are known
    shutil.rmtree(tmp_path / "indexes" / "facts")
    with page.expect_response(re.compile("/index($|[?])")):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(50)  # what came is shown
    expect(page.locator(".proponents .result")).to_have_count(2)
    page.get_by_text("Totals over all documents").click()
    page.route(
        "**/totals",
        lambda route: route.fulfill(
            status=404, json={"title": "Index not found", "detail": "no index", "code": "index_not_found"}
        ),
    )
    page.get_by_role("button", name="Sum", exact=True).click()
    expect(page.locator(".totals [role=alert]")).to_contain_text("It was deleted")


def test_a_service_without_a_worker_says_what_waits_and_what_to_do(
    open_page: Callable[..., Visit], broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_workers(*_: object) -> list[object]:
        return []

    monkeypatch.setattr(broker, "list_workers", no_workers)
    page = open_page().page
    trouble = page.locator("#page > .warning")
    expect(trouble).to_contain_text(
        "Questions and builds go on as soon as a worker has been started: bergson worker"
    )
    broker.error = NoWorker("no worker is alive")
    ask(page)
    problem = page.locator("#answer [role=alert]")  # what is shown above is not said again
    expect(problem).to_contain_text("No live worker")
    expect(problem).not_to_contain_text("no worker is alive")
    monkeypatch.undo()
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(trouble).to_have_count(0)


def test_a_full_service_counts_down_to_the_next_try(open_page: Callable[..., Visit]) -> None:
    page = open_page().page
    problem = {"title": "Queue full", "detail": "too many queries wait", "code": "queue_full"}
    page.route(
        "**/attribute", lambda route: route.fulfill(status=429, headers={"Retry-After": "2"}, json=problem)
    )
    ask(page)
    alert = page.locator("#answer [role=alert]")
    expect(alert.get_by_role("button")).to_be_disabled()
    expect(alert.get_by_role("progressbar", name="Until the next try")).to_be_visible()
    expect(alert.get_by_role("button", name="Try again", exact=True)).to_be_enabled()


def test_steps_of_a_training_run_are_chosen_and_compared(
    open_page: Callable[..., Visit], broker: FakeBroker, spec: BuildSpec, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "indexes" / "facts", ignore_errors=True)
    models = {"model": "c", "models": ("a", "b", "c")}
    publish_manifest(tmp_path / "indexes", "run", spec.model_copy(update=models))
    page = open_page().page
    page.get_by_role("combobox", name="Index").select_option("run")
    page.get_by_text("Options").click()
    page.get_by_label("Learned after checkpoint").select_option("0")
    page.get_by_label("and before checkpoint").select_option("1")
    ask(page)
    expect(page.locator(".proponents .result")).to_have_count(2)
    assert last_query(broker).between == (0, 1)
    page.get_by_label("Compare with").select_option(label="learned from checkpoint 1 to 2")
    expect(page.get_by_role("region", name="learned from checkpoint 0 to 1")).to_be_visible()
    expect(page.get_by_role("region", name="learned from checkpoint 1 to 2")).to_be_visible()
    assert last_query(broker).between == (1, 2)
