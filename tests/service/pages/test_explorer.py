"""The explorer in a real browser: a person asks, points, sees and filters."""

import json
from collections.abc import Callable
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Page, expect

from service.openapi import examples
from tests.service.fake_broker import FakeBroker
from tests.service.pages.visit import HOSTILE, Visit
from tests.worker.helpers import wait_until
from worker.messages import ServiceQuery

pytestmark = pytest.mark.browser


def ask(page: Page, prompt: str = "Ada Lovelace was born in", completion: str = " London") -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("textbox", name="Completion").fill(completion)
    page.get_by_role("button", name="Ask", exact=True).click()


def address_of(**request: object) -> str:
    """Returns the path of the explorer that asks a request."""
    return f"/#{urlencode({'ask': json.dumps({'index': 'facts', 'prompt': 'Ada', **request})})}"


def last_query(broker: FakeBroker) -> ServiceQuery:
    return broker.queries[-1][0]


def test_a_question_is_answered_with_proponents_and_opponents_and_hostile_text_stays_text(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    visit = open_page()
    page = visit.page
    expect(page.get_by_role("combobox", name="Index")).to_have_value("facts")
    ask(page)
    expect(page.locator(".proponents .result")).to_have_count(2)
    expect(page.locator(".opponents .result")).to_have_count(2)
    expect(page.locator(".proponents .result").nth(1).locator(".sample-text")).to_contain_text("<script>")
    assert page.locator("#page img, #page script").count() == 0
    assert page.title() == "Bergson Service"
    query = last_query(broker)
    assert (query.prompt, query.completion, query.direction) == (
        "Ada Lovelace was born in",
        " London",
        "both",
    )
    assert set(query.include) == {"text", "metadata", "tokens", "words", "background"}
    expect(page.locator(".proponents .result-facts").first).to_contain_text("higher than 99.90 %")
    expect(page.locator(".answer")).to_contain_text("no strong influence found")
    expect(page.locator(".answer")).to_contain_text("89 % likely, 2 tokens")
    assert all(url.startswith(page.url.partition("#")[0]) for url in visit.requests)
    assert not visit.errors


def test_the_influence_of_a_position_is_drawn_on_the_token_that_it_predicted(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    broker.texts = ["0123456789 London"]  # its tokens end at 10 and at 17
    page = open_page(address_of(completion=" London", include=["text", "tokens"])).page
    tokens = page.locator(".proponents .token")
    expect(tokens).to_have_text(["0123456789", " London"])
    expect(page.locator(".proponents .token.negative")).to_have_text([" London"])
    page.locator(".proponents .sample-text").focus()
    expect(page.locator(".proponents .readout")).to_have_text("London −0.100")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".proponents .readout")).to_have_text("0123456789 0")


def test_a_preference_pair_is_shaded_in_both_of_its_completions(open_page: Callable[..., Visit]) -> None:
    page = open_page("/").page
    tokens = [
        {"token": token, "start": start, "end": end, "sequence": sequence, "influence": influence}
        for token, start, end, sequence, influence in (
            ("Q", 0, 1, "chosen", 0.4),
            (" yes", 1, 5, "chosen", 0.0),
            ("Q", 0, 1, "rejected", -0.3),
            (" no", 1, 4, "rejected", 0.0),
        )
    ]
    pair = {"prompt": "Q", "completion": " yes", "rejected": " no", "tokens": tokens}
    body = examples.ATTRIBUTE_RESPONSE | {"results": [examples.ATTRIBUTE_RESPONSE["results"][0] | pair]}
    page.route("**/attribute", lambda route: route.fulfill(json=body))
    ask(page)
    expect(page.locator(".proponents .token")).to_have_text(["Q", " yes", "Q", " no"])
    expect(page.locator(".proponents .token.completion")).to_have_text([" yes", " no"])
    expect(page.locator(".proponents .token.negative")).to_have_text([" no"])
    assert page.locator(".proponents .sample-text").text_content() == "Q yes\n\nrejected: Q no"


def test_all_tokens_of_the_page_are_shaded_on_one_scale(open_page: Callable[..., Visit]) -> None:
    page = open_page(address_of(completion=" London", include=["text", "tokens"])).page
    expect(page.locator(".legend")).to_contain_text("0.900 more likely")
    shares = page.locator(".token.negative").evaluate_all(
        "nodes => nodes.map((node) => node.style.getPropertyValue('--share'))"
    )
    assert set(shares) == {"5%"}  # 46 % of 0.1 / 0.9


def test_a_completion_without_its_space_is_mended_with_one_click(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    page = open_page().page
    ask(page, completion="London")
    expect(page.locator(".warning")).to_contain_text("no space before it")
    page.get_by_role("button", name='Use " London" instead').click()
    expect(page.locator(".warning")).to_have_count(0)
    assert last_query(broker).completion == " London"
    expect(page.get_by_role("textbox", name="Completion")).to_have_value(" London")


def test_the_model_writes_a_completion_that_is_left_out(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    page = open_page().page
    ask(page, completion="")
    expect(page.locator(".explained")).to_contain_text("written by the model")
    assert last_query(broker).completion is None


def test_a_chat_is_asked_turn_by_turn(open_page: Callable[..., Visit], broker: FakeBroker) -> None:
    page = open_page().page
    page.get_by_role("button", name="Chat").click()
    page.get_by_label("Message 1", exact=True).fill("Where was Ada born?")
    page.get_by_label("What the assistant says").fill("In London.")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator(".answer")).to_be_visible()
    assert last_query(broker).messages == (
        {"role": "user", "content": "Where was Ada born?"},
        {"role": "assistant", "content": "In London."},
    )


def test_words_are_selected_with_the_mouse_and_contrasted_with_others(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    page = open_page(address_of(completion=" 👩 was born in London in 1815")).page
    words = page.locator(".word")
    words.nth(4).hover()
    page.mouse.down()
    words.nth(6).hover()
    page.mouse.up()
    expect(page.locator(".word.on")).to_have_text(["London", "in", "1815"])
    page.get_by_label("Rather than").fill("Paris")
    page.get_by_role("button", name="Ask about this").click()
    expect(page.locator(".explained")).to_contain_text('"Paris" is 3.0 % likely')
    query = last_query(broker)
    assert (query.span, query.instead_of) == ((15, 29), "Paris")
    assert query.completion is not None and query.completion[slice(*query.span)] == "London in 1815"
    expect(page.locator(".word.on")).to_have_text(["London", "in", "1815"])


def test_words_are_selected_with_the_keyboard_alone(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    page = open_page(address_of(completion=" was born in London")).page
    page.locator(".word").first.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "Space"):
        page.keyboard.press(key)
    expect(page.locator(".word.on")).to_have_text(["London"])
    page.keyboard.press("Shift+ArrowLeft")
    expect(page.locator(".word.on")).to_have_text(["in", "London"])
    page.keyboard.press("Escape")
    expect(page.locator(".word.on")).to_have_count(0)
    page.keyboard.press("Enter")
    expect(page.locator(".word.on")).to_have_text(["in"])
    page.keyboard.press("Tab")  # to the definition of the probability
    page.keyboard.press("Tab")  # to the alternative
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Ask about this")).to_be_disabled()
    assert last_query(broker).span == (10, 12)


def test_a_value_of_the_metadata_filters_and_the_filter_can_be_removed(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    page = open_page(address_of(completion=" London")).page
    page.locator(".facet").get_by_role("button", name="wiki").click()
    expect(page.get_by_role("button", name="Remove the filter source")).to_be_visible()
    query = last_query(broker).model_dump()
    assert query["filter"] == {"source": ("wiki",)}
    page.get_by_role("button", name="Remove the filter source").click()
    expect(page.get_by_role("button", name="Remove the filter source")).to_have_count(0)


def test_near_duplicates_stand_behind_the_best_of_them(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    copy = "Ada Lovelace, whose birthplace is London, was a mathematician"
    broker.texts = [copy, f"{copy}.", "Alan Turing was born in Maida Vale"]
    page = open_page(address_of(completion=" London", include=["text"])).page
    column = page.locator(".proponents")
    expect(column.locator(".result")).to_have_count(2)
    column.get_by_role("button", name="Show 1 near copy").click()
    expect(column.locator(".result .result .sample-text")).to_have_text([f"{copy}."])


def test_going_back_asks_the_former_question_again(open_page: Callable[..., Visit]) -> None:
    page = open_page().page
    ask(page, completion=" London")
    expect(page.locator(".words")).to_have_text("London")
    ask(page, completion=" Paris")
    expect(page.locator(".words")).to_have_text("Paris")
    page.go_back()
    expect(page.locator(".words")).to_have_text("London")
    expect(page.get_by_role("textbox", name="Completion")).to_have_value(" London")
    page.reload()
    expect(page.locator(".words")).to_have_text("London")


def test_hostile_ids_and_metadata_and_texts_that_change_their_direction_are_shown_as_text(
    open_page: Callable[..., Visit], broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    reversing = "left \u202e right \u200b\u2066 مرحبا"
    broker.texts = [reversing]
    answer = broker.ask

    async def ask_hostile(query: ServiceQuery, *arguments: object) -> object:
        reply = await answer(query, *arguments)  # pyright: ignore[reportArgumentType]
        row = reply.results[0].model_copy(update={"id": HOSTILE, "metadata": {HOSTILE: HOSTILE}})
        return reply.model_copy(update={"results": [row], "notice": HOSTILE})

    monkeypatch.setattr(broker, "ask", ask_hostile)
    visit = open_page(address_of(completion=HOSTILE, include=["text", "metadata"]))
    page = visit.page
    card = page.locator(".proponents .result")
    assert card.locator(".sample-text").text_content() == reversing
    expect(card.locator("code")).to_have_text(HOSTILE)
    expect(card.locator(".chip")).to_have_text(f"{HOSTILE} {HOSTILE}")
    expect(page.locator(".notice")).to_contain_text(HOSTILE)
    assert page.locator("#page img, #page script").count() == 0
    assert page.title() == "Bergson Service"
    assert not visit.errors


def test_an_answer_without_texts_says_that_the_key_sees_none(
    open_page: Callable[..., Visit], broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = examples.ATTRIBUTE_RESPONSE
    row = answer["results"][0] | {"prompt": None, "metadata": None}
    visit = open_page("/")
    body = json.dumps(answer | {"results": [row]})
    visit.page.route("**/attribute", lambda route: route.fulfill(body=body, content_type="application/json"))
    ask(visit.page)
    expect(visit.page.locator(".result")).to_contain_text("This API key sees no texts.")
    assert not visit.errors


@pytest.mark.parametrize(
    ("loss", "text"),
    [(0.0, "100 %"), (0.0013, "99.9 %"), (0.2, "82 %"), (3.0, "5.0 %"), (20.0, "under 0.01 %")],
)
def test_a_probability_is_written_as_people_do(
    open_page: Callable[..., Visit], loss: float, text: str
) -> None:
    visit = open_page("/")
    answer = examples.ATTRIBUTE_RESPONSE
    body = answer | {"query": answer["query"] | {"loss": loss}}
    visit.page.route("**/attribute", lambda route: route.fulfill(json=body))
    ask(visit.page)
    expect(visit.page.locator(".explained")).to_contain_text(f"{text} likely, 1 token")


def test_a_long_text_is_shaded_once_it_is_seen(open_page: Callable[..., Visit]) -> None:
    def make_row(number: int) -> dict[str, object]:
        words = [f" {number:02}{place:03}" for place in range(200)]
        tokens = [
            {"token": word, "start": 6 * place, "end": 6 * place + 6, "influence": 0.1}
            for place, word in enumerate(words)
        ]
        row = examples.ATTRIBUTE_RESPONSE["results"][0]
        return row | {"id": f"doc-{number}", "prompt": "".join(words), "tokens": tokens}

    page = open_page("/").page
    body = examples.ATTRIBUTE_RESPONSE | {"results": [make_row(number) for number in range(25)]}
    page.route("**/attribute", lambda route: route.fulfill(json=body))
    ask(page)
    first, last = page.locator(".result").first, page.locator(".result").last
    expect(first.locator(".token")).to_have_count(200)
    expect(last.locator(".token")).to_have_count(0)
    assert (last.locator(".sample-text").text_content() or "").startswith(" 24000 24001")

    def is_shaded() -> bool:  # cards that come into view get their real heights, and move those below
        last.scroll_into_view_if_needed()
        page.wait_for_timeout(50)
        return last.locator(".token").count() == 200

    wait_until(is_shaded)
