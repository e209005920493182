"""Below a prefix that a proxy strips, every address that the service gives leads back through the proxy."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from bergson_core.schemas.build import BuildSpec
from service.app import create_app
from service.client import Client
from service.http.proxy_prefix import route_path
from service.settings import ServiceSettings
from tests.service.fake_broker import FakeBroker, publish_manifest
from tests.service.helpers import EXAMPLE_BODIES, make_key_header, require_problem, serve_app

PREFIX = "/tools/bergson"
HOP_HEADERS = {"connection", "transfer-encoding", "keep-alive", "date", "server"}


class Proxy:
    """A proxy that serves what lies at `upstream` below a prefix, as nginx and Traefik do.

    Args:
        upstream: Address of the service.
        strips: Whether the service gets the path without the prefix.
        headers: Headers to add to each request.
    """

    def __init__(self, upstream: str, strips: bool = True, **headers: str) -> None:
        self._upstream, self._strips, self._headers = upstream, strips, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        path = request.url.path
        assert path.startswith(PREFIX), f"{path} leads past the proxy"
        target = self._upstream + (path.removeprefix(PREFIX) if self._strips else path)
        async with httpx.AsyncClient(trust_env=False) as client:
            outgoing = client.build_request(
                request.method,
                f"{target}?{request.url.query}",
                headers=dict(request.headers) | self._headers,
                content=await request.body(),
            )
            response = await client.send(outgoing, stream=True)
            headers = {name: value for name, value in response.headers.items() if name not in HOP_HEADERS}
            reply = StreamingResponse(response.aiter_raw(), response.status_code, headers)
            await reply(scope, receive, send)
            await response.aclose()


@contextmanager
def behind_proxy(app: ASGIApp, strips: bool = True, **headers: str) -> Iterator[str]:
    """Serves the service behind a proxy, and yields its address there."""
    with serve_app(app) as upstream, serve_app(Proxy(upstream, strips, **headers)) as proxy:
        yield f"{proxy}{PREFIX}"


@pytest.fixture
def make_app(settings: ServiceSettings, broker: FakeBroker, spec: BuildSpec) -> Callable[..., FastAPI]:
    publish_manifest(settings.indexes_dir, "facts", spec)

    def make(**changes: Any) -> FastAPI:
        changed = ServiceSettings.model_validate(settings.model_dump() | changes)
        return create_app(changed, broker)  # pyright: ignore[reportArgumentType]

    return make


WAYS = {
    "the setting": ({"root_path": PREFIX}, True, {}),
    "the setting, and a prefix that was not stripped": ({"root_path": f"{PREFIX}/"}, False, {}),
    "a header": ({"trusted_proxies": "127.0.0.0/8"}, True, {"X-Forwarded-Prefix": PREFIX}),
    "headers of two proxies": ({"trusted_proxies": "*"}, True, {"X-Forwarded-Prefix": "/tools, /bergson/"}),
}


@pytest.fixture(params=WAYS)
def address(request: pytest.FixtureRequest, make_app: Callable[..., FastAPI]) -> Iterator[str]:
    """The address of the service behind the proxy."""
    settings, strips, headers = WAYS[request.param]
    with behind_proxy(make_app(**settings), strips, **headers) as url:
        yield url


def get(url: str) -> httpx.Response:
    return httpx.get(url, trust_env=False, follow_redirects=True)


def test_jobs_are_found_at_their_location(address: str) -> None:
    response = httpx.post(f"{address}/index", json=EXAMPLE_BODIES["build_index"], trust_env=False)
    location = response.headers["Location"]
    assert location == f"{PREFIX}/jobs/{response.json()['job_id']}"
    assert get(urljoin(address, location)).json()["job_id"] == response.json()["job_id"]


def own(path: Path) -> bool:
    return not {"swagger", "vendor"} & set(path.parts)


def test_redirects_lead_back_through_the_proxy(address: str) -> None:
    for path in ("/index/", "/docs/", "/index/facts/", "/index//", "/jobs/?limit=1"):
        response = get(address + path)
        assert response.status_code == 200 and response.history, path
        assert all(step.headers["location"].startswith(f"{PREFIX}/") for step in response.history), path


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("/index/", "../index"),
        ("/index/?limit=1", "../index?limit=1"),
        ("/docs/", "../docs"),
        ("/index/facts/", "../facts"),
        ("/jobs/a/events/", "../events"),
        ("/index//", "../../index"),
        ("/static", "./static/"),
    ],
)
def test_redirects_are_relative_where_no_prefix_is_known(
    client: TestClient, path: str, location: str
) -> None:
    for method in ("GET", "HEAD"):
        response = client.request(method, path, follow_redirects=False)
        assert (response.status_code, response.headers["location"]) == (307, location)


@pytest.mark.parametrize("path", ["", "/", "/docs"])
def test_a_page_finds_its_assets_below_the_prefix(address: str, path: str) -> None:
    page = get(f"{address}{path}")
    assets = re.findall(r"""(?:href|src)=["']([^"'#]*(?:static/|openapi)[^"'#]+)["']""", page.text)
    assert len(assets) >= 5
    assert {get(urljoin(str(page.url), asset)).status_code for asset in assets} == {200}


def test_every_call_of_a_page_is_relative_so_that_it_goes_below_the_prefix(address: str) -> None:
    code = "".join(path.read_text() for path in (Path("service") / "static").rglob("*.js") if own(path))
    called = set(re.findall(r"""(?:call|post|events)\(["'`]([^"'`$?]+)""", code))
    assert {"index", "jobs", "workers", "readyz", "attribute"} <= called
    assert not [path for path in called if path.startswith("/")]
    for path in ("index", "jobs", "workers", "readyz", "openapi.json"):
        assert get(urljoin(f"{address}/docs", path)).status_code == 200, path


def test_the_document_names_the_prefix_as_its_server(address: str) -> None:
    document = get(f"{address}/openapi.json").json()
    assert document["servers"] == [{"url": PREFIX}]
    (server,) = document["servers"]
    assert get(urljoin(address, server["url"] + "/livez")).json() == {"status": "ok"}


def test_the_client_works_through_the_proxy(address: str, broker: FakeBroker) -> None:
    with Client(address, retry_s=0, trust_env=False) as client:
        job = client.build("news", **{k: v for k, v in EXAMPLE_BODIES["build_index"].items() if k != "name"})
        broker.advance(job.job_id, "succeeded", stage="done")
        assert [record.state for record in client.events(job)][-1] == "succeeded"
        assert [index.name for index in client.indexes()] == ["facts"]
        assert client.ready().workers == 1


def test_pages_follow_each_other_through_the_proxy(
    address: str, settings: ServiceSettings, spec: BuildSpec
) -> None:
    for name in ("a", "b"):
        publish_manifest(settings.indexes_dir, name, spec)
    first = get(f"{address}/index?limit=2").json()
    second = get(f"{address}/index?limit=2&cursor={first['next_cursor']}").json()
    assert [item["name"] for item in first["items"] + second["items"]] == ["a", "b", "facts"]


def test_open_pages_and_scopes_are_the_same_below_a_prefix(
    make_app: Callable[..., FastAPI], settings: ServiceSettings
) -> None:
    headers = make_key_header(settings.data_dir)
    with TestClient(make_app(root_path=PREFIX)) as client:
        for prefix in ("", PREFIX):
            for path in ("/livez", "/docs", "/openapi.json", "/static/favicon.svg"):
                assert client.get(prefix + path).status_code == 200
            require_problem(client.get(f"{prefix}/index"), 401, "unauthorized")
            require_problem(client.get(f"{prefix}/static/../index"), 401, "unauthorized")
            assert client.get(f"{prefix}/index", headers=headers).status_code == 200
            require_problem(client.delete(f"{prefix}/index/facts", headers=headers), 403, "forbidden")
        require_problem(client.get(f"{PREFIX}x/index", headers=headers), 404, "not_found")


@pytest.mark.parametrize("trusted", ["", "10.0.0.0/8,192.168.1.1", "::1"])
def test_the_header_of_anybody_else_is_ignored(make_app: Callable[..., FastAPI], trusted: str) -> None:
    app = make_app(trusted_proxies=trusted)
    with TestClient(app, client=("172.16.0.9", 1234), headers={"X-Forwarded-Prefix": "/evil"}) as client:
        assert "servers" not in client.get("/openapi.json").json()
        response = client.post("/index", json=EXAMPLE_BODIES["build_index"])
        assert response.headers["Location"].startswith("/jobs/")
        redirect = client.get("/index/", follow_redirects=False)
        assert redirect.headers["Location"] == "../index"


@pytest.mark.parametrize("prefix", ["https://evil.example", "/a/../b", "/a b", "/\xe9", "/a//b", "/.."])
def test_a_prefix_that_is_no_path_is_refused(make_app: Callable[..., FastAPI], prefix: str) -> None:
    with TestClient(make_app(trusted_proxies="*"), raise_server_exceptions=False) as client:
        headers = [(b"X-Forwarded-Prefix", prefix.encode("latin-1"))]
        problem = require_problem(client.get("/livez", headers=headers), 400, "bad_request")
        assert "X-Forwarded-Prefix: expected a path such as /bergson" in problem.detail
    with pytest.raises(ValueError, match="root_path"):
        make_app(root_path=prefix)


@pytest.mark.parametrize("proxies", ["proxy.example", "10.0.0.0/99", "10.0.0.1/8"])
def test_proxies_that_are_no_addresses_are_refused(make_app: Callable[..., FastAPI], proxies: str) -> None:
    with pytest.raises(ValueError, match="expected addresses such as"):
        make_app(trusted_proxies=proxies)


def test_a_prefix_of_the_server_that_mounts_the_service_counts_too(make_app: Callable[..., FastAPI]) -> None:
    with TestClient(make_app(), root_path=PREFIX) as client:
        for prefix in ("", PREFIX):
            assert client.get(f"{prefix}/openapi.json").json()["servers"] == [{"url": PREFIX}]
            assert client.get(f"{prefix}/livez").status_code == 200


@pytest.mark.parametrize(
    ("root_path", "path", "expected"),
    [("", "/a", "/a"), ("/p", "/p/a", "/a"), ("/p", "/p", ""), ("/p", "/px/a", "/px/a"), ("/p", "/a", "/a")],
)
def test_the_path_that_routes_are_compared_with_has_no_prefix(
    root_path: str, path: str, expected: str
) -> None:
    assert route_path({"type": "http", "root_path": root_path, "path": path}) == expected
