"""Calls that change or cost something are refused to pages of other origins, on every route."""

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import ServiceSettings
from tests.service.fake_broker import FakeBroker
from tests.service.helpers import EXAMPLE_BODIES, iter_calls, make_key_header, require_problem

SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
FOREIGN = [
    {"Origin": "http://evil.example"},
    {"Origin": "https://testserver.evil.example"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://testserver:3000"},
    {"Origin": "http://testserver http://evil.example"},
    {"Origin": "http://evil.example@testserver"},
    {"Origin": "chrome-extension://testserver"},
    {"Origin": "http://localhost", "Host": "localhost:8000"},
    {"Origin": "http://[::1]:3000", "Host": "[::1]:8000"},
    {"Origin": "http://127.0.0.1:8000", "Host": "localhost:8000"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "unheard-of"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://testserver"},
]
OWN = [
    {},
    {"Origin": "http://testserver"},
    {"Origin": "HTTP://TESTSERVER"},
    {"Origin": "https://testserver:443"},
    {"Origin": "http://localhost:8000", "Host": "localhost:8000"},
    {"Origin": "http://localhost:8000", "Host": "LOCALHOST:8000"},
    {"Origin": "http://[::1]:8000", "Host": "[::1]:8000"},
    {"Origin": "http://localhost", "Host": "localhost:80"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "https://bergson.example", "Host": "localhost:8000"},
    {"Sec-Fetch-Site": "none"},
]


def state_changing_calls(app: FastAPI) -> list[tuple[str, str, str]]:
    return [call for call in iter_calls(app) if call[1] not in SAFE_METHODS]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_every_call_that_changes_something_is_refused_to_a_foreign_page(
    app: FastAPI, client: TestClient, broker: FakeBroker, headers: dict[str, str]
) -> None:
    calls = state_changing_calls(app)
    assert len(calls) >= 10
    for name, method, path in calls:
        for body in (None, EXAMPLE_BODIES.get(name)):
            problem = require_problem(
                client.request(method, path, json=body, headers=headers), 403, "forbidden"
            )
            assert "another origin" in problem.detail
    assert not broker.submitted_jobs and not broker.queries


def test_a_route_that_is_added_is_refused_to_a_foreign_page_as_well(app: FastAPI, client: TestClient) -> None:
    @app.api_route("/new", methods=["POST", "PUT", "PATCH", "DELETE", "PURGE"])
    async def new() -> str:
        return "changed"

    for method in ("POST", "PUT", "PATCH", "DELETE", "PURGE"):
        response = client.request(method, "/new", headers={"Origin": "http://evil.example"})
        assert "another origin" in require_problem(response, 403, "forbidden").detail


@pytest.mark.parametrize("headers", OWN, ids=str)
def test_a_page_of_the_service_and_programs_may_call_everything(
    app: FastAPI, client: TestClient, jobs: list[str], headers: dict[str, str]
) -> None:
    for name, method, path in state_changing_calls(app):
        response = client.request(method, path, json=EXAMPLE_BODIES.get(name), headers=headers)
        assert response.status_code not in (403, 415), (path, response.text)


def test_a_foreign_page_may_not_call_with_a_key_either(client: TestClient, tmp_path: Path) -> None:
    headers = make_key_header(tmp_path, scope="admin") | {"Origin": "http://evil.example"}
    response = client.post("/index/facts/compact", headers=headers)
    assert "another origin" in require_problem(response, 403, "forbidden").detail


def test_a_proxy_may_change_the_host_if_the_setting_names_the_public_one(
    settings: ServiceSettings, broker: FakeBroker
) -> None:
    settings = settings.model_copy(update={"allowed_hosts": ("localhost", "bergson.example")})
    client = TestClient(create_app(settings, broker))  # pyright: ignore[reportArgumentType]
    host = {"Host": "localhost:8000"}
    for origin, status in {
        "https://bergson.example": 404,
        "http://bergson.example:80": 404,
        "https://bergson.example:3000": 403,
        "http://localhost": 403,
        "https://other.example": 403,
    }.items():
        response = client.post("/index/none/compact", headers=host | {"Origin": origin})
        assert response.status_code == status, origin


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_that_is_not_json_is_refused_by_every_call_that_changes_something(
    app: FastAPI, client: TestClient, broker: FakeBroker, content_type: str
) -> None:
    for _, method, path in state_changing_calls(app):
        response = client.request(method, path, content=b"{}", headers={"Content-Type": content_type})
        require_problem(response, 415, "unsupported_media_type")
    assert not broker.submitted_jobs


def test_reading_is_open_to_all_pages_which_cannot_see_the_answer(client: TestClient) -> None:
    response = client.get("/index", headers={"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"})
    assert response.status_code == 200
    assert "access-control-allow-origin" not in response.headers
