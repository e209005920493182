"""A caller without texts gets the listed fields of an answer, and nothing that somebody adds to it."""

from pydantic import BaseModel

from bergson_core.schemas.results import Answer, ResultRow
from service.auth.texts import OPEN_ANSWER_FIELDS, OPEN_ROW_FIELDS, without_texts
from service.schemas import AttributeResponse
from tests.service.fake_broker import TOKENS, make_answer
from worker.messages import ServiceQuery

QUERY = ServiceQuery(index="facts", prompt="a", completion=" b")


class _LaterRow(ResultRow):
    summary: str | None = None


class _LaterAnswer(AttributeResponse):
    groups: list[str] = []


def names_of_required_fields(model: type[BaseModel]) -> set[str]:
    return {name for name, field in model.model_fields.items() if field.is_required()}


def test_texts_metadata_and_tokens_are_withheld_and_numbers_are_not() -> None:
    answer = make_answer(QUERY, ["secret"])
    rows = [row.model_copy(update={"tokens": TOKENS, "completion": "secret"}) for row in answer.results or ()]
    shown = without_texts(answer.model_copy(update={"results": rows, "opponents": rows}))
    assert "secret" not in shown.model_dump_json() and "wiki" not in shown.model_dump_json()
    for row in [*(shown.results or ()), *(shown.opponents or ())]:
        assert (row.id, row.score, row.loss) == (rows[0].id, rows[0].score, rows[0].loss)
        assert row.tokens is None and row.metadata is None
    assert (shown.query, shown.notice, shown.generation) == (answer.query, answer.notice, answer.generation)


def test_a_field_that_is_added_later_is_withheld_until_it_is_listed() -> None:
    answer = make_answer(QUERY, ["a"])
    row = _LaterRow(**(answer.results or [])[0].model_dump(), summary="secret")
    fields = {name: getattr(answer, name) for name in Answer.model_fields} | {"results": [row]}
    later = _LaterAnswer.model_construct(**fields, request_id="r", groups=["secret"])
    assert "secret" not in without_texts(later).model_dump_json()


def test_every_field_that_an_answer_must_have_is_listed() -> None:
    assert names_of_required_fields(AttributeResponse) <= OPEN_ANSWER_FIELDS
    assert names_of_required_fields(ResultRow) <= OPEN_ROW_FIELDS


def test_every_listed_field_exists() -> None:
    assert set(AttributeResponse.model_fields) >= OPEN_ANSWER_FIELDS
    assert set(ResultRow.model_fields) >= OPEN_ROW_FIELDS
