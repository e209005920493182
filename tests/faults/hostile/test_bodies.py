"""No body of a megabyte holds up a web process, and no request at all makes it fail.

A web process runs by itself, without a worker, so that what is measured is its own work: the processor time that it
takes, and the largest memory that it had.
"""

import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psutil
import pytest
from hypothesis import given, seed
from hypothesis import strategies as st

from service.http.problems import MEDIA_TYPE
from tests.faults.support.hostile_bodies import (
    examples,
    fill_list,
    fill_object,
    hostile_parts,
    make_hostile_body,
    require_no_failure,
)
from tests.faults.support.system import System
from tests.service.helpers import EXAMPLE_BODIES

MEGABYTE = 10**6
MAX_CPU_S = 1.0
MAX_GROWTH_BYTES = 50 * 2**20
MAX_ANSWER_BYTES = 100_000
DOCUMENT = json.loads((Path(__file__).parents[3] / "docs" / "openapi.json").read_text())
CALLS: list[tuple[str, str, dict[str, Any]]] = [
    (method.upper(), path, call) for path, item in DOCUMENT["paths"].items() for method, call in item.items()
]
BODIES = [call for call in CALLS if "requestBody" in call[2]]
JSON = {"Content-Type": "application/json"}
QUESTION = '{"index":"facts","prompt":"a","completion":"b",'


class WebProcess:
    """A web process that is measured."""

    def __init__(self, url: str, pid: int):
        self.client = httpx.Client(base_url=url, timeout=60, trust_env=False)
        self._pid, self._process = pid, psutil.Process(pid)

    def send(self, method: str, path: str, body: str) -> httpx.Response:
        """Sends a body, and checks what the answer took: by the processor's time, as other programs run as well."""
        Path(f"/proc/{self._pid}/clear_refs").write_text("5")  # the peak is that from now on
        memory, cpu = self._peak_bytes(), self._cpu_s()
        response = self.client.request(method, path, content=body.encode(), headers=JSON)
        cpu, memory = self._cpu_s() - cpu, self._peak_bytes() - memory
        start = f"{method} {path} {body[:80]}"
        assert cpu < MAX_CPU_S, f"{cpu:.2f} s for {start}"
        assert memory < MAX_GROWTH_BYTES, f"{memory / 2**20:.0f} MiB for {start}"
        assert len(response.content) < MAX_ANSWER_BYTES, start
        require_no_failure(response)
        return response

    def _cpu_s(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system

    def _peak_bytes(self) -> int:
        status = Path(f"/proc/{self._pid}/status").read_text()
        return 1024 * int(re.findall(r"VmHWM:\s*(\d+)", status)[0])


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory, require: Callable[..., str]) -> Iterator[WebProcess]:
    with System(tmp_path_factory.mktemp("hostile"), require("redis-server")) as system:
        url = system.start_web(allowed_roots=str(system.directory))
        web = WebProcess(url, system.web_processes[0].pid)
        for method, path, call in BODIES:  # what is loaded and cached once does not count
            web.client.request(
                method, fill_path(path), json=EXAMPLE_BODIES[call["operationId"]] | {"timeout_s": 0.1}
            )
        yield web


def fill_path(path: str, name: str = "facts") -> str:
    return path.replace("{name}", name).replace("{document_id}", "doc-1").replace("{job_id}", "0" * 32)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/attribute/batch", '{"queries":' + fill_list("{}", MEGABYTE) + "}"),
        ("/attribute/batch", '{"queries":[' + fill_object("0", MEGABYTE) + "]}"),
        ("/attribute", QUESTION + '"filter":{"a":' + fill_list("[]", MEGABYTE) + "}}"),
        ("/attribute", QUESTION + '"filter":' + fill_object("[[]]", MEGABYTE) + "}"),
        ("/attribute", '{"index":"facts","messages":' + fill_list("{}", MEGABYTE) + "}"),
        ("/attribute", QUESTION + '"include":' + fill_list("0", MEGABYTE) + "}"),
        ("/attribute", QUESTION + '"x":1234567890123456789,"y":' + fill_list('{"":{}}', MEGABYTE) + "}"),
        ("/index", '{"name":"b","model":"m","documents":[{"text":' + fill_list('{"":{}}', MEGABYTE) + "}]}"),
        ("/index/facts/profiles", '{"name":"b","queries":' + fill_list("{}", MEGABYTE) + "}"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_megabyte_that_once_took_seconds_is_answered_at_once(web: WebProcess, path: str, body: str) -> None:
    assert web.send("POST", path, body).status_code in (202, 404, 413, 422)


@pytest.mark.parametrize(("method", "path", "call"), BODIES, ids=lambda value: str(value)[:40])
def test_no_body_of_a_megabyte_holds_up_the_process(
    web: WebProcess, long_form: bool, method: str, path: str, call: dict[str, Any]
) -> None:
    schema = call["requestBody"]["content"]["application/json"]["schema"]
    example = EXAMPLE_BODIES[call["operationId"]]
    parts = hostile_parts(schema, DOCUMENT["components"]["schemas"])

    @seed(0)
    @examples(4, long_form)
    @given(part=parts)
    def check(part: tuple[tuple[str | int, ...], str, str]) -> None:
        web.send(method, fill_path(path), make_hostile_body(example, part, MEGABYTE))

    check()
    assert web.client.get("/livez").status_code == 200


SEGMENTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40) | st.sampled_from(
    ["..", "%2e%2e", "a\n", "\0", "x" * 5000, "facts\n", "/", "//", "é" * 2000, "%", "%zz", "\x7f", "﷐", "١٢"]
)


@pytest.mark.parametrize(("method", "path", "call"), CALLS, ids=lambda value: str(value)[:40])
def test_no_name_id_cursor_or_header_makes_the_service_fail(
    web: WebProcess, long_form: bool, method: str, path: str, call: dict[str, Any]
) -> None:
    queries = [part["name"] for part in call.get("parameters", ()) if part["in"] == "query"]
    headers = [part["name"] for part in call.get("parameters", ()) if part["in"] == "header"]
    header_values = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), min_size=1).map(
        lambda text: text.strip().encode("latin-1") or b"-"
    )

    @seed(0)
    @examples(3, long_form)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        url = re.sub(r"{\w+}", lambda _: quote(data.draw(SEGMENTS), safe=""), path)
        sent = {name: data.draw(header_values) for name in [*headers, "Authorization", "Last-Event-ID"]}
        parameters = {name: data.draw(SEGMENTS) for name in queries}
        body = json.dumps(EXAMPLE_BODIES.get(call["operationId"])) if "requestBody" in call else None
        with web.client.stream(
            *(method, url), params=parameters, content=body, headers={**JSON, **sent}
        ) as response:
            response.read()
        require_no_failure(response)

    check()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nX: " + b"a" * 10**6,
        b"GET /livez HTTP/1.1\r\n" + b"X: a\r\n" * 100_000,
    ],
    ids=["address", "header", "headers"],
)
def test_an_address_and_headers_without_end_are_refused(web: WebProcess, request_bytes: bytes) -> None:
    url = web.client.base_url
    with socket.create_connection((url.host, url.port or 80), timeout=30) as connection:
        with suppress(ConnectionError):
            connection.sendall(request_bytes)
        with suppress(ConnectionError):
            answer = b""
            while piece := connection.recv(2**16):
                answer += piece
            assert not answer or (b" 431 " in answer and MEDIA_TYPE.encode() in answer)
    assert web.client.get("/livez").status_code == 200
