"""What the explorer shows when there is no answer: nothing yet, waiting, errors, no key, no index."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from bergson_core.errors import BergsonError, InvalidInput, NoWorker, QueueFull
from service.auth.api_keys import KeyFile
from service.openapi import examples, link_examples
from tests.service.fake_broker import FakeBroker
from tests.service.helpers import make_key_header
from tests.service.pages.test_explorer import address_of, ask
from tests.service.pages.visit import Visit
from tests.worker.helpers import wait_until

pytestmark = pytest.mark.browser


def test_the_first_visit_explains_the_page_in_two_sentences_once(open_page: Callable[..., Visit]) -> None:
    page = open_page().page
    welcome = page.get_by_role("complementary", name="Introduction")
    assert (welcome.locator("p").text_content() or "").count(".") == 2
    welcome.get_by_role("button", name="Got it").click()
    expect(welcome).to_have_count(0)
    page.reload()
    expect(page.locator("#ask")).to_be_visible()
    expect(welcome).to_have_count(0)


def test_indexes_and_running_builds_are_listed_until_something_is_asked(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    page = open_page().page
    expect(page.locator(".indexes .tile strong")).to_have_text(["facts"])
    broker.advance("job-a", "running", stage="gradients", done=25, total=100)
    expect(page.locator(".indexes .job")).to_contain_text("25 of 100 documents")
    ask(page)
    expect(page.locator(".indexes")).to_have_count(0)


def test_without_an_index_the_page_leads_to_a_build(
    open_page: Callable[..., Visit], broker: FakeBroker, tmp_path: Path
) -> None:
    (tmp_path / "indexes" / "facts" / "manifest.json").unlink()
    (tmp_path / "indexes" / "facts").rmdir()
    broker.advance("job-a", "cancelled")
    page = open_page().page
    expect(page.get_by_role("heading", name="There is no index yet")).to_be_visible()
    expect(page.get_by_role("link", name="Build an index")).to_be_visible()


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (NoWorker("no worker is alive; start one"), "The worker needs the same Redis"),
        (QueueFull("too many queries wait"), "more questions than it can answer"),
        (InvalidInput("column 'x': no such column"), "column 'x': no such column"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_says_what_to_do_and_the_question_can_be_asked_again(
    open_page: Callable[..., Visit], broker: FakeBroker, error: BergsonError, advice: str
) -> None:
    visit = open_page(haste=10)
    page = visit.page
    expect(page.locator("#ask")).to_be_visible()
    broker.error = error
    ask(page)
    problem = page.locator("#answer [role=alert]")
    expect(problem).to_contain_text(str(error))
    expect(problem).to_contain_text(advice)
    expect(problem).to_contain_text("request")
    broker.error = None
    problem.get_by_role("button", name="Try again").click()
    expect(page.locator(".proponents .result")).to_have_count(2)
    expect(problem).to_have_count(0)


def test_what_a_message_puts_between_backticks_is_shown_as_code(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    page = open_page().page
    expect(page.locator("#ask")).to_be_visible()
    broker.error = NoWorker("start one with `bergson worker`, not with ` alone")
    ask(page)
    problem = page.locator("#answer [role=alert]")
    expect(problem.locator("code").first).to_have_text("bergson worker")
    expect(problem).to_contain_text("start one with bergson worker, not with ` alone")


def test_a_question_that_takes_long_shows_that_it_is_being_answered(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    page = open_page(address_of(prompt="wait", completion=" London")).page
    expect(page.get_by_role("status", name="The question is being answered")).to_be_visible()
    expect(page.get_by_role("button", name="Asking…")).to_be_disabled()
    page.goto(page.url.partition("#")[0] + "#")
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()
    wait_until(lambda: broker.withdrawn_prompts == ["wait"])


def test_the_page_asks_for_a_key_and_asks_again_after_its_revocation(
    open_page: Callable[..., Visit], tmp_path: Path
) -> None:
    key = make_key_header(tmp_path)["Authorization"].removeprefix("Bearer ")
    page = open_page(haste=10).page
    message = page.locator("#key-message")
    expect(message).to_contain_text("needs an API key")
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Use the key").click()
    ask(page)
    expect(page.locator(".proponents .result")).to_have_count(2)
    KeyFile(tmp_path).revoke("ada")
    expect(message).to_contain_text("The key was refused")
    expect(page.locator(".answer")).to_have_count(0)


def test_words_that_cannot_be_shaded_can_be_asked_without(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    page = open_page().page
    expect(page.locator("#ask")).to_be_visible()
    broker.error = InvalidInput("an index of a training run has no scores of tokens")
    ask(page)
    expect(page.locator("#answer [role=alert]")).to_be_visible()
    broker.error = None
    page.get_by_role("button", name="Ask for the texts alone").click()
    expect(page.locator(".proponents .result")).to_have_count(2)
    assert "tokens" not in broker.queries[-1][0].include


def test_a_key_that_may_only_read_is_told_what_it_may_not_do_and_why(
    open_page: Callable[..., Visit], tmp_path: Path
) -> None:
    key = make_key_header(tmp_path)["Authorization"].removeprefix("Bearer ")
    visit = open_page()
    page = visit.page
    page.get_by_label("API key").fill(key)
    page.keyboard.press("Enter")
    ask(page)
    page.get_by_label("Put document doc-0 into the basket").check()
    locked = page.locator(".locked")
    expect(locked).to_contain_text(
        "Your API key ada may read. To unlearn documents for a try, a key that may write"
    )
    expect(page.get_by_role("button", name="Unlearn them together")).to_have_count(0)
    page.get_by_role("button", name="Behaviour", exact=True).click()
    page.get_by_role("button", name="Make a behaviour…").click()
    expect(page.get_by_role("dialog").locator(".locked")).to_contain_text(
        "To make behaviours, a key that may write"
    )
    page.keyboard.press("Escape")
    page.goto(page.url.partition("#")[0] + "#build=1")
    expect(page.locator("#build .locked")).to_contain_text("bergson keys create NAME --scope write")
    expect(page.locator("#build button", has_text="Estimate")).to_have_count(0)
    page.goto(page.url.partition("#")[0] + "#")
    expect(page.locator(".indexes .job")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    assert [error for error in visit.errors if "401" not in error] == []


def test_a_key_that_may_only_read_cannot_take_a_document_down(
    open_page: Callable[..., Visit], tmp_path: Path
) -> None:
    key = make_key_header(tmp_path)["Authorization"].removeprefix("Bearer ")
    page = open_page().page
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Use the key").click()
    page.route("**/documents/*", lambda route: route.fulfill(json=examples.DOCUMENT))
    ask(page)
    page.get_by_role("button", name="Open document doc-0").click()
    expect(page.get_by_role("dialog").locator(".locked")).to_contain_text("To take documents down")
    expect(page.get_by_role("button", name="Take down…")).to_have_count(0)


def test_a_link_fills_the_form_so_that_a_person_can_go_on_asking(open_page: Callable[..., Visit]) -> None:
    request = {
        "index": "facts",
        "prompt": "Ada was born in",
        "completion": " London",
        "order": "fused",
        "top_k": 5,
    }
    visit = open_page("/docs")
    page = visit.page
    page.route("**/links/*", lambda route: route.fulfill(json=link_examples.LINK | {"request": request}))
    page.goto(page.url.replace("/docs", f"/#link={link_examples.LINK['id']}"))
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("Ada was born in")
    expect(page.get_by_role("textbox", name="Completion")).to_have_value(" London")
    page.get_by_text("Options").click()
    expect(page.get_by_label("Documents on each side")).to_have_value("5")
    expect(page.get_by_label("Order")).to_have_value("fused")
    expect(page.get_by_label("Shade the words")).not_to_be_checked()


def test_a_filter_that_no_document_fits_is_told_instead_of_two_empty_columns(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    broker.texts = []
    page = open_page(address_of(completion=" London", filter={"source": ["news"]})).page
    expect(page.locator(".answer")).to_contain_text("No document of the index fits the filter")
    expect(page.locator(".column")).to_have_count(0)
    expect(page.get_by_role("button", name="Unlearn the best 3")).to_be_disabled()


def test_a_button_leads_from_picked_documents_to_the_basket(open_page: Callable[..., Visit]) -> None:
    page = open_page(address_of(completion=" London"), viewport={"width": 390, "height": 800}).page
    page.get_by_label("Put document doc-0 into the basket").check()
    page.get_by_label("Put document doc-1 into the basket").check()
    page.get_by_role("button", name="2 documents in the basket").click()
    expect(page.get_by_role("form", name="Basket")).to_be_in_viewport()
