"""Helpers that several tests of the service share."""

import asyncio
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from fastapi.testclient import TestClient
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import ASGIApp

from service.auth.api_keys import Caller, KeyFile
from service.http.metrics import CONTENT_TYPE
from service.http.problems import MEDIA_TYPE, ProblemDetails
from service.indexes.canary_log import CanaryRun
from service.openapi import behaviour_examples, examples, link_examples, totals_examples

REPOSITORY = Path(__file__).parents[2]
PROCESS_TIMEOUT_S = 20
START_TIMEOUT_S = 10


def require_problem(response: Any, status: int, code: str) -> ProblemDetails:
    """Returns the problem in a response, of httpx or httpx2, after checking it against what every problem has."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    problem = ProblemDetails.model_validate_json(response.text)
    assert (problem.status, problem.code) == (status, code)
    assert problem.type == f"urn:bergson:problem:{code}"
    assert problem.request_id == response.headers["x-request-id"]
    assert problem.title and problem.detail
    return problem


def make_canary_run(index: str = "facts", **changes: object) -> CanaryRun:
    """Returns a canary run with these changes."""
    run = CanaryRun(
        index=index,
        generation=1,
        at=1_772_366_400.5,
        queries=2,
        mrr=0.75,
        recall_at_10=0.95,
        latency_p50_s=0.02,
        latency_p95_s=0.04,
    )
    return run.model_copy(update=changes)


def scrape(client: TestClient, **headers: str) -> dict[str, Metric]:
    """Returns the metric families that the service exports, by name, after checking them against the text format."""
    response = client.get("/metrics", headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == CONTENT_TYPE
    families = list(text_string_to_metric_families(response.text))
    names = [family.name for family in families]
    assert len(set(names)) == len(names), "each family is exported once"
    samples = [
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in families
        for sample in family.samples
    ]
    assert len(set(samples)) == len(samples), "each sample is exported once"
    return {family.name: family for family in families}


def sample_value(families: dict[str, Metric], name: str, **labels: str) -> float | None:
    """Returns the value of the sample with exactly these labels, or None if there is none."""
    samples = (sample for family in families.values() for sample in family.samples)
    values = (sample.value for sample in samples if sample.name == name and sample.labels == labels)
    return next(values, None)


@contextmanager
def start_service(data_dir: Path, **changes: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Starts a service with its embedded Redis, and yields the process and the address, which its log names."""
    log = data_dir / "service.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "service"],
            cwd=REPOSITORY,
            env=make_environment(data_dir, **changes),
            stderr=stream,
        )
    try:
        deadline = time.monotonic() + PROCESS_TIMEOUT_S
        while not (match := re.search(r"(http://\S+)/docs", log.read_text())):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield process, match[1]
    finally:
        process.kill()
        process.wait(PROCESS_TIMEOUT_S)


def make_environment(data_dir: Path, **changes: str) -> dict[str, str]:
    """Returns this process's environment without settings of the service, and with `changes`."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("BERGSON_", "REDIS_"))
    }
    return environment | {"BERGSON_DATA_DIR": str(data_dir), "BERGSON_PORT": "0"} | changes


EXAMPLE_BODIES: dict[str, Any] = {
    "build_index": examples.INDEX_INLINE | {"name": "facts-2"},
    "estimate_index": examples.INDEX_INLINE,
    "append_documents": examples.APPEND_INLINE,
    "fit_profile": examples.PROFILE_INLINE,
    "create_behaviour": behaviour_examples.BEHAVIOUR_REQUEST,
    "preview_unlearning": examples.UNLEARN_FILTER,
    "attribute": examples.ATTRIBUTE_REQUEST,
    "attribute_batch": examples.BATCH_REQUEST,
    "attribute_indexes": examples.SIDE_BY_SIDE_REQUEST,
    "influence_totals": totals_examples.TOTALS_REQUEST,
    "make_link": link_examples.LINK_REQUEST,
}


def make_key_header(
    data_dir: Path, name: str = "ada", expires_at: float | None = None, **fields: Any
) -> dict[str, str]:
    """Creates an API key with these fields, and returns the header that sends it."""
    caller = Caller.model_validate({"name": name, "scope": "read"} | fields)
    return {"Authorization": f"Bearer {KeyFile(data_dir).create(caller, expires_at)}"}


def iter_calls(app: FastAPI, index: str = "facts", job_id: str = "job-1") -> Iterator[tuple[str, str, str]]:
    """Yields the name of the route, the method and the path of every call, with its parameters filled in."""
    values = {
        "name": index,
        "job_id": job_id,
        "behaviour": "refusals",
        "document_id:path": "doc-1",
        "link_id": link_examples.LINK_ID,
    }
    for route in iter_route_contexts(app.routes):
        path = route.path or ""
        for parameter, value in values.items():
            path = path.replace("{" + parameter + "}", value)
        assert "{" not in path, f"no value for a parameter of {path}"
        for method in sorted(route.methods or {"GET"}):
            yield route.name or "", method, path


class QuickServer(uvicorn.Server):
    """A server that looks every 10 ms, instead of 100 ms, whether it should end."""

    async def main_loop(self) -> None:
        should_exit = await self.on_tick(0)
        while not should_exit:
            await asyncio.sleep(0.01)
            should_exit = await self.on_tick(0)


@contextmanager
def serve_app(app: ASGIApp) -> Iterator[str]:
    """Serves `app` in another thread, for tests that need real connections, and yields its address."""
    server_socket = socket.create_server(("127.0.0.1", 0))
    server = QuickServer(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [server_socket]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + START_TIMEOUT_S
    while not server.started and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.started, "the server did not start"
    try:
        yield f"http://127.0.0.1:{server_socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(START_TIMEOUT_S)
        server_socket.close()


def iter_api_routes(app: FastAPI) -> Iterator[APIRoute]:
    """Yields the routes of the application that are calls, with those of its routers."""
    for context in iter_route_contexts(app.routes):
        if isinstance(context.original_route, APIRoute):
            yield context.original_route
