"""Traces from a request through Redis to the worker, kept in memory; and none at all without an endpoint."""

import asyncio
import logging
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from redis import Redis

from bergson_core.errors import TooLong
from service.app import create_app
from service.queue.broker import Broker
from service.settings import ServiceSettings
from tests.worker.fakes import FakeCore, make_query, publish_index
from tests.worker.helpers import REPOSITORY, read_replies, send_query, wait_until, wait_until_async
from worker.process.runner import Runner
from worker.settings import Settings
from worker.telemetry import tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACE_HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
QUERY_BODY = {"index": "facts", "prompt": "Ada was born in", "completion": " London"}
BUILD_BODY = {"name": "new", "model": "tiny", "documents": [{"text": "a"}]}
Start = Callable[[], Runner]


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """All spans that have ended."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use_provider(provider)
    yield exporter
    tracing.use_provider(None)


@pytest.fixture
async def client(broker: Broker, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """The whole web service over a real Redis."""
    publish_index(settings.indexes_dir / "facts")
    service = ServiceSettings(data_dir=settings.data_dir, redis_url=settings.redis_url)
    transport = httpx.ASGITransport(create_app(service, broker))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


def wait_for_spans(spans: InMemorySpanExporter, *names: str) -> list[ReadableSpan]:
    """Returns the first span of each name, once all of them have ended."""

    def ended_spans() -> list[ReadableSpan] | None:
        found = [find_span(spans, name) for name in names]
        return [span for span in found if span is not None] if None not in found else None

    return wait_until(ended_spans)


def find_span(spans: InMemorySpanExporter, name: str) -> ReadableSpan | None:
    return next((span for span in spans.get_finished_spans() if span.name == name), None)


def trace_id(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def is_child(span: ReadableSpan, parent: ReadableSpan) -> bool:
    assert span.parent is not None and parent.context is not None
    return span.parent.span_id == parent.context.span_id


async def test_a_query_is_one_trace_from_the_caller_to_the_worker(
    spans: InMemorySpanExporter, client: httpx.AsyncClient, broker: Broker, start_worker: Start
):
    start_worker()
    await wait_until_async(broker.list_workers)
    response = await client.post(
        "/attribute", json=QUERY_BODY, headers=TRACE_HEADERS | {"X-Request-ID": "mine-1"}
    )
    assert response.status_code == 200, response.text
    server, work, gradient, search = wait_for_spans(spans, "POST /attribute", "queries", "gradient", "search")
    assert {trace_id(span) for span in (server, work, gradient, search)} == {TRACE}
    assert server.parent is not None and f"{server.parent.span_id:016x}" == PARENT
    assert is_child(work, server) and is_child(gradient, work) and is_child(search, work)
    assert dict(server.attributes or {}) == {
        "bergson.request_id": "mine-1",
        "http.request.method": "POST",
        "http.route": "/attribute",
        "http.response.status_code": 200,
    }
    assert dict(work.attributes or {}) == {"bergson.index": "facts", "bergson.batch_size": 1}
    assert gradient.end_time and gradient.start_time and search.start_time == gradient.end_time
    assert gradient.end_time - gradient.start_time == 2_000_000


async def test_a_job_continues_the_trace_of_the_request_that_submitted_it(
    spans: InMemorySpanExporter, client: httpx.AsyncClient, start_worker: Start
):
    assert (await client.post("/index", json=BUILD_BODY, headers=TRACE_HEADERS)).status_code == 202
    start_worker()
    server, work = await asyncio.to_thread(wait_for_spans, spans, "POST /index", "job build")
    assert trace_id(work) == TRACE and is_child(work, server)


@pytest.mark.parametrize("succeeds", [True, False])
async def test_the_span_of_a_job_says_how_it_ended(
    spans: InMemorySpanExporter,
    client: httpx.AsyncClient,
    core: FakeCore,
    start_worker: Start,
    succeeds: bool,
):
    def fail(number: int) -> None:
        raise TooLong("99 tokens")

    if not succeeds:
        core.during = fail
    await client.post("/index", json=BUILD_BODY)
    start_worker()
    (work,) = await asyncio.to_thread(wait_for_spans, spans, "job build")
    assert (work.attributes or {})["bergson.outcome"] == ("succeeded" if succeeds else "too_long")
    assert work.status.status_code.name == ("UNSET" if succeeds else "ERROR")


async def test_another_trace_does_not_make_another_job(
    spans: InMemorySpanExporter, client: httpx.AsyncClient
):
    responses = [
        await client.post("/index", json=BUILD_BODY, headers={"Idempotency-Key": "k"}) for _ in range(2)
    ]
    assert responses[0].json()["job_id"] == responses[1].json()["job_id"]


async def test_a_request_without_a_valid_traceparent_begins_a_trace(
    spans: InMemorySpanExporter, client: httpx.AsyncClient
):
    for headers in ({}, {"traceparent": "00-nonsense"}):
        await client.get("/livez", headers=headers)
    first, second = spans.get_finished_spans()
    assert first.parent is second.parent is None and trace_id(first) != trace_id(second)


def test_queries_that_are_answered_together_show_in_the_trace_of_each(
    spans: InMemorySpanExporter, redis: Redis, core: FakeCore, settings: Settings, start_worker: Start
):
    publish_index(settings.indexes_dir / "facts")
    for k in range(3):
        send_query(
            redis, f"q-{k}", traceparent=f"00-{k + 1:032x}-{k + 1:016x}-01", query=make_query(f"prompt {k}")
        )
    start_worker()
    wait_until(lambda: len(read_replies(redis)) == 3)
    batch_spans = wait_until(
        lambda: len(all_ := [s for s in spans.get_finished_spans() if s.name == "queries"]) == 3 and all_
    )
    first, *others = sorted(batch_spans, key=trace_id)
    assert [trace_id(span) for span in (first, *others)] == [f"{k + 1:032x}" for k in range(3)]
    assert [link.context.span_id for link in first.links] == [1, 2, 3]
    assert first.context is not None
    assert [[link.context.span_id for link in span.links] for span in others] == [[first.context.span_id]] * 2
    assert is_child(wait_for_spans(spans, "gradient")[0], first)


def test_a_batch_between_the_steps_of_a_build_is_not_part_of_its_trace(spans: InMemorySpanExporter):
    build = tracing.span("job", "consumer", [TRACE_HEADERS["traceparent"]], {})
    with build, tracing.span("queries", "consumer", [None], {}):
        pass
    queries, job = spans.get_finished_spans()
    assert queries.parent is None and trace_id(job) == TRACE != trace_id(queries)


def test_a_failed_request_has_a_span_with_an_error(spans: InMemorySpanExporter):
    with tracing.span("GET", "server", [None], {}) as span:
        span.update({"http.response.status_code": 500}, name="GET /x", failed=True)
    (finished,) = spans.get_finished_spans()
    assert (finished.name, finished.status.is_ok) == ("GET /x", False)


async def test_without_tracing_no_traceparent_is_sent_to_the_worker(
    client: httpx.AsyncClient, broker: Broker, redis: Redis
):
    await client.post("/index", json=BUILD_BODY, headers=TRACE_HEADERS)
    (job,) = (await broker.list_jobs())[0]
    assert '"traceparent":null' in str(redis.hget(f"bergson:job:{job.job_id}", "message"))


@pytest.mark.parametrize("installed", [True, False])
def test_without_an_endpoint_nothing_is_traced_or_loaded_for_it(installed: bool):
    program = (
        f"import sys; {installed} or sys.modules.update({{'opentelemetry.sdk': None}})\n"
        "import service.__main__, worker.__main__; from worker.telemetry import tracing; tracing.configure('x')\n"
        "with tracing.span('a', 'server', [None], {}): assert tracing.traceparent() is None\n"
        "print('opentelemetry.exporter' in sys.modules)"  # FastAPI and redis load other parts of it
    )
    assert run(program).stdout.strip() == "False"


def test_without_an_endpoint_spans_cost_no_import_of_the_sdk():
    program = (
        "import sys; from worker.telemetry import tracing; tracing.configure('x')\n"
        f"with tracing.span('a', 'server', ['{TRACE_HEADERS['traceparent']}', None], {{}}) as spans:\n"
        "    spans.update({'a': 1}, name='b', failed=True); tracing.record_steps({'c': 0.1})\n"
        "    print(tracing.traceparent(), [name for name in sys.modules if name.startswith('opentelemetry.sdk')])"
    )
    assert run(program).stdout.strip() == "None []"


def test_an_endpoint_without_the_extra_logs_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with caplog.at_level(logging.WARNING):
        tracing.configure("bergson-web")
    assert "bergson-service[otel]" in caplog.text and tracing.traceparent() is None


def test_spans_go_to_the_endpoint_of_the_environment_under_the_name_of_the_process():
    requests: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        run(
            "from worker.telemetry import tracing; tracing.configure('bergson-web')\n"
            "with tracing.span('GET /livez', 'server', [None], {}): pass",
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
        )
        server.shutdown()
    ((path, body),) = requests
    assert path == "/v1/traces" and b"bergson-web" in body and b"GET /livez" in body


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env={"PATH": "/usr/bin:/bin"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
