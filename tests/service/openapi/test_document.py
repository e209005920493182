"""The OpenAPI document is complete, and its examples are valid."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient
from pydantic import TypeAdapter

from bergson_core.schemas.behaviours.spec import BehaviourSpec
from bergson_core.schemas.build import AppendSpec
from bergson_core.schemas.query import ProfileSpec
from service.http.problems import MEDIA_TYPE, PROBLEM_KINDS, ProblemDetails
from service.openapi.metadata import TAGS
from service.schemas import AttributeRequest, EstimateRequest, IndexRequest, LinkRequest

UNDOCUMENTED = {"/", "/docs", "/openapi.json", "/static"}


@pytest.fixture
def document(app: FastAPI) -> dict[str, Any]:
    return app.openapi()


def iter_operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", operation


def iter_references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(reference := value.get("$ref"), str):
            yield reference
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from iter_references(part)


def documented_path(path: str) -> str:
    """Returns the path of a route as the document writes it."""
    return path.replace(":path}", "}")


def test_the_document_is_served(app: FastAPI, document: dict[str, Any]) -> None:
    assert TestClient(app, base_url="http://localhost").get("/openapi.json").json() == document


def test_every_route_is_documented(app: FastAPI, document: dict[str, Any]) -> None:
    routes = {documented_path(route.path) for route in iter_route_contexts(app.routes)}
    assert routes == set(document["paths"]) | UNDOCUMENTED


def test_the_document_has_exactly_the_calls_of_the_contract(document: dict[str, Any]) -> None:
    assert {name for name, _ in iter_operations(document)} == {
        "POST /index",
        "POST /index/estimate",
        "GET /index",
        "GET /index/{name}",
        "DELETE /index/{name}",
        "POST /index/{name}/documents",
        "GET /index/{name}/documents/{document_id}",
        "DELETE /index/{name}/documents/{document_id}",
        "POST /index/{name}/profiles",
        "POST /index/{name}/behaviours",
        "GET /index/{name}/behaviours",
        "GET /index/{name}/behaviours/{behaviour}",
        "DELETE /index/{name}/behaviours/{behaviour}",
        "POST /index/{name}/compact",
        "POST /index/{name}/unlearn",
        "POST /index/{name}/totals",
        "POST /attribute",
        "POST /attribute/batch",
        "POST /attribute/indexes",
        "POST /links",
        "GET /links/{link_id}",
        "DELETE /links/{link_id}",
        "GET /models",
        "GET /jobs",
        "GET /jobs/{job_id}",
        "DELETE /jobs/{job_id}",
        "GET /jobs/{job_id}/events",
        "GET /workers",
        "GET /key",
        "GET /livez",
        "GET /readyz",
        "GET /metrics",
    }


def test_every_call_has_one_tag_a_summary_a_description_and_a_unique_id(
    document: dict[str, Any],
) -> None:
    names = [tag["name"] for tag in TAGS]
    used = [operation["tags"] for _, operation in iter_operations(document)]
    assert all(len(tags) == 1 and tags[0] in names for tags in used)
    assert list(dict.fromkeys(tags[0] for tags in used)) == names, "calls come in the order of work"
    assert all(
        operation["summary"] and operation["description"] for _, operation in iter_operations(document)
    )
    ids = [operation["operationId"] for _, operation in iter_operations(document)]
    assert len(set(ids)) == len(ids)


def test_every_answer_and_every_body_has_an_example(document: dict[str, Any]) -> None:
    for name, operation in iter_operations(document):
        answers = operation["responses"].items()
        contents = [response["content"] for status, response in answers if status != "204"]
        contents += [operation["requestBody"]["content"]] if "requestBody" in operation else []
        for content in contents:
            assert all("example" in media or media.get("examples") for media in content.values()), name


def test_every_error_is_documented_as_a_problem(document: dict[str, Any]) -> None:
    for name, operation in iter_operations(document):
        for status, response in operation["responses"].items():
            if int(status) < 400:
                continue
            assert list(response["content"]) == [MEDIA_TYPE], name
            assert response["content"][MEDIA_TYPE]["schema"] == {
                "$ref": "#/components/schemas/ProblemDetails"
            }
            for code, example in response["content"][MEDIA_TYPE]["examples"].items():
                problem = ProblemDetails.model_validate(example["value"])
                assert (
                    (problem.code, problem.status)
                    == (code, int(status))
                    == (code, PROBLEM_KINDS[code].status)
                )
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_every_reference_has_a_target(document: dict[str, Any]) -> None:
    schemas = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(iter_references(document)) <= schemas


def test_every_example_of_a_successful_response_is_valid(app: FastAPI, document: dict[str, Any]) -> None:
    checked = 0
    for route in iter_route_contexts(app.routes):
        path = documented_path(route.path)
        for method in (route.methods or set()) if path in document["paths"] else set():
            answers = document["paths"][path][method.lower()]["responses"]
            content = answers[min(answers)].get("content", {})
            if "application/json" in content:
                TypeAdapter(route.response_model).validate_python(content["application/json"]["example"])
                checked += 1
    without = 2 + sum("204" in operation["responses"] for _, operation in iter_operations(document))
    assert checked == len(list(iter_operations(document))) - without, (
        "all but the event stream, the metrics and those without a body"
    )


BODIES = {
    "/index": IndexRequest,
    "/index/estimate": EstimateRequest,
    "/index/{name}/documents": AppendSpec,
    "/index/{name}/profiles": ProfileSpec,
    "/index/{name}/behaviours": BehaviourSpec,
    "/attribute": AttributeRequest,
    "/links": LinkRequest,
}


@pytest.mark.parametrize("path", BODIES)
def test_every_example_of_a_body_is_valid(document: dict[str, Any], path: str) -> None:
    model = BODIES[path]
    bodies = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert all(model.model_validate(body["value"]) for body in bodies.values())


@pytest.mark.parametrize(
    ("schema", "takes"), [("IndexRequest", True), ("EstimateRequest", True), ("BuildSpec", False)]
)
def test_a_preset_is_sent_and_does_not_come_back(document: dict[str, Any], schema: str, takes: bool) -> None:
    assert ("preset" in document["components"]["schemas"][schema]["properties"]) == takes


def test_the_document_names_no_other_host(document: dict[str, Any]) -> None:
    assert not re.findall(r"https?://", str(document))
