"""Bodies are limited by route, and what is large and wrong is refused at once."""

import gc
import json
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from pydantic import TypeAdapter

from bergson_core.schemas.base import Spec
from service.app import create_app
from service.http.bodies import body_limits
from service.http.bodies.body_limits import BODY_LIMITS, has_too_many_elements
from service.http.bodies.strict_json import StrictJsonRoute, _parse_now
from service.http.problems import MAX_FIELD_ERRORS
from service.schemas import AttributeRequest
from service.settings import ServiceSettings
from tests.service.fake_broker import FakeBroker
from tests.service.helpers import iter_api_routes, make_key_header, require_problem

JSON = {"Content-Type": "application/json"}
QUERY = {"index": "facts", "prompt": "a", "completion": "b"}


@pytest.fixture
def large_client(settings: ServiceSettings, broker: FakeBroker, app: FastAPI) -> Iterator[TestClient]:
    """A client of the service with the default limit of bodies."""
    settings = settings.model_copy(update={"max_body_bytes": 2**25})
    with TestClient(create_app(settings, broker)) as client:  # pyright: ignore[reportArgumentType]
        yield client


def test_every_route_with_a_body_reads_it_strictly_into_a_spec_and_has_a_limit(app: FastAPI) -> None:
    routes: list[APIRoute] = [route for route in iter_api_routes(app) if route.body_field is not None]
    assert len(routes) >= 6
    for route in routes:
        assert isinstance(route, StrictJsonRoute), route.path
        assert route.body_field is not None
        assert issubclass(route.body_field.field_info.annotation or object, Spec), route.path
    assert {route.name for route in routes} == set(BODY_LIMITS)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_question_takes_less_than_a_build(large_client: TestClient, chunked: bool) -> None:
    text = b" " * (8 * 2**20)
    body = json.dumps(QUERY).encode() + text
    response = large_client.post("/attribute", content=iter([body]) if chunked else body, headers=JSON)
    assert "8,388,608 bytes" in require_problem(response, 413, "body_too_large").detail
    build = json.dumps({"name": "b", "model": "m", "documents": [{"text": "t"}]}).encode() + text
    assert large_client.post("/index", content=build, headers=JSON).status_code == 202


def test_the_scope_is_checked_before_a_byte_of_the_body_is_read(client: TestClient, settings) -> None:
    headers = JSON | make_key_header(settings.data_dir, scope="read")
    require_problem(client.post("/index", content=b"{", headers=headers), 403, "forbidden")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"queries":[' + ",".join(["{}"] * 330_000) + "]}", "queries: expected at most 256 of them"),
        (
            '{"queries":[' + ",".join(["{}"] * 200) + "]}",
            "queries.0.index: required, but missing (and 99 more in",
        ),
        ('{"queries":[{}' + ",0" * 200 + "]}", "which are not all"),
        ('{"queries":' + '{"":' * 199 + "0" + "}" * 199 + "}", "expected a list"),
    ],
)
def test_a_large_wrong_body_has_a_small_answer(large_client: TestClient, body: str, expected: str) -> None:
    response = large_client.post("/attribute/batch", content=body, headers=JSON)
    problem = require_problem(response, 422, "invalid_input")
    assert expected in problem.detail
    assert len(problem.errors or []) <= MAX_FIELD_ERRORS
    assert len(response.content) < 20_000


def test_a_body_of_too_many_elements_is_refused_before_it_is_parsed(
    large_client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_limits, "MAX_ELEMENTS", 1000)
    wide = json.dumps(QUERY | {"filter": {"a": list(range(1000))}})
    require_problem(large_client.post("/attribute", content=wide, headers=JSON), 413, "body_too_large")
    text = json.dumps(QUERY | {"prompt": ",[{" * 1000})
    assert large_client.post("/attribute", content=text, headers=JSON).status_code == 200


@pytest.mark.parametrize("text", ["", ",", '"', "\\", '\\"', '\\\\",', ",[{" * 300, '"' * 300, "\\" * 301])
def test_elements_are_counted_outside_of_texts(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(body_limits, "_PIECE_BYTES", 7)
    body = json.dumps({"a": [text, 1, {"b": text}]}).encode()
    for limit, expected in ((4, True), (5, False)):
        monkeypatch.setattr(body_limits, "MAX_ELEMENTS", limit)
        assert has_too_many_elements(body) is expected


@pytest.mark.parametrize("modules", ["(" * 500 + ")" * 500, "a{99999999999}", "[", "(?i"])
def test_a_regular_expression_that_python_refuses_is_a_wrong_field(client: TestClient, modules: str) -> None:
    body = {"name": "b", "model": "m", "documents": [{"text": "t"}], "gradients": {"modules": modules}}
    problem = require_problem(client.post("/index", json=body), 422, "invalid_input")
    assert "regular expression" in problem.detail


@pytest.mark.parametrize(
    "wrong",
    [
        {"filter": {"a": {"lt": [[]] * 1000}}},
        {"messages": [[]] * 1000},
        {"messages": [{"role": [[]] * 1000}]},
        {"partial": [[]] * 1000},
        {"unknown": [[]] * 1000},
    ],
    ids=lambda wrong: str(wrong)[:30],
)
def test_what_a_refused_body_held_is_freed_at_once(wrong: dict[str, object]) -> None:
    body = json.dumps(QUERY | wrong).encode()
    adapter = TypeAdapter(AttributeRequest)
    gc.disable()
    gc.freeze()  # what was there before does not count
    try:
        with pytest.raises(RequestValidationError):
            _parse_now(body, adapter)
        assert gc.collect() < 100
    finally:
        gc.unfreeze()
        gc.enable()
