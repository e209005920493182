"""Over HTTP, each caller's own key goes to the service, and nobody gets further than the service lets them."""

import asyncio
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from bergson_core.errors import Forbidden, Unauthorized, Unavailable
from service.auth.api_keys import KeyFile
from service.mcp.key_gate import KeyGate
from service.mcp.service_access import ServiceAccess
from service.mcp.transports import make_http_app
from service.settings import ServiceSettings
from tests.e2e.helpers import BERGSON
from tests.service.helpers import make_key_header, serve_app
from tests.service.mcp.conftest import TEXTS

QUESTION = {"index": "news", "prompt": "Ada was born in", "completion": " London"}
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}
JSON = {"Accept": "application/json, text/event-stream"}


@pytest.fixture
def mcp_url(
    url: str, settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[str]:
    """Address of an MCP server over HTTP, in an environment that has a powerful key."""
    powerful = make_key_header(tmp_path, "powerful", scope="admin")["Authorization"].removeprefix("Bearer ")
    monkeypatch.setenv("BERGSON_API_KEY", powerful)
    app = make_http_app(ServiceAccess(url, forwards_keys=True), settings, allow_takedown=True)
    with serve_app(app) as address:
        yield f"{address}/mcp"


@asynccontextmanager
async def connect(mcp_url: str, headers: dict[str, str]) -> Any:
    async with (
        httpx2.AsyncClient(headers=headers) as http_client,
        Client(streamable_http_client(mcp_url, http_client=http_client)) as client,
    ):
        yield client


async def test_an_assistant_asks_over_http_with_a_key_of_its_own(mcp_url: str, tmp_path: Path) -> None:
    async with connect(mcp_url, make_key_header(tmp_path)) as client:
        answer = (await client.call_tool("ask", QUESTION)).structured_content
        assert answer["proponents"][0]["untrusted_text"] == TEXTS[0]


async def test_scope_texts_and_indexes_of_the_callers_key_count_and_not_those_of_the_process(
    mcp_url: str, tmp_path: Path
) -> None:
    reader = make_key_header(tmp_path, "reader", text=False, indexes=["news"])
    async with connect(mcp_url, reader) as client:
        listed = (await client.call_tool("list_indexes", {})).structured_content
        assert [index["name"] for index in listed["indexes"]] == ["news"]
        answer = (await client.call_tool("ask", QUESTION)).structured_content
        assert answer["proponents"][0]["untrusted_text"] is None
        refused = await client.call_tool("take_down", {"index": "news", "document_id": "doc-0"})
        assert refused.is_error and "scope write" in str(refused.content)
        hidden = await client.call_tool("describe_index", {"index": "facts"})
        assert hidden.is_error and "index_not_found" in str(hidden.content)
    writer = make_key_header(tmp_path, "writer", scope="write")
    async with connect(mcp_url, writer) as client:
        done = await client.call_tool("take_down", {"index": "news", "document_id": "doc-0"})
        assert not done.is_error


async def test_the_rate_of_the_callers_key_counts(mcp_url: str, tmp_path: Path) -> None:
    slow = make_key_header(tmp_path, "slow", rate="3/hour")
    async with connect(mcp_url, slow) as client:
        results = [await client.call_tool("describe_index", {"index": "news"}) for _ in range(3)]
    assert [result.is_error for result in results] == [
        False,
        False,
        True,
    ]  # finding out about the key is a call
    assert "rate_limited" in str(results[2].content) and "3/hour" in str(results[2].content)


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer bg_000000000000_" + "A" * 43, "Basic YWRhOmFkYQ==", "Bearer x y"],
)
def test_nothing_is_told_without_a_valid_key(mcp_url: str, header: str) -> None:
    headers = JSON | ({"Authorization": header} if header else {})
    for method in ("POST", "GET", "DELETE"):
        body = {"json": INITIALIZE} if method == "POST" else {}
        response = httpx.request(method, mcp_url, headers=headers, **body)
        assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"


async def test_a_revoked_key_is_refused_at_its_next_call(mcp_url: str, tmp_path: Path) -> None:
    async with connect(mcp_url, make_key_header(tmp_path)) as client:
        assert not (await client.call_tool("list_indexes", {})).is_error
        KeyFile(tmp_path).revoke("ada")
        refused = await client.call_tool("list_indexes", {})
        assert refused.is_error and "unauthorized" in str(refused.content)


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Host": "evil.example"}, 400, "host_not_allowed"),
        ({"Origin": "https://evil.example"}, 403, "forbidden"),
        ({"Sec-Fetch-Site": "cross-site"}, 403, "forbidden"),
        ({"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
    ],
)
def test_a_page_elsewhere_cannot_reach_the_server_through_a_browser(
    mcp_url: str, tmp_path: Path, headers: dict[str, str], status: int, code: str
) -> None:
    everything = JSON | make_key_header(tmp_path) | {"Content-Type": "application/json"} | headers
    response = httpx.post(mcp_url, headers=everything, json=INITIALIZE)
    assert (response.status_code, response.json()["code"]) == (status, code)


def test_a_host_that_the_setting_names_is_answered(
    url: str, settings: ServiceSettings, tmp_path: Path
) -> None:
    public = settings.model_copy(update={"allowed_hosts": ("bergson.example.org",)})
    with serve_app(make_http_app(ServiceAccess(url, forwards_keys=True), public)) as address:
        headers = JSON | make_key_header(tmp_path)
        for host, status in (
            ("bergson.example.org", 200),
            ("bergson.example.org:8443", 200),
            ("127.0.0.1", 400),
        ):
            response = httpx.post(f"{address}/mcp", headers=headers | {"Host": host}, json=INITIALIZE)
            assert response.status_code == status, (host, response.text)


def test_a_service_without_keys_may_be_asked_from_this_machine(url: str, settings: ServiceSettings) -> None:
    with serve_app(make_http_app(ServiceAccess(url, forwards_keys=True), settings)) as address:
        assert httpx.post(f"{address}/mcp", headers=JSON, json=INITIALIZE).status_code == 200


async def test_a_server_that_others_reach_refuses_a_service_without_keys(url: str, tmp_path: Path) -> None:
    gate = KeyGate(ServiceAccess(url, forwards_keys=True), requires_keys=True)
    for header in (None, "Bearer anything"):
        with pytest.raises(Forbidden, match="bergson keys create"):
            await gate.check(header)
    valid = make_key_header(tmp_path)["Authorization"]
    await gate.check(valid)
    with pytest.raises(Unauthorized):
        await gate.check(None)
    with pytest.raises(Unauthorized):
        await gate.check("Bearer anything")


async def test_a_service_that_does_not_answer_lets_nobody_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.mcp.service_access._RETRY_S", 0.0)
    gate = KeyGate(ServiceAccess("http://127.0.0.1:9", forwards_keys=True), requires_keys=False)
    with pytest.raises(Unavailable):
        await gate.check("Bearer anything")


# The command


@contextmanager
def run_mcp(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [BERGSON, "mcp", "--http", *arguments],
        env=os.environ | {"BERGSON_LOG_FORMAT": "text"} | environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    deadline = time.monotonic() + 60
    for line in process.stderr:
        if match := re.search(r"http://\S+/mcp", line):
            return match[0]
        assert time.monotonic() < deadline
    raise AssertionError("the process has ended")


def test_the_command_serves_until_it_is_stopped(url: str, tmp_path: Path) -> None:
    headers = make_key_header(tmp_path)
    with run_mcp("--port", "0", "--url", url) as process:
        address = read_address(process)

        async def ask() -> Any:
            async with connect(address, headers) as client:
                return (await client.call_tool("ask", QUESTION)).structured_content

        assert asyncio.run(ask())["proponents"][0]["id"] == "doc-0"
        assert httpx.post(address, headers=JSON, json=INITIALIZE).status_code == 401
        process.terminate()
        assert process.wait(30) in (0, -15)


def test_the_command_does_not_serve_others_for_a_service_without_keys(url: str) -> None:
    with run_mcp("--host", "0.0.0.0", "--port", "0", "--url", url) as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1 and "bergson keys create" in stderr
