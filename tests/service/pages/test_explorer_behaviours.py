"""Behaviours in the explorer: they are made from a list, asked for, compared and deleted."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from service.indexes import catalog
from tests.service.fake_broker import FakeBroker
from tests.service.pages.test_explorer import address_of, last_query
from tests.service.pages.visit import HOSTILE, Visit
from tests.service.routes.test_behaviours import keep_behaviour
from worker.messages import BehaviourJob, UnlearnJob

pytestmark = pytest.mark.browser


@pytest.fixture
def behaviours(address: str, tmp_path: Path) -> Path:
    """The directory of the index `facts`, which keeps two behaviours."""
    index = tmp_path / "indexes" / "facts"
    keep_behaviour(index, "agreeing")
    keep_behaviour(index, "refusing", 2.5)
    return index


def start(page: Page) -> None:
    page.get_by_role("button", name="Behaviour", exact=True).click()


@pytest.mark.usefixtures("behaviours")
def test_a_behaviour_is_asked_for_rather_than_another_one(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    visit = open_page()
    page = visit.page
    start(page)
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_disabled()
    page.get_by_label("Behaviour", exact=True).select_option("agreeing")
    expect(page.locator("#ask .facts")).to_contain_text("mean loss in nats0.500")
    page.get_by_label("Rather than the behaviour").select_option("refusing")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator(".proponents .result")).to_have_count(2)
    expect(page.locator(".explained")).to_contain_text("The behaviour agreeing rather than refusing")
    expect(page.locator(".explained")).to_contain_text(
        "mean loss 0.310 nats a question, 4 tokens in all; refusing: 2.50"
    )
    query = last_query(broker)
    assert (query.behaviour, query.instead_of_behaviour, query.prompt) == ("agreeing", "refusing", None)
    assert set(query.include) == {"text", "metadata", "tokens", "background"}
    expect(page.get_by_role("button", name="Unlearn the best 3 for real")).to_have_count(0)
    page.reload()
    expect(page.get_by_label("Rather than the behaviour")).to_have_value("refusing")
    assert not visit.errors


@pytest.mark.usefixtures("behaviours")
def test_a_behaviour_is_asked_for_and_read_with_the_keyboard_alone(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    page = open_page().page
    page.get_by_role("button", name="Behaviour", exact=True).press("Enter")
    choice = page.get_by_label("Behaviour", exact=True)
    choice.focus()
    page.keyboard.type("agree")
    expect(choice).to_have_value("agreeing")
    page.get_by_role("button", name="See its questions").press("Enter")
    dialog = page.get_by_role("dialog", name="Behaviour agreeing")
    expect(dialog.get_by_role("region", name="Questions")).to_contain_text("Is it? Indeed")
    expect(dialog.get_by_role("region", name="Control set")).to_contain_text("Is it? No.")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    choice.focus()
    page.keyboard.press("Control+Enter")
    expect(page.locator(".proponents .result")).to_have_count(2)
    assert last_query(broker).behaviour == "agreeing"


def test_a_behaviour_is_made_from_a_list_and_chosen_once_it_is_there(
    open_page: Callable[..., Visit], broker: FakeBroker, tmp_path: Path
) -> None:
    visit = open_page()
    page = visit.page
    start(page)
    expect(page.locator("#ask")).to_contain_text("facts has no behaviours yet")
    page.get_by_role("button", name="Make a behaviour…").click()
    dialog = page.get_by_role("dialog", name="A behaviour of facts")
    dialog.get_by_label("Name").fill("refusing")
    dialog.get_by_label("Questions that show it").fill("Where? | I cannot say.\nWhen?")
    dialog.get_by_role("button", name="Make it").click()
    expect(dialog.get_by_role("alert")).to_contain_text("Line 2: expected prompt | completion")
    chat = '{"messages": [{"role": "user", "content": "a | b"}, {"role": "assistant", "content": "No."}]}'
    dialog.get_by_label("Questions that show it").fill(f"Where? | I cannot say.\n\n{chat}")
    dialog.get_by_label("Control set").fill("Where? | In London.")
    dialog.get_by_role("button", name="Make it").click()
    expect(dialog.locator(".job")).to_contain_text("queued")
    job = broker.submitted_jobs[-1]
    assert isinstance(job, BehaviourJob)
    first, second = job.spec.queries
    assert (first.prompt, first.completion) == ("Where?", " I cannot say.")
    assert second.messages is not None and second.messages[0]["content"] == "a | b"
    assert job.spec.control is not None and job.spec.control[0].completion == " In London."
    keep_behaviour(tmp_path / "indexes" / "facts", "refusing")
    broker.advance(job.job_id if job.job_id in broker.records else list(broker.records)[-1], "succeeded")
    expect(dialog.locator(".badge")).to_have_text("succeeded")
    dialog.get_by_role("button", name="Close").click()
    expect(page.get_by_label("Behaviour", exact=True)).to_have_value("refusing")
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()
    assert not visit.errors


def test_a_behaviour_whose_job_fails_shows_the_whole_error_as_text(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    page = open_page().page
    start(page)
    page.get_by_role("button", name="Make a behaviour…").click()
    dialog = page.get_by_role("dialog", name="A behaviour of facts")
    dialog.get_by_label("Name").fill("refusing")
    dialog.get_by_label("Questions that show it").fill("Where? | I cannot say.")
    dialog.get_by_label("Name").press("Enter")
    expect(dialog.locator(".job")).to_contain_text("queued")
    record = list(broker.records.values())[-1]
    problem = {"code": "too_long", "detail": f"query 1: {HOSTILE}"}
    update = record.model_dump() | {"state": "failed", "error": problem}
    broker.put(type(record).model_validate(update))
    expect(dialog.locator(".job [role=alert]")).to_have_text(f"too_long: query 1: {HOSTILE}")
    assert page.locator("#page img, #page script").count() == 0


def test_a_behaviour_is_deleted_after_a_second_press_with_the_keyboard_alone(
    open_page: Callable[..., Visit], behaviours: Path
) -> None:
    page = open_page(address_of(prompt=None, behaviour="agreeing")).page
    page.get_by_role("button", name="See its questions").press("Enter")
    delete = page.get_by_role("button", name="Delete agreeing")
    delete.press("Enter")
    expect(delete).to_have_text("Delete it for everybody?")
    delete.press("Enter")
    expect(page.get_by_label("Behaviour", exact=True)).to_have_value("")
    expect(page.get_by_label("Behaviour", exact=True).locator("option")).to_have_text(
        ["choose one", "refusing"]
    )
    assert not list(behaviours.rglob("agreeing"))


@pytest.mark.usefixtures("behaviours")
def test_two_behaviours_answer_side_by_side_with_what_moved(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    page = open_page(address_of(prompt=None, behaviour="agreeing", direction="both")).page
    expect(page.locator(".proponents .result")).to_have_count(2)
    broker.texts = broker.texts[:1]
    page.get_by_label("Compare with").select_option(label="refusing")
    first, second = page.get_by_role("region", name="agreeing"), page.get_by_role("region", name="refusing")
    expect(first.locator(".proponents .moved")).to_have_text(
        ["same rank in the other answer", "not in the other answer"]
    )
    expect(second.locator(".proponents .moved")).to_have_text(["same rank in the other answer"])
    assert last_query(broker).behaviour == "refusing"


@pytest.mark.usefixtures("behaviours")
def test_the_basket_of_a_behaviour_watches_its_questions(
    open_page: Callable[..., Visit], broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "require_documents", lambda *arguments: None)
    page = open_page(address_of(prompt=None, behaviour="agreeing")).page
    page.get_by_label("Put document doc-0 into the basket").check()
    page.get_by_role("button", name="Unlearn them together").click()
    expect(page.get_by_role("form", name="Basket").locator(".job")).to_contain_text("queued")
    job = broker.submitted_jobs[-1]
    assert isinstance(job, UnlearnJob)
    assert [query.completion for query in job.spec.queries] == [" Indeed\u2028.", "Yes"]
    assert job.spec.control is not None
    assert [query.completion for query in job.spec.control] == [" No."]


def test_a_behaviour_that_was_deleted_meanwhile_is_an_error_in_full(open_page: Callable[..., Visit]) -> None:
    page = open_page().page
    start(page)
    page.goto(page.url.partition("#")[0] + address_of(prompt=None, behaviour="gone")[1:])
    expect(page.get_by_label("Behaviour", exact=True)).to_have_value("gone")
    page.route(
        "**/attribute",
        lambda route: route.fulfill(
            status=404, json={"title": "No such behaviour", "detail": HOSTILE, "code": "behaviour_not_found"}
        ),
    )
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#answer [role=alert]")).to_contain_text(HOSTILE)
