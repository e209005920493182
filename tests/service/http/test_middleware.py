"""Every response has a request id, and only requests to allowed hosts are answered."""

import json
import re
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from bergson_core.errors import RedisUnavailable
from tests.service.fake_broker import FakeBroker
from tests.service.helpers import make_key_header, require_problem, sample_value, scrape, serve_app
from worker.telemetry import logs

PATHS = ["/livez", "/docs", "/openapi.json", "/static/dashboard/main.js", "/nothing", "/jobs/none"]


@pytest.mark.parametrize("path", PATHS)
def test_every_response_has_a_request_id_and_forbids_sniffing(client: TestClient, path: str) -> None:
    first, second = client.get(path), client.get(path)
    assert re.fullmatch("[0-9a-f]{32}", first.headers["x-request-id"])
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert first.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", PATHS)
def test_a_well_formed_request_id_is_kept(client: TestClient, path: str) -> None:
    sent = "trace-1.a:B_" + "x" * 116
    response = client.get(path, headers={"X-Request-ID": sent})
    assert response.headers.get_list("x-request-id") == [sent]


@pytest.mark.parametrize("sent", ["", "x" * 129, "a b", "<script>", "\xe9", "a\tb", 'a"b'])
def test_a_malformed_request_id_is_replaced(client: TestClient, sent: str) -> None:
    response = client.get("/livez", headers=[(b"X-Request-ID", sent.encode("latin-1"))])
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "[::1]", "LOCALHOST:1"])
def test_requests_to_allowed_hosts_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/livez", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "evil.example:8000", "127.0.0.1.nip.io", "", "[::2]"]
)
@pytest.mark.parametrize(
    "path", ["/", "/docs", "/nothing", "/metrics", "/livez/", "/livez/x", "/static/livez"]
)
def test_a_foreign_host_is_refused(client: TestClient, host: str, path: str) -> None:
    problem = require_problem(client.get(path, headers={"Host": host}), 400, "host_not_allowed")
    assert "BERGSON_ALLOWED_HOSTS" in problem.detail


def test_a_second_host_is_refused_whichever_comes_first(client: TestClient) -> None:
    for hosts in (["localhost", "evil.example"], ["evil.example", "localhost"], ["localhost", "localhost"]):
        response = client.get("/docs", headers=[("Host", host) for host in hosts])
        require_problem(response, 400, "host_not_allowed")


@pytest.mark.parametrize(
    "host",
    ["10.244.0.5:8000", "10.244.0.5", "[::1]:8000", "[fd00::5]:8000", "bergson-0.bergson.svc:8000", ""],
)
@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_health_checks_are_answered_under_every_host(client: TestClient, host: str, path: str) -> None:
    for method in ("GET", "HEAD"):
        assert client.request(method, path, headers={"Host": host}).status_code == 200
    if host != "[::1]:8000":
        require_problem(client.post(path, headers={"Host": host}), 400, "host_not_allowed")


@pytest.mark.parametrize(
    "path",
    [
        "/livez",
        "/readyz",
        "/docs",
        "/openapi.json",
        "/metrics",
        "/index",
        "/index/facts",
        "/index/none",
        "/jobs?limit=1",
        "/jobs?limit=0",
        "/jobs/job-1",
        "/workers",
        "/models",
        "/static/favicon.svg",
        "/nothing",
        "/attribute",
        "/",
    ],
)
def test_head_is_answered_as_get_without_a_body(client: TestClient, jobs: list[str], path: str) -> None:
    get, head = (client.request(method, path, follow_redirects=False) for method in ("GET", "HEAD"))
    assert (head.status_code, head.content) == (get.status_code, b"")
    varying = {"x-request-id", "date", "content-length"}
    assert {k: v for k, v in head.headers.items() if k not in varying} == {
        k: v for k, v in get.headers.items() if k not in varying
    }
    assert "content-length" in head.headers
    if get.status_code == 200 and path != "/metrics":
        assert head.headers["content-length"] == get.headers["content-length"]


def test_head_of_an_event_stream_ends_at_once(app: FastAPI, jobs: list[str]) -> None:
    with serve_app(app) as url, httpx.Client(base_url=url, trust_env=False, timeout=5) as client:
        response = client.head(f"/jobs/{jobs[0]}/events")
        assert (response.status_code, response.content) == (200, b"")
        assert response.headers["content-type"].startswith("text/event-stream")
        assert client.head("/livez").headers["content-length"] == str(len(client.get("/livez").content))


def test_head_needs_a_key_and_is_counted_as_head(client: TestClient, tmp_path: Path) -> None:
    headers = make_key_header(tmp_path)
    assert client.head("/index").status_code == 401
    assert client.head("/index", headers=headers).status_code == 200
    requests = sample_value(
        scrape(client, **headers), "bergson_http_requests_total", method="HEAD", route="/index", status="200"
    )
    assert requests == 1


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/index", "GET, HEAD, POST"),
        ("PUT", "/index/facts", "GET, HEAD, DELETE"),
        ("PATCH", "/index/facts/documents/a/b", "GET, HEAD, DELETE"),
        ("DELETE", "/attribute", "POST"),
        ("GET", "/attribute", "POST"),
        ("OPTIONS", "/jobs", "GET, HEAD"),
        ("POST", "/livez", "GET, HEAD"),
        ("POST", "/openapi.json", "GET, HEAD"),
        ("POST", "/static/favicon.svg", "GET, HEAD"),
    ],
)
def test_a_method_that_a_path_does_not_take_is_refused_with_those_that_it_does(
    client: TestClient, method: str, path: str, allowed: str
) -> None:
    response = client.request(method, path)
    require_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == allowed


def test_pages_of_other_origins_cannot_read_responses(client: TestClient) -> None:
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "DELETE"}
    preflight = client.options("/jobs/job-1", headers=headers)
    assert not [name for name in preflight.headers if name.startswith("access-control")]
    answer = client.get("/livez", headers=headers)
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_request_is_one_line_of_the_log_with_its_fields(
    client: TestClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(logs.make_formatter("json"))
    headers = make_key_header(tmp_path) | {"X-Request-ID": "mine-1"}
    with caplog.at_level("INFO", logger="service"):
        client.get("/jobs/a%0Ab?secret=1", headers=headers)
    (line,) = (json.loads(line) for line in caplog.text.splitlines())
    assert line.pop("duration_ms") >= 0
    assert {key: line[key] for key in ("logger", "method", "path", "status", "key", "request_id")} == {
        "logger": "service.http.middleware",
        "method": "GET",
        "path": "/jobs/a%0Ab",
        "status": 422,
        "key": "ada",
        "request_id": "mine-1",
    }
    assert line["event"].startswith("GET /jobs/a%0Ab 422 ")


def test_everything_that_a_request_logs_has_its_id(
    client: TestClient, broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(logs.make_formatter("json"))
    broker.error = RedisUnavailable("Redis does not answer")
    with caplog.at_level("INFO", logger="service"):
        for sent in ("mine-1", "mine-2"):
            client.get("/workers", headers={"X-Request-ID": sent})
    lines = [json.loads(line) for line in caplog.text.splitlines()]
    assert [line["request_id"] for line in lines] == ["mine-1", "mine-1", "mine-2", "mine-2"]
    assert lines[0]["code"] == "redis_unavailable"
