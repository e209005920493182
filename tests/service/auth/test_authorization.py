"""Every route asks for a key once there are keys, and does no more than the key's scope allows."""

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
from tests.service.helpers import EXAMPLE_BODIES, create_key, iter_calls, require_problem

FOREIGN = [
    {},
    {"Authorization": ""},
    {"Authorization": "Bearer"},
    {"Authorization": "Bearer bg_000000000000_" + "A" * 43},
    {"Authorization": "Bearer é"},
    {"Authorization": "Basic YWRhOmFkYQ=="},
    {"X-API-Key": "bg_000000000000_" + "A" * 43},
]


# Without a key


def test_every_call_refuses_without_a_valid_key_but_those_that_are_open(
    app: FastAPI, client: TestClient, tmp_path: Path
) -> None:
    create_key(tmp_path)
    calls = list(iter_calls(app))
    answered = {path for _, method, path in calls if client.request(method, path).status_code != 401}
    assert answered == OPEN_PATHS
    assert len(calls) > 20
    for headers in FOREIGN:
        for _, method, path in calls:
            if path not in OPEN_PATHS:
                sent = [(name.encode(), value.encode()) for name, value in headers.items()]
                response = client.request(method, path, headers=sent)
                require_problem(response, 401, "unauthorized")
                assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "path", ["/nothing", "/static", "/docs/", "/livez/x", "/LIVEZ", "/metrics/", "/%2e%2e/index"]
)
def test_what_does_not_exist_asks_for_a_key_as_well(client: TestClient, tmp_path: Path, path: str) -> None:
    create_key(tmp_path)
    require_problem(client.get(path, follow_redirects=False), 401, "unauthorized")


def test_the_pages_and_what_they_load_are_open_to_be_read(client: TestClient, tmp_path: Path) -> None:
    create_key(tmp_path)
    assert client.get("/static/dashboard/main.js").status_code == 200
    require_problem(client.post("/livez"), 401, "unauthorized")
    require_problem(client.get("/static/dashboard/../../app.py"), 401, "unauthorized")


def test_a_body_is_not_read_before_the_key_is_known(client: TestClient, tmp_path: Path) -> None:
    create_key(tmp_path)
    headers = {"Content-Type": "application/json"}
    require_problem(client.post("/index", content=b"{", headers=headers), 401, "unauthorized")
    require_problem(client.post("/index", content=b"x" * 100_000, headers=headers), 401, "unauthorized")


def test_without_a_file_of_keys_this_machine_may_everything(
    app: FastAPI, client: TestClient, jobs: list[str]
) -> None:
    for name, method, path in iter_calls(app):
        if name != "follow_job":
            response = client.request(method, path, json=EXAMPLE_BODIES.get(name))
            assert response.status_code not in (401, 403), path


def test_a_key_counts_at_once_and_until_it_is_revoked_or_expires(client: TestClient, tmp_path: Path) -> None:
    assert client.get("/index").status_code == 200
    ada, old = create_key(tmp_path), create_key(tmp_path, "old", expires_at=1.0)
    assert client.get("/index").status_code == 401
    assert client.get("/index", headers=ada).status_code == 200
    require_problem(client.get("/index", headers=old), 401, "unauthorized")
    KeyFile(tmp_path).revoke("ada")
    require_problem(client.get("/index", headers=ada), 401, "unauthorized")
    require_problem(client.get("/index"), 401, "unauthorized")


@pytest.mark.parametrize("content", [None, "", "{}x"])
def test_a_file_of_keys_that_is_damaged_or_gone_opens_nothing(
    client: TestClient, tmp_path: Path, content: str | None
) -> None:
    ada = create_key(tmp_path)
    assert client.get("/index", headers=ada).status_code == 200
    path = tmp_path / KEY_FILE_NAME
    path.unlink() if content is None else path.write_text(content)
    assert client.get("/index").status_code == 401
    assert client.get("/index", headers=ada).status_code == (401 if content is None else 503)
    assert client.get("/livez").status_code == 200


# Scopes


@pytest.mark.parametrize("scope", ["read", "write", "admin"])
def test_every_call_does_what_the_scope_allows_and_no_more(
    app: FastAPI, client: TestClient, tmp_path: Path, jobs: list[str], broker: FakeBroker, scope: str
) -> None:
    broker.advance(jobs[0], "running")
    order = ("read", "write", "admin")
    headers = create_key(tmp_path, scope=scope)
    for name, method, path in iter_calls(app):
        if name not in ROUTE_SCOPES or name == "follow_job":
            continue
        response = client.request(method, path, json=EXAMPLE_BODIES.get(name), headers=headers)
        if order.index(ROUTE_SCOPES[name]) > order.index(scope):
            assert f"scope {ROUTE_SCOPES[name]}" in require_problem(response, 403, "forbidden").detail
        else:
            assert response.status_code not in (401, 403), (path, response.text)


def test_every_route_has_a_scope_or_is_open(app: FastAPI) -> None:
    named = {name for name, _, path in iter_calls(app) if path not in OPEN_PATHS and path != "/static"}
    assert named == set(ROUTE_SCOPES)


def test_a_route_that_nobody_gave_a_scope_is_refused_to_everybody(
    app: FastAPI, client: TestClient, tmp_path: Path
) -> None:
    @app.get("/new")
    async def new() -> str:
        return "secret"

    require_problem(client.get("/new"), 403, "forbidden")
    require_problem(client.get("/new", headers=create_key(tmp_path, scope="admin")), 403, "forbidden")
    require_problem(client.get("/new"), 401, "unauthorized")


def test_the_document_names_the_scope_of_each_call(app: FastAPI) -> None:
    document = app.openapi()
    operations = [one for item in document["paths"].values() for one in item.values()]
    said = {one["operationId"]: one["security"] for one in operations if "security" in one}
    assert said == {name: [{"key": [scope]}] for name, scope in ROUTE_SCOPES.items()}
    scheme = document["components"]["securitySchemes"]["key"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")


# Streams, the log, and the start


def test_a_stream_ends_when_its_key_is_revoked(
    client: TestClient, tmp_path: Path, broker: FakeBroker, jobs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = create_key(tmp_path)

    async def revoked(job_id: str, last_id: str) -> Any:
        yield "1-0", broker.records[job_id]
        KeyFile(tmp_path).revoke("ada")
        yield "2-0", broker.records[job_id]

    monkeypatch.setattr(broker, "iter_events", revoked)
    text = client.get(f"/jobs/{jobs[0]}/events", headers=headers).text
    assert re.findall("^event: (.*)$", text, re.MULTILINE) == ["state", "problem"]
    assert json.loads(text.rpartition("data: ")[2].split("\n")[0])["code"] == "unauthorized"


def test_the_log_says_whose_key_it_was_and_nothing_of_the_secret(
    client: TestClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    headers = create_key(tmp_path)
    with caplog.at_level("INFO", logger="service"):
        client.get("/index", headers=headers)
        client.get("/index", headers={"Authorization": "Bearer bg_wrong_secret"})
    assert "key ada" in caplog.text
    assert headers["Authorization"].split("_", 2)[2] not in caplog.text
    assert "bg_wrong" not in caplog.text


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.4", "example.com"])
def test_an_address_that_others_reach_needs_a_key_that_counts(
    tmp_path: Path, host: str, broker: FakeBroker
) -> None:
    settings = ServiceSettings(host=host, data_dir=tmp_path, allowed_hosts=("testserver",))
    app = create_app(settings, broker)  # pyright: ignore[reportArgumentType]
    assert TestClient(app).get("/workers").status_code == 401, "nor does the application open by itself"
    with pytest.raises(InvalidInput, match="bergson keys create"):
        require_keys_if_public(settings)
    create_key(tmp_path, "old", expires_at=1.0)
    with pytest.raises(InvalidInput, match="bergson keys create"):
        require_keys_if_public(settings)
    headers = create_key(tmp_path)
    require_keys_if_public(settings)
    assert TestClient(app).get("/workers", headers=headers).status_code == 200


def test_a_damaged_file_of_keys_keeps_the_service_from_starting(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE_NAME).write_text("{")
    with pytest.raises(InvalidInput, match=KEY_FILE_NAME):
        require_keys_if_public(ServiceSettings(data_dir=tmp_path))
