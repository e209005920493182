"""POST /attribute hands the question on, and the answer back."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from bergson_core.errors import (
    BergsonError,
    DeadlineExceeded,
    IndexBusy,
    IndexNotFound,
    NoWorker,
    QueueFull,
    RedisUnavailable,
    TooLong,
)
from bergson_core.specs import AttributionQuery
from service import examples
from service.schemas import AttributeResponse
from tests.service.fake_broker import FakeBroker
from tests.service.test_problems import problem_of

QUERY: dict[str, Any] = {"index": "facts", "prompt": "Ada was born in", "completion": " London"}


def test_the_answer_comes_with_the_id_of_its_request(client: TestClient) -> None:
    response = client.post("/attribute", json=QUERY, headers={"X-Request-ID": "mine"})
    answer = AttributeResponse.model_validate_json(response.text)
    assert (answer.request_id, answer.index, answer.query.completion) == ("mine", "facts", " London")
    assert [row.id for row in answer.results or []] == ["doc-0"]


def test_the_question_reaches_the_worker_as_it_was_asked(client: TestClient, broker: FakeBroker) -> None:
    body = QUERY | {"top_k": 3, "direction": "both", "include": ["text"], "timeout_s": 2.5}
    client.post("/attribute", json=body, headers={"X-Request-ID": "mine"})
    expected = AttributionQuery(**QUERY, top_k=3, direction="both", include=("text",))
    assert broker.asked == [(expected, "mine", 2.5)]


@pytest.mark.parametrize("body", [examples.ATTRIBUTE_REQUEST, examples.ATTRIBUTE_BOTH])
def test_the_documented_bodies_are_accepted(client: TestClient, body: dict[str, Any]) -> None:
    assert client.post("/attribute", json=body).status_code == 200


@pytest.mark.parametrize("timeout", [{}, {"timeout_s": None}])
def test_a_question_without_a_timeout_has_the_default(
    client: TestClient, broker: FakeBroker, timeout: dict[str, Any]
) -> None:
    client.post("/attribute", json=QUERY | timeout)
    assert broker.asked[0][2] == 30


@pytest.mark.parametrize("timeout_s", [0, -1, 300.5, "soon"])
def test_a_timeout_out_of_range_is_refused(client: TestClient, timeout_s: object) -> None:
    problem = problem_of(
        client.post("/attribute", json=QUERY | {"timeout_s": timeout_s}), 422, "invalid_input"
    )
    assert "timeout_s" in problem.detail


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"surprise": 1}, "surprise"),
        ({"index": "../facts"}, "index"),
        ({"index": "Facts"}, "index"),
        ({"completion": ""}, "completion"),
        ({"completion": None}, "completion"),
        ({"prompt": "x", "top_k": 0}, "top_k"),
        ({"top_k": 1001}, "top_k"),
        ({"direction": "sideways"}, "direction"),
        ({"span": [0, 1]}, "span"),
        ({"filter": {}}, "filter"),
        ({"verify": {"top": 3}}, "verify"),
        ({"profile": "No spaces"}, "profile"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_field_is_refused(
    client: TestClient, broker: FakeBroker, change: dict[str, Any], field: str
) -> None:
    problem = problem_of(client.post("/attribute", json=QUERY | change), 422, "invalid_input")
    assert [error.loc[:2] for error in problem.errors or []] == [["body", field]]
    assert not broker.asked


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (IndexNotFound, 404),
        (IndexBusy, 409),
        (TooLong, 422),
        (QueueFull, 429),
        (NoWorker, 503),
        (RedisUnavailable, 503),
        (DeadlineExceeded, 504),
    ],
)
def test_what_keeps_a_question_from_its_answer_has_its_status(
    client: TestClient, broker: FakeBroker, error: type[BergsonError], status: int
) -> None:
    broker.error = error("why")
    problem_of(client.post("/attribute", json=QUERY), status, error.code)
