"""What all specs share: how wrong fields are reported, and how a class documents its fields."""

import inspect
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel, TypeAdapter, ValidationError

from bergson_core.errors import BergsonError, InvalidInput
from bergson_core.schemas.base import ResultModel, Spec
from bergson_core.schemas.build import BuildSpec, GradientSpec
from bergson_core.schemas.evaluation import Evaluation
from bergson_core.schemas.query import AttributionQuery, ProfileSpec, VerifySpec
from worker.messages import ServiceQuery

WRONG: dict[str, tuple[type[Spec], dict[str, Any], list[str]]] = {
    "a missing field": (BuildSpec, {"documents": [{}]}, ["model: required, but missing"]),
    "an unknown field": (
        VerifySpec,
        {"top": 3, "steps": 3},
        ["steps: no such field; expected top, controls, learning_rate, together"],
    ),
    "misspelled fields": (
        BuildSpec,
        {"modle": "m", "model": "m", "documents": [{}], "columns": {"weigth": "w"}},
        ["columns.weigth: no such field; did you mean weight?", "modle: no such field; did you mean model?"],
    ),
    "a misspelled field of an item": (
        ProfileSpec,
        {"name": "births", "queries": [{"prompt": "a", "completion": "b"}, {"promt": "a"}]},
        [
            "queries.1.prompt: required, but missing",
            "queries.1.completion: required, but missing",
            "queries.1.promt: no such field; did you mean prompt?",
        ],
    ),
    "a text of another pattern, and a value that is not among those that there are": (
        AttributionQuery,
        {"prompt": "a", "profile": "A B", "join": "tab"},
        [
            "join: expected 'exact' or 'space'; got 'tab'",
            "profile: expected text that matches ^[a-z0-9][a-z0-9_-]{0,62}$; got 'A B'",
        ],
    ),
    "a value out of range": (
        BuildSpec,
        {"model": "m", "documents": [{}], "gradients": {"projection_dim": 0}},
        ["gradients.projection_dim: expected at least 1; got 0"],
    ),
    "several fields": (
        AttributionQuery,
        {"prompt": 3, "top_k": "10", "verify": {"top": 33}},
        [
            "prompt: expected text; got 3",
            "top_k: expected a number, got '10'",
            "verify.top: expected at most 32; got 33",
        ],
    ),
    "a field that a validator refuses": (
        GradientSpec,
        {"modules": "("},
        [
            "modules: expected a regular expression of module names: missing ), unterminated subpattern at position 0; "
            "got '('"
        ],
    ),
    "fields that contradict each other": (
        BuildSpec,
        {"model": "m"},
        ["BuildSpec: expected exactly one of `dataset` and `documents`"],
    ),
}


@pytest.mark.parametrize(("cls", "fields", "lines"), WRONG.values(), ids=WRONG)
def test_each_wrong_field_is_listed_in_a_line(
    cls: type[Spec], fields: dict[str, Any], lines: list[str]
) -> None:
    with pytest.raises(InvalidInput) as called:
        cls(**fields)
    with pytest.raises(InvalidInput) as validated:
        cls.model_validate(fields)
    for raised in (called, validated):
        assert isinstance(raised.value, BergsonError) and isinstance(raised.value, ValueError)
        assert str(raised.value).splitlines() == lines
        assert isinstance(raised.value.__cause__, ValidationError)


def test_json_that_is_none_or_has_a_wrong_field_is_invalid_input() -> None:
    with pytest.raises(InvalidInput, match=r"^top: expected at least 1; got 0$"):
        VerifySpec.model_validate_json('{"top": 0}')
    with pytest.raises(InvalidInput, match=r"^VerifySpec: Invalid JSON"):
        VerifySpec.model_validate_json("{")


def test_the_message_is_short_however_much_is_wrong() -> None:
    documents = [3] * 1000
    with pytest.raises(InvalidInput) as raised:
        BuildSpec.model_validate({"model": "m" * 5000, "documents": documents})
    lines = str(raised.value).splitlines()
    assert len(lines) == 21 and lines[-1] == "and 981 more"
    assert max(map(len, lines)) < 300


def test_unknown_fields_of_many_items_are_listed_once() -> None:
    queries = [{"prompt": "a", "completion": " b", "id": str(number), "fact": "f"} for number in range(1000)]
    with pytest.raises(InvalidInput) as raised:
        ProfileSpec.model_validate({"name": "births", "queries": queries})
    lines = str(raised.value).splitlines()
    assert [line.split("; ")[0] for line in lines] == [
        "queries.0.id: no such field",
        "queries.0.fact: no such field",
    ]
    assert all(line.endswith(" (also in later items)") for line in lines)


class Holder(BaseModel):
    spec: GradientSpec


def test_a_spec_inside_another_model_keeps_the_path_of_a_wrong_field() -> None:
    for make in (
        lambda fields: Holder(spec=fields),
        lambda fields: Holder.model_validate({"spec": fields}),
        lambda fields: TypeAdapter(dict[str, GradientSpec]).validate_python({"spec": fields}),
    ):
        with pytest.raises(ValidationError) as raised:
            make({"projection_dim": 0})
        assert [error["loc"] for error in raised.value.errors()] == [("spec", "projection_dim")]
    with pytest.raises(ValidationError):
        TypeAdapter(GradientSpec).validate_json('{"projection_dim": 0}')


def test_a_spec_in_the_body_of_a_request_is_validated_by_fastapi() -> None:
    app = FastAPI()

    @app.post("/")
    def accept(body: GradientSpec) -> None: ...

    response = TestClient(app).post("/", json={"projection_dim": 0})
    assert response.status_code == 422
    assert [error["loc"] for error in response.json()["detail"]] == [["body", "projection_dim"]]


def test_the_index_of_a_query_is_left_out_for_an_open_index_and_required_by_a_service() -> None:
    assert AttributionQuery(prompt="a", completion="b").index is None
    assert ServiceQuery(index="facts", prompt="a").index == "facts"
    with pytest.raises(InvalidInput, match=r"^index: required, but missing$"):
        ServiceQuery.model_validate({"prompt": "a"})


def test_help_lists_each_field_with_its_type_default_and_description() -> None:
    text = inspect.getdoc(AttributionQuery) or ""
    assert text.startswith("A prompt and the model's completion of it")
    assert "    top_k (int, default 10):\n        Number of results to return in each direction.\n" in text
    assert str(inspect.signature(VerifySpec)) == "(*, top=3, controls=3, learning_rate=None, together=False)"


def test_the_json_schema_has_the_docstring_as_it_was_written() -> None:
    class Undocumented(ResultModel):
        value: int

    assert "description" not in Undocumented.model_json_schema()
    definitions = Evaluation.model_json_schema()["$defs"]
    assert "Attributes:" not in str([AttributionQuery.model_json_schema(), definitions["Measured"]])
    assert definitions["Measured"]["description"].startswith(
        "What was measured of one way to score documents."
    )


def test_the_repr_of_a_spec_names_what_differs_from_the_defaults() -> None:
    assert repr(GradientSpec()) == "GradientSpec()"
    spec = BuildSpec(model="m", documents=({"text": "a"},), gradients=GradientSpec(projection_dim=4))
    assert repr(spec) == (
        "BuildSpec(model='m', documents=({'text': 'a'},), gradients=GradientSpec(projection_dim=4))"
    )
