"""Hostile HTTP requests do no harm.

Other tests cover models and data (tests/core/security), local paths (tests/worker/process/test_path_checks.py), keys
and scopes (tests/service/auth), NaN and huge numbers (tests/service/http/test_strict_json.py), messages of another
version (tests/worker/queue/test_hostile_messages.py), and random requests (tests/service/openapi/test_schemathesis.py).
"""

import gzip
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import ServiceSettings
from tests.service.fake_broker import FakeBroker
from tests.service.helpers import make_key_header, require_problem, serve_app

QUERY: dict[str, Any] = {"index": "facts", "prompt": "Ada was born in", "completion": " London"}


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "streamed"])
def test_a_body_of_100_mb_is_refused_and_never_held_in_memory(
    settings: ServiceSettings, broker: FakeBroker, declared: bool
) -> None:
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b" " * 10**6

    app = create_app(settings.model_copy(update={"max_body_bytes": 10**6}), broker)  # type: ignore[arg-type]
    headers = {"Content-Type": "application/json"} | ({"Content-Length": str(10**8)} if declared else {})
    with serve_app(app) as url, httpx.Client(base_url=url) as client:
        before = resident_bytes()
        with suppress(httpx.TransportError):  # the connection may be closed on us
            assert client.post("/attribute", content=pieces(), headers=headers).status_code == 413
        assert client.get("/livez").status_code == 200
    assert sent < 100
    assert resident_bytes() - before < 50 * 10**6


def test_a_compressed_body_is_not_decompressed(client: TestClient) -> None:
    bomb = gzip.compress(json.dumps(QUERY | {"prompt": "x" * 10**7}).encode())
    assert len(bomb) < 20_000
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    require_problem(client.post("/attribute", content=bomb, headers=headers), 422, "invalid_input")


@pytest.mark.parametrize(
    "name",
    [
        "fаcts",
        "facts\u202e",
        "fa\u0301cts",
        "facts\0",
        "\ud800",
        "facts/..",
        "..%2ffacts",
        "ﬁcts",
        " facts",
        "facts\n",
    ],
    ids=ascii,
)
def test_only_plain_names_are_accepted_as_names_of_an_index(client: TestClient, name: str) -> None:
    body = json.dumps(QUERY | {"index": name}).encode()
    response = client.post("/attribute", content=body, headers={"Content-Type": "application/json"})
    require_problem(response, 422, "invalid_input")


@pytest.mark.parametrize(
    "path", ["/index/..%2fkeys.json", "/index/%252e%252e", "/index/facts%00", "/static/..%2fapp.py"]
)
def test_a_path_cannot_leave_its_directory(client: TestClient, path: str) -> None:
    assert client.get(path).status_code in (404, 422)


@pytest.mark.parametrize("sent", ["a\r\nSet-Cookie: x=1", "a b", "é", "x" * 129, "{}"])
def test_a_request_id_cannot_inject_headers_or_log_lines(client: TestClient, sent: str) -> None:
    answer = client.get("/livez", headers={"X-Request-ID": sent.encode("latin-1")})
    assert answer.headers["X-Request-ID"] != sent
    assert "set-cookie" not in answer.headers


def test_the_cache_reveals_no_text_to_a_key_that_may_see_none(
    client: TestClient, broker: FakeBroker, settings: ServiceSettings
) -> None:
    full, bare = (
        make_key_header(settings.data_dir, name=name, text=text) for name, text in (("a", True), ("b", False))
    )
    elsewhere = make_key_header(settings.data_dir, name="c", indexes=("other",))
    client.post("/attribute", json=QUERY, headers=full)
    client.post("/attribute", json=QUERY, headers=bare)
    assert [query.include for query, *_ in broker.queries] == [("text", "metadata"), ()]
    require_problem(client.post("/attribute", json=QUERY, headers=elsewhere), 404, "index_not_found")
    client.post("/attribute", json=QUERY, headers=full)
    assert len(broker.queries) == 2


def test_deep_nesting_is_refused(client: TestClient) -> None:
    body = b'{"filter": ' + b"[" * 9000 + b"]" * 9000 + b"}"
    response = client.post("/attribute", content=body, headers={"Content-Type": "application/json"})
    require_problem(response, 422, "invalid_input")
