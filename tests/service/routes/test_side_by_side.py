"""POST /attribute/indexes asks several indexes the same query, and returns their answers side by side."""

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from bergson_core.errors import BergsonError, InvalidInput, TooLong
from bergson_core.schemas.build import BuildSpec
from service.client import Client
from service.settings import ServiceSettings
from tests.service.fake_broker import FakeBroker, publish_manifest
from tests.service.helpers import make_key_header, require_problem, serve_app

BODY: dict[str, Any] = {"indexes": ["people", "facts"], "prompt": "Ada was born in", "completion": " London"}


@pytest.fixture(autouse=True)
def people(settings: ServiceSettings, spec: BuildSpec) -> None:
    """A second index."""
    publish_manifest(settings.data_dir / "indexes", "people", spec)


def test_each_index_is_asked_the_query_and_answers_in_order(client: TestClient, broker: FakeBroker) -> None:
    response = client.post(
        "/attribute/indexes", json=BODY | {"top_k": 3, "include": ["text"], "timeout_s": 5}
    )
    assert [answer["index"] for answer in response.json()["results"]] == ["people", "facts"]
    asked = {query.index: query for query, *_ in broker.queries}
    assert set(asked) == {"people", "facts"}
    assert asked["people"].model_copy(update={"index": "facts"}) == asked["facts"]
    assert (asked["facts"].top_k, asked["facts"].include) == (3, ("text",))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"indexes": ["facts"]}, "at least 2"),
        ({"indexes": ["facts", "people", "facts"]}, "expected each index once, got 'facts' again"),
        ({"indexes": ["facts", "No"]}, "indexes"),
        ({"indexes": [f"a{number}" for number in range(17)]}, "at most 16"),
        ({"index": "facts"}, "index: expected null, or no such field"),
        ({"top_k": 0}, "top_k"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_wrong_fields_are_refused(client: TestClient, broker: FakeBroker, fields: Any, message: str) -> None:
    response = client.post("/attribute/indexes", json=BODY | fields)
    require_problem(response, 422, "invalid_input")
    assert message in response.text
    assert broker.queries == []


def test_one_index_that_is_missing_or_hidden_refuses_the_whole_request(
    client: TestClient, broker: FakeBroker, settings: ServiceSettings
) -> None:
    response = client.post("/attribute/indexes", json=BODY | {"indexes": ["facts", "nothing"]})
    assert "nothing" in require_problem(response, 404, "index_not_found").detail
    header = make_key_header(settings.data_dir, indexes=["facts"])
    require_problem(client.post("/attribute/indexes", json=BODY, headers=header), 404, "index_not_found")
    assert broker.queries == []


def test_a_key_without_texts_gets_none_and_may_not_filter(
    client: TestClient, settings: ServiceSettings
) -> None:
    header = make_key_header(settings.data_dir, text=False)
    answers = client.post("/attribute/indexes", json=BODY, headers=header).json()["results"]
    assert {row["prompt"] for answer in answers for row in answer["results"]} == {None}
    refused = client.post("/attribute/indexes", json=BODY | {"filter": {"source": "wiki"}}, headers=header)
    require_problem(refused, 403, "forbidden")


def test_an_error_of_one_index_stands_in_place_of_its_answer(
    client: TestClient, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = broker.ask

    async def ask_some(query: Any, *arguments: Any) -> Any:
        if query.index == "people":
            raise TooLong("expected at most 8 tokens, got 9")
        return await ask(query, *arguments)

    monkeypatch.setattr(broker, "ask", ask_some)
    first, second = client.post("/attribute/indexes", json=BODY).json()["results"]
    assert (first["code"], second["index"]) == ("too_long", "facts")


def test_the_client_returns_answers_or_errors(app: FastAPI) -> None:
    with serve_app(app) as url, Client(url) as caller:
        first, second = caller.attribute_indexes(["people", "facts"], "Ada was born in", " London", top_k=2)
        assert not isinstance(first, BergsonError) and not isinstance(second, BergsonError)
        assert (first.index, second.index) == ("people", "facts")
        with pytest.raises(InvalidInput, match="each index once"):
            caller.attribute_indexes(["facts", "facts"], "a", " b")
