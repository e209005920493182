"""What several tests of the service share."""

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
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from service.auth.api_keys import Caller, KeyFile
from service.http.metrics import CONTENT_TYPE
from service.http.problems import MEDIA_TYPE, ProblemDetails
from service.indexes.canary_log import CanaryRun
from service.openapi import examples


def require_problem(response: Any, status: int, code: str) -> ProblemDetails:
    """The problem in `response`, of httpx or httpx2, checked for what all of them promise."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    problem = ProblemDetails.model_validate_json(response.text)
    assert (problem.status, problem.code) == (status, code)
    assert problem.type == f"urn:bergson:problem:{code}"
    assert problem.request_id == response.headers["x-request-id"]
    assert problem.title and problem.detail
    return problem


def make_canary_run(index: str = "facts", **changes: object) -> CanaryRun:
    made = CanaryRun(
        index=index,
        generation=1,
        at=1_772_366_400.5,
        queries=2,
        mrr=0.75,
        recall_at_10=0.95,
        latency_p50_s=0.02,
        latency_p95_s=0.04,
    )
    return made.model_copy(update=changes)


def scrape(client: TestClient, **headers: str) -> dict[str, Metric]:
    """The families that the service exports, by name, checked for what the format asks."""
    response = client.get("/metrics", headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == CONTENT_TYPE
    families = list(text_string_to_metric_families(response.text))
    names = [family.name for family in families]
    assert len(set(names)) == len(names), "each family is told once"
    samples = [(one.name, tuple(sorted(one.labels.items()))) for family in families for one in family.samples]
    assert len(set(samples)) == len(samples), "each sample is told once"
    return {family.name: family for family in families}


def sample_value(families: dict[str, Metric], name: str, **labels: str) -> float | None:
    """The sample of exactly these labels."""
    found = (one for family in families.values() for one in family.samples if one.name == name)
    return next((one.value for one in found if one.labels == labels), None)


PROCESS_TIMEOUT_S = 20


@contextmanager
def start_service(data_dir: Path, **changes: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A service with its embedded Redis, and its address, which it says in its log."""
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
        while not (found := re.search(r"(http://\S+)/docs", log.read_text())):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield process, found[1]
    finally:
        process.kill()
        process.wait(PROCESS_TIMEOUT_S)


REPOSITORY = Path(__file__).parents[2]


def make_environment(data_dir: Path, **changes: str) -> dict[str, str]:
    """Ours without what would configure the service, and with `changes`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("BERGSON_", "REDIS_"))}
    return kept | {"BERGSON_DATA_DIR": str(data_dir), "BERGSON_PORT": "0"} | changes


EXAMPLE_BODIES: dict[str, Any] = {
    "build_index": examples.INDEX_INLINE | {"name": "facts-2"},
    "estimate_index": examples.INDEX_INLINE,
    "append_documents": examples.APPEND_INLINE,
    "fit_profile": examples.PROFILE_INLINE,
    "attribute": examples.ATTRIBUTE_REQUEST,
    "attribute_batch": examples.BATCH_REQUEST,
}


def create_key(
    data_dir: Path, name: str = "ada", expires_at: float | None = None, **what: Any
) -> dict[str, str]:
    """The header of a new key."""
    made = Caller.model_validate({"name": name, "scope": "read"} | what)
    return {"Authorization": f"Bearer {KeyFile(data_dir).create(made, expires_at)}"}


def iter_calls(app: FastAPI, index: str = "facts", job_id: str = "job-1") -> Iterator[tuple[str, str, str]]:
    """(name of the route, method, path) of everything that `app` answers, with parameters filled in."""
    filled = {"name": index, "job_id": job_id, "document_id:path": "doc-1"}
    for route in iter_route_contexts(app.routes):
        path = route.path or ""
        for parameter, value in filled.items():
            path = path.replace("{" + parameter + "}", value)
        assert "{" not in path, f"no value for a parameter of {path}"
        for method in sorted(route.methods or {"GET"}):
            yield route.name or "", method, path


START_TIMEOUT_S = 10


@contextmanager
def serve_app(app: FastAPI) -> Iterator[str]:
    """The address of `app` while the context is open."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + START_TIMEOUT_S
    while not server.started and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.started, "the server did not start"
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(START_TIMEOUT_S)
        listening.close()
