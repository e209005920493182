"""Bodies that are too large, not JSON, or JSON that other readers would change, are refused."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.service.fake_broker import FakeBroker
from tests.service.helpers import require_problem

QUERY = '{"index": "facts", "prompt": "a", "completion": "b"'
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    "body",
    [
        "{",
        "nonsense",
        QUERY,
        QUERY + "} trailing",
        QUERY + ', "timeout_s": NaN}',
        QUERY + ', "timeout_s": Infinity}',
        QUERY + ', "timeout_s": -Infinity}',
        QUERY + ', "timeout_s": 1e999}',
        QUERY + f', "top_k": {"9" * 30}}}',
        QUERY + f', "top_k": {"9" * 5000}}}',
        QUERY + ', "x": "\\ud800"}',
        QUERY + ', "x": ' + "[" * 5000 + "]" * 5000 + "}",
        "\ufeff" + QUERY + "}",
        b"\xff" + QUERY.encode() + b"}",
        (QUERY + "}").encode("utf-16"),
    ],
    ids=lambda body: repr(body)[-30:],
)
def test_a_body_that_is_not_strict_json_is_refused(
    client: TestClient, broker: FakeBroker, body: str | bytes
) -> None:
    problem = require_problem(client.post("/attribute", content=body, headers=JSON), 422, "invalid_input")
    assert [error.loc for error in problem.errors or []] == [["body"]]
    assert problem.errors and problem.errors[0].msg.startswith("expected JSON: ")
    assert not broker.queries


@pytest.mark.parametrize("number", [str(2**63), str(-(2**63) - 1), "1e400", "1" * 400 + ".0"])
def test_a_number_beyond_64_bits_is_refused_even_if_the_schema_allows_anything(
    client: TestClient, broker: FakeBroker, number: str
) -> None:
    body = f'{{"name": "a", "model": "m", "documents": [{{"text": "t", "count": {number}}}]}}'
    require_problem(client.post("/index", content=body, headers=JSON), 422, "invalid_input")
    assert not broker.specs


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63)])
def test_the_largest_numbers_of_64_bits_arrive_unchanged(
    client: TestClient, broker: FakeBroker, number: int
) -> None:
    body = {"name": "a", "model": "m", "documents": [{"text": "9" * 40, "count": number}]}
    assert client.post("/index", json=body).status_code == 202
    assert broker.specs["a"].documents == ({"text": "9" * 40, "count": number},)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_that_is_not_declared_as_json_is_refused(client: TestClient, content_type: str) -> None:
    response = client.post("/attribute", content=QUERY + "}", headers={"Content-Type": content_type})
    require_problem(response, 415, "unsupported_media_type")


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "application/problem+json"])
def test_other_media_types_of_json_are_read(client: TestClient, content_type: str) -> None:
    response = client.post("/attribute", content=QUERY + "}", headers={"Content-Type": content_type})
    assert response.status_code == 200


def test_a_missing_body_is_a_validation_error(client: TestClient) -> None:
    problem = require_problem(client.post("/attribute"), 422, "invalid_input")
    assert [error.loc for error in problem.errors or []] == [["body"]]


def iter_chunks(size: int) -> Iterator[bytes]:
    for _ in range(size // 1000):
        yield b" " * 1000


@pytest.mark.parametrize("path", ["/attribute", "/index", "/nothing"])
def test_a_body_whose_declared_length_is_too_large_is_refused_on_any_path(
    client: TestClient, path: str
) -> None:
    problem = require_problem(client.post(path, content=b" " * 20_001, headers=JSON), 413, "body_too_large")
    assert "20,000 bytes" in problem.detail


def test_a_body_in_chunks_is_refused_once_it_is_too_large(client: TestClient) -> None:
    response = client.post("/attribute", content=iter_chunks(21_000), headers=JSON)
    assert "content-length" not in response.request.headers
    require_problem(response, 413, "body_too_large")


def test_a_body_of_exactly_the_limit_is_read(client: TestClient) -> None:
    body = (QUERY + "}").ljust(20_000)
    assert client.post("/attribute", content=body, headers=JSON).status_code == 200


@pytest.mark.parametrize("length", ["9" * 4000, "9" * 19])
def test_an_absurd_content_length_is_refused(client: TestClient, length: str) -> None:
    headers: dict[str, Any] = JSON | {"Content-Length": length}
    require_problem(client.post("/attribute", content=QUERY + "}", headers=headers), 413, "body_too_large")
