"""Once there are keys, every route needs one, and does no more than the scope of the key allows."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from bergson_core.errors import InvalidInput
from service.app import create_app
from service.auth.api_keys import KEY_FILE_NAME, KeyFile
from service.auth.authorization import OPEN_PATHS, ROUTE_SCOPES, require_keys_if_public
from service.settings import ServiceSettings
from tests.service.fake_broker import FakeBroker
from tests.service.helpers import EXAMPLE_BODIES, iter_calls, make_key_header, require_problem

WRONG_HEADERS = [
    {},
    {"Authorization": ""},
    {"Authorization": "Bearer"},
    {"Authorization": "Bearer bg_000000000000_" + "A" * 43},
    {"Authorization": "Bearer é"},
    {"Authorization": "Basic YWRhOmFkYQ=="},
    {"X-API-Key": "bg_000000000000_" + "A" * 43},
]


# Without a key


def test_every_call_outside_the_open_paths_needs_a_valid_key(
    app: FastAPI, client: TestClient, tmp_path: Path
) -> None:
    make_key_header(tmp_path)
    calls = list(iter_calls(app))
    open_paths = {path for _, method, path in calls if client.request(method, path).status_code != 401}
    assert open_paths == OPEN_PATHS
    assert len(calls) > 20
    for headers in WRONG_HEADERS:
        for _, method, path in calls:
            if path not in OPEN_PATHS:
                raw_headers = [(name.encode(), value.encode()) for name, value in headers.items()]
                response = client.request(method, path, headers=raw_headers)
                require_problem(response, 401, "unauthorized")
                assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "path", ["/nothing", "/static", "/docs/", "/livez/x", "/LIVEZ", "/metrics/", "/%2e%2e/index"]
)
def test_a_path_that_does_not_exist_needs_a_key_as_well(
    client: TestClient, tmp_path: Path, path: str
) -> None:
    make_key_header(tmp_path)
    require_problem(client.get(path, follow_redirects=False), 401, "unauthorized")


def test_the_pages_and_their_assets_can_be_read_without_a_key(client: TestClient, tmp_path: Path) -> None:
    make_key_header(tmp_path)
    assert client.get("/static/dashboard/main.js").status_code == 200
    require_problem(client.post("/livez"), 401, "unauthorized")
    require_problem(client.get("/static/dashboard/../../app.py"), 401, "unauthorized")


def test_the_key_is_checked_before_the_body_is_read(client: TestClient, tmp_path: Path) -> None:
    make_key_header(tmp_path)
    headers = {"Content-Type": "application/json"}
    require_problem(client.post("/index", content=b"{", headers=headers), 401, "unauthorized")
    require_problem(client.post("/index", content=b"x" * 100_000, headers=headers), 401, "unauthorized")


def test_without_a_file_of_keys_this_machine_may_call_everything(
    app: FastAPI, client: TestClient, jobs: list[str]
) -> None:
    for name, method, path in iter_calls(app):
        if name != "follow_job":
            response = client.request(method, path, json=EXAMPLE_BODIES.get(name))
            assert response.status_code not in (401, 403), path


def test_a_key_works_at_once_until_it_is_revoked_or_expires(client: TestClient, tmp_path: Path) -> None:
    assert client.get("/index").status_code == 200
    ada, old = make_key_header(tmp_path), make_key_header(tmp_path, "old", expires_at=1.0)
    assert client.get("/index").status_code == 401
    assert client.get("/index", headers=ada).status_code == 200
    require_problem(client.get("/index", headers=old), 401, "unauthorized")
    KeyFile(tmp_path).revoke("ada")
    require_problem(client.get("/index", headers=ada), 401, "unauthorized")
    require_problem(client.get("/index"), 401, "unauthorized")


@pytest.mark.parametrize("content", [None, "", "{}x"])
def test_a_damaged_or_deleted_file_of_keys_opens_nothing(
    client: TestClient, tmp_path: Path, content: str | None
) -> None:
    ada = make_key_header(tmp_path)
    assert client.get("/index", headers=ada).status_code == 200
    path = tmp_path / KEY_FILE_NAME
    path.unlink() if content is None else path.write_text(content)
    assert client.get("/index").status_code == 401
    assert client.get("/index", headers=ada).status_code == (401 if content is None else 503)
    assert client.get("/livez").status_code == 200


# Scopes


@pytest.mark.parametrize("scope", ["read", "write", "admin"])
def test_a_key_can_make_exactly_the_calls_of_its_scope(
    app: FastAPI, client: TestClient, tmp_path: Path, jobs: list[str], broker: FakeBroker, scope: str
) -> None:
    broker.advance(jobs[0], "running")
    ascending = ("read", "write", "admin")
    headers = make_key_header(tmp_path, scope=scope)
    for name, method, path in iter_calls(app):
        if name not in ROUTE_SCOPES or name == "follow_job":
            continue
        response = client.request(method, path, json=EXAMPLE_BODIES.get(name), headers=headers)
        if ascending.index(ROUTE_SCOPES[name]) > ascending.index(scope):
            assert f"scope {ROUTE_SCOPES[name]}" in require_problem(response, 403, "forbidden").detail
        else:
            assert response.status_code not in (401, 403), (path, response.text)


def test_every_route_has_a_scope_or_an_open_path(app: FastAPI) -> None:
    names = {name for name, _, path in iter_calls(app) if path not in OPEN_PATHS and path != "/static"}
    assert names == set(ROUTE_SCOPES)


def test_a_route_without_a_scope_is_refused_to_everybody(
    app: FastAPI, client: TestClient, tmp_path: Path
) -> None:
    @app.get("/new")
    async def new() -> str:
        return "secret"

    require_problem(client.get("/new"), 403, "forbidden")
    require_problem(client.get("/new", headers=make_key_header(tmp_path, scope="admin")), 403, "forbidden")
    require_problem(client.get("/new"), 401, "unauthorized")


def test_the_document_names_the_scope_of_each_call(app: FastAPI) -> None:
    document = app.openapi()
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    documented = {call["operationId"]: call["security"] for call in operations if "security" in call}
    assert documented == {name: [{"key": [scope]}] for name, scope in ROUTE_SCOPES.items()}
    scheme = document["components"]["securitySchemes"]["key"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")


# Streams, the log, and the start


def test_a_stream_ends_when_its_key_is_revoked(
    client: TestClient, tmp_path: Path, broker: FakeBroker, jobs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = make_key_header(tmp_path)

    async def events_and_revocation(job_id: str, last_id: str) -> Any:
        yield "1-0", broker.records[job_id]
        KeyFile(tmp_path).revoke("ada")
        yield "2-0", broker.records[job_id]

    monkeypatch.setattr(broker, "iter_events", events_and_revocation)
    text = client.get(f"/jobs/{jobs[0]}/events", headers=headers).text
    assert re.findall("^event: (.*)$", text, re.MULTILINE) == ["state", "problem"]
    assert json.loads(text.rpartition("data: ")[2].split("\n")[0])["code"] == "unauthorized"


def test_the_log_has_the_name_of_the_key_and_never_its_secret(
    client: TestClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    headers = make_key_header(tmp_path)
    with caplog.at_level("INFO", logger="service"):
        client.get("/index", headers=headers)
        client.get("/index", headers={"Authorization": "Bearer bg_wrong_secret"})
    assert "key ada" in caplog.text
    assert headers["Authorization"].split("_", 2)[2] not in caplog.text
    assert "bg_wrong" not in caplog.text


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.4", "example.com"])
def test_an_address_that_others_can_reach_needs_an_active_key(
    tmp_path: Path, host: str, broker: FakeBroker
) -> None:
    settings = ServiceSettings(host=host, data_dir=tmp_path, allowed_hosts=("testserver",))
    app = create_app(settings, broker)  # pyright: ignore[reportArgumentType]
    assert TestClient(app).get("/workers").status_code == 401, "the application itself needs a key as well"
    with pytest.raises(InvalidInput, match="bergson keys create"):
        require_keys_if_public(settings)
    make_key_header(tmp_path, "old", expires_at=1.0)
    with pytest.raises(InvalidInput, match="bergson keys create"):
        require_keys_if_public(settings)
    headers = make_key_header(tmp_path)
    require_keys_if_public(settings)
    assert TestClient(app).get("/workers", headers=headers).status_code == 200


def test_a_damaged_file_of_keys_keeps_the_service_from_starting(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE_NAME).write_text("{")
    with pytest.raises(InvalidInput, match=KEY_FILE_NAME):
        require_keys_if_public(ServiceSettings(data_dir=tmp_path))
