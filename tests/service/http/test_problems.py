"""Every error, whatever its cause, is answered as a problem of the same format."""

import logging

import pytest
from fastapi.testclient import TestClient

from bergson_core.errors import BergsonError, QueueFull
from service.http.problems import PROBLEM_KINDS
from tests.service.fake_broker import FakeBroker
from tests.service.helpers import require_problem
from worker.telemetry import logs


def error_classes(root: type[BergsonError] = BergsonError) -> list[type[BergsonError]]:
    """Returns an error class and all its subclasses."""
    return [root, *(leaf for child in root.__subclasses__() for leaf in error_classes(child))]


@pytest.mark.parametrize("error_class", error_classes(), ids=lambda error_class: error_class.__name__)
def test_every_error_class_has_a_status_and_a_title_of_its_own(error_class: type[BergsonError]) -> None:
    assert error_class.code in PROBLEM_KINDS
    assert [entry.title for entry in PROBLEM_KINDS.values()].count(PROBLEM_KINDS[error_class.code].title) == 1


@pytest.mark.parametrize("error_class", error_classes(), ids=lambda error_class: error_class.__name__)
def test_every_error_class_becomes_a_problem_with_its_text(
    client: TestClient, broker: FakeBroker, error_class: type[BergsonError]
) -> None:
    broker.error = error_class("what went wrong, and what to do")
    problem = require_problem(
        client.get("/workers"), PROBLEM_KINDS[error_class.code].status, error_class.code
    )
    assert problem.detail == "what went wrong, and what to do"


def test_an_unknown_code_of_a_newer_worker_is_a_failure_with_its_text(
    client: TestClient, broker: FakeBroker
) -> None:
    broker.error = BergsonError("the moon is full")
    assert require_problem(client.get("/workers"), 500, "error").detail == "the moon is full"


def test_a_full_queue_says_when_to_try_again(client: TestClient, broker: FakeBroker) -> None:
    broker.error = QueueFull("1,000 queries wait")
    response = client.post("/attribute", json={"index": "facts", "prompt": "a", "completion": "b"})
    require_problem(response, 429, "queue_full")
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("path", ["/nothing", "/index/facts/more", "/static/none.js", "/static/../app.py"])
def test_an_unknown_path_is_not_found(client: TestClient, path: str) -> None:
    require_problem(client.get(path), 404, "not_found")


def test_a_wrong_method_is_refused_with_the_allowed_ones(client: TestClient) -> None:
    response = client.put("/workers")
    require_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "GET, HEAD"
    assert "expected GET or HEAD" in response.json()["detail"]


def test_an_unexpected_error_reveals_no_details_and_is_logged_with_the_request_id(
    client: TestClient, broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    broker.crash = RuntimeError("the password is 1234")
    caplog.handler.setFormatter(logs.make_formatter("text"))
    with caplog.at_level(logging.ERROR):
        response = client.get("/workers", headers={"X-Request-ID": "mine-1"})
    assert "1234" not in require_problem(response, 500, "internal_error").detail
    assert "mine-1" in caplog.text and "1234" in caplog.text


def test_a_refused_field_is_named_by_its_location(client: TestClient) -> None:
    body = {
        "name": "a",
        "model": "m",
        "documents": [],
        "gradients": {"projection_dim": 0},
        "scoring": {"x": 1},
    }
    problem = require_problem(client.post("/index", json=body), 422, "invalid_input")
    assert {tuple(error.loc) for error in problem.errors or []} == {
        ("body", "gradients", "projection_dim"),
        ("body", "scoring", "x"),
    }
    assert problem.detail.startswith("gradients.projection_dim: ")


def test_a_thousand_refused_fields_do_not_make_a_huge_response(client: TestClient) -> None:
    response = client.post("/attribute", json={f"{number}-xxxx": 1 for number in range(1000)})
    assert len(require_problem(response, 422, "invalid_input").errors or []) == 100
    long_name = client.post("/attribute", json={"y" * 10_000: 1})
    assert len(long_name.content) < 2000
