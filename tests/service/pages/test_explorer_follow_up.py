"""What a person does with an answer in the explorer: verify it, compare it, take it along."""

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.unlearning.results import UnlearnPreview
from service.indexes import catalog
from service.openapi import examples, link_examples
from tests.service.fake_broker import FakeBroker, publish_manifest
from tests.service.pages.test_explorer import address_of, last_query
from tests.service.pages.visit import HOSTILE, Visit
from tests.worker.helpers import wait_until
from worker.messages import UnlearnJob

pytestmark = pytest.mark.browser


def test_the_best_results_are_unlearned_and_their_cards_show_how_the_probability_moved(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    page = open_page(address_of(completion=" London")).page
    page.get_by_role("button", name="Unlearn the best 3 for real").click()
    expect(page.locator(".verified").first).to_contain_text("changes by −2.00: 89 % → 12 %")
    expect(page.locator(".answer")).to_contain_text("1 random document: −2.00 on average")
    page.get_by_label("Rather than").fill(" Paris")
    page.get_by_role("button", name="Ask about this").click()
    expect(page.locator(".verified").first).to_have_text(
        "Unlearned, the completion's log-probability changes by −2.00"  # the difference has no probability
    )
    verify = last_query(broker).verify
    assert verify is not None
    assert (verify.top, verify.controls, verify.together) == (3, 3, True)
    expect(page.get_by_role("button", name="Verified")).to_be_disabled()


def test_two_indexes_answer_side_by_side_with_what_moved(
    open_page: Callable[..., Visit], broker: FakeBroker, spec: BuildSpec, tmp_path: Path
) -> None:
    publish_manifest(tmp_path / "indexes", "news", spec)
    visit = open_page(address_of(completion=" London"))
    page = visit.page
    expect(page.locator(".proponents .result")).to_have_count(2)
    broker.texts = [broker.texts[1]]
    page.get_by_label("Compare with").select_option(label="news")
    first, second = page.get_by_role("region", name="facts"), page.get_by_role("region", name="news")
    expect(first.locator(".proponents .moved")).to_have_text(
        ["same rank in the other answer", "not in the other answer"]
    )
    expect(second.locator(".proponents .moved")).to_have_text(["same rank in the other answer"])
    expect(page.locator("#answer")).to_contain_text("1 of 2 documents that made it more likely are in both")
    assert last_query(broker).index == "news"
    page.get_by_role("button", name="Back to one answer").click()
    expect(page.locator(".answer")).to_have_count(1)
    assert not visit.errors


def test_an_answer_is_saved_as_json_lines_and_as_a_table_without_formulas(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    broker.texts = ['=HYPERLINK("x")', f'a "b",\n{HOSTILE}']
    page = open_page(address_of(completion=" London", direction="both")).page
    with page.expect_download() as saved:
        page.get_by_role("button", name="JSONL").click()
    rows = [json.loads(line) for line in saved.value.path().read_text().splitlines()]
    assert [(row["direction"], row["prompt"]) for row in rows[:2]] == [
        ("proponents", text) for text in broker.texts
    ]
    assert len(rows) == 4
    with page.expect_download() as saved:
        page.get_by_role("button", name="CSV").click()
    with saved.value.path().open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [row["prompt"] for row in table[:2]] == [f"'{broker.texts[0]}", broker.texts[1]]
    assert table[0]["metadata.source"] == "wiki"


def test_the_curl_command_and_the_python_code_ask_the_same_question(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    page = open_page(address_of(prompt="Ada's", completion=' \\ "quoted" $HOME `x`', top_k=5)).page
    page.get_by_role("button", name="curl").click()
    command = page.get_by_role("textbox", name="As a curl command").input_value()
    printed = command.replace("curl -sS", "printf '%s\\n'")
    arguments = subprocess.run(["sh", "-c", printed], capture_output=True, text=True, check=True).stdout
    sent = json.loads(arguments.splitlines()[-1])
    assert (sent["prompt"], sent["completion"]) == ("Ada's", ' \\ "quoted" $HOME `x`')
    page.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Python").click()
    code = page.get_by_role("textbox", name="As Python").input_value()
    asked: list[tuple[str, dict[str, object]]] = []

    class Recorder:
        def __init__(self, url: str) -> None:
            assert url == page.url.partition("/#")[0]

        def __enter__(self) -> "Recorder":
            return self

        def __exit__(self, *exception: object) -> None: ...

        def attribute(self, index: str, **fields: object) -> object:
            asked.append((index, fields))
            return type("Answer", (), {"results": None})

    exec(code.replace("from service.client import Client\n", ""), {"Client": Recorder})
    assert asked == [("facts", {name: value for name, value in sent.items() if name != "index"})]


def test_a_link_is_made_and_shown_to_copy(open_page: Callable[..., Visit]) -> None:
    page = open_page(address_of(completion=" London")).page
    bodies: list[dict[str, object]] = []

    def make_link(route: object) -> None:
        bodies.append(json.loads(route.request.post_data))  # pyright: ignore[reportAttributeAccessIssue]
        route.fulfill(status=201, json=link_examples.LINK)  # pyright: ignore[reportAttributeAccessIssue]

    page.route("**/links", make_link)
    page.get_by_role("button", name="Link", exact=True).click()
    address = page.get_by_role("textbox", name="Permanent link").input_value()
    assert address == f"{page.url.partition('#')[0]}#link={link_examples.LINK['id']}"
    assert bodies[0]["request"]["completion"] == " London"  # pyright: ignore[reportIndexIssue]


@pytest.mark.parametrize("stale", [False, True])
def test_a_link_shows_its_answer_and_says_when_the_index_has_moved_on(
    open_page: Callable[..., Visit], stale: bool
) -> None:
    visit = open_page("/docs")
    link = link_examples.LINK | {
        "stale": stale,
        "current_generation": 2 if stale else 1,
        "removed": int(stale),
    }
    visit.page.route("**/links/*", lambda route: route.fulfill(json=link))
    visit.page.goto(visit.page.url.replace("/docs", f"/#link={link['id']}"))
    answer = visit.page.locator("#answer")
    expect(answer).to_contain_text("The index has moved on" if stale else "The index has not changed since")
    expect(answer.locator(".proponents .result").first).to_be_visible()
    visit.page.get_by_role("button", name="Ask it again").click()
    expect(visit.page.locator("#answer .opponents, #answer .proponents").first).to_be_visible()
    assert "#ask=" in visit.page.url


def test_a_build_is_estimated_queued_followed_and_cancelled_in_the_page(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    visit = open_page("/#build=1")
    page = visit.page
    page.get_by_label("Name").fill("news")
    page.get_by_label("Model").fill("EleutherAI/pythia-160m")
    page.get_by_label("Dataset", exact=False).fill("NeelNanda/pile-10k")
    page.get_by_label("Columns of metadata").fill("source, year")
    page.get_by_label("Rows").select_option("best")
    page.get_by_role("button", name="Estimate first").click()
    expect(page.locator(".estimate")).to_contain_text("10,000")
    expect(page.locator(".estimate")).to_contain_text("7 min")
    page.get_by_role("button", name="Build", exact=True).click()
    card = page.locator("#build .job")
    expect(card).to_contain_text("queued")
    spec = broker.specs["news"]
    assert (spec.gradients.rows, spec.columns.metadata) == ("sign", ("source", "year"))
    job_id = next(record.job_id for record in broker.records.values() if record.index == "news")
    broker.advance(job_id, "running", stage="gradients", done=25, total=100)
    expect(card).to_contain_text("25 of 100 documents")
    card.get_by_role("button", name="Cancel news").click()
    card.get_by_role("button", name="Really cancel?").click()
    expect(card.locator(".badge")).to_have_text("cancelled")
    assert not visit.errors


def test_a_job_whose_stream_breaks_is_followed_again(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    page = open_page("/#build=1", haste=10).page
    page.route("**/jobs/*/events", lambda route: route.abort(), times=2)
    page.get_by_label("Name").fill("news")
    page.get_by_label("Model").fill("tiny")
    page.get_by_role("button", name="Texts of your own").click()
    page.get_by_role("textbox", name="Documents").fill("Ada was born in London.")
    page.get_by_role("button", name="Build", exact=True).click()
    card = page.locator("#build .job")
    expect(card).to_contain_text("queued")
    job_id = next(record.job_id for record in broker.records.values() if record.index == "news")
    broker.advance(job_id, "running", stage="gradients", done=25, total=100)
    expect(card).to_contain_text("25 of 100 documents")
    broker.advance(job_id, "succeeded")
    expect(card.locator(".badge")).to_have_text("succeeded")


def test_a_build_that_is_refused_shows_the_whole_error(open_page: Callable[..., Visit]) -> None:
    page = open_page("/#build=1").page
    page.get_by_label("Name").fill("facts")
    page.get_by_label("Model").fill("../../etc")
    page.get_by_role("button", name="Texts of your own").click()
    page.get_by_role("textbox", name="Documents").fill(
        "Ada was born in London.\n\n  \nAlan was born in Maida Vale."
    )
    page.route(
        "**/index",
        lambda route: route.fulfill(
            status=422,
            json=examples.BATCH_RESPONSE["results"][1] | {"detail": HOSTILE},
            content_type="application/problem+json",
        ),
    )
    page.get_by_role("button", name="Build", exact=True).click()
    expect(page.locator("#build [role=alert]")).to_contain_text(HOSTILE)
    assert page.locator("#page img, #page script").count() == 0


def test_documents_that_state_the_completion_are_told_from_those_that_only_moved_the_model(
    open_page: Callable[..., Visit],
) -> None:
    page = open_page(address_of(completion=" London", include=["text", "words"])).page
    cards = page.locator(".proponents .result")
    expect(cards.first.locator(".badge.states")).to_be_visible()
    expect(cards.nth(1).locator(".badge.states")).to_have_count(0)
    page.get_by_role("button", name="Moved it only").click()
    expect(cards.locator(".sample-text")).to_have_text([HOSTILE])
    page.get_by_role("button", name="States it").click()
    expect(cards.locator(".sample-text")).to_have_text(["Ada Lovelace's birthplace is London"])


def test_a_basket_is_unlearned_together_beside_other_questions_and_shows_how_each_moved(
    open_page: Callable[..., Visit], broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "require_documents", lambda *arguments: None)
    page = open_page(address_of(completion=" was born in London", span=[13, 19])).page
    page.get_by_label("Put document doc-0 into the basket").check()
    page.get_by_label("Put document doc-1 into the basket").check()
    basket = page.get_by_role("form", name="Basket")
    basket.get_by_label("Other questions to watch").fill("Alan was born in | Maida Vale\n\nno bar here")
    basket.get_by_role("button", name="Unlearn them together").click()
    expect(basket.get_by_role("alert")).to_contain_text("Line 3: expected prompt | completion")
    basket.get_by_label("Other questions to watch").fill("Alan was born in | Maida Vale\n\n")
    basket.get_by_label("Questions that should stay").fill("2 + 2 = | 4")
    basket.get_by_role("button", name="Unlearn them together").click()
    expect(basket.locator(".job")).to_contain_text("queued")
    job = broker.submitted_jobs[-1]
    assert isinstance(job, UnlearnJob)
    assert job.spec.ids == ("doc-0", "doc-1")
    assert [(query.completion, query.span) for query in job.spec.queries] == [
        (" was born in London", (13, 19)),
        (" Maida Vale", None),
    ]
    change = {"before": -0.1, "after": -2.5, "log_probability": -2.4, "probability": -0.82}
    preview = {
        "generation": 1,
        "documents": 2,
        "left_out": 0,
        "learning_rate": 1e-4,
        "own_log_probability": -9,
    }
    means = {"queries": [change, change], "control": [change], "mean": -2.4, "control_mean": -2.4}
    record = list(broker.records.values())[-1].model_copy(update={"state": "succeeded"})
    broker.put(record.model_copy(update={"unlearning": UnlearnPreview.model_validate(preview | means)}))
    expect(basket.locator("tbody tr").first).to_contain_text("90 %8.2 %−2.40")
    expect(basket.locator("table")).to_have_count(2)
    page.set_viewport_size(
        {"width": 390, "height": 800}
    )  # neither the numbers nor the words above them are broken
    words = basket.locator("td.number, thead th:nth-child(-n + 3)")
    lines = words.evaluate_all(
        """cells => cells.map(cell => {
            const range = document.createRange();
            range.selectNodeContents(cell);
            return range.getClientRects().length;
        })"""
    )
    assert set(lines) == {1}
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_address_of_a_question_keeps_every_field_that_the_form_does_not_show(
    open_page: Callable[..., Visit], broker: FakeBroker
) -> None:
    open_page(address_of(completion=" London", objective="log_odds", filter={"source": {"ne": "web"}}))
    wait_until(lambda: broker.queries)
    query = last_query(broker)
    assert query.objective == "log_odds"
    assert query.filter is not None
