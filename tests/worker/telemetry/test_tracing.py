"""Traces: from the request over Redis to the worker, in memory; and nothing at all where nobody asked for them."""

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
from tests.worker.fakes import FakeCore, publish, question
from tests.worker.helpers import REPOSITORY, replies, send, soon, until
from worker.process.runner import Runner
from worker.settings import Settings
from worker.telemetry import tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
ASKED = {"index": "facts", "prompt": "Ada was born in", "completion": " London"}
BUILT = {"name": "new", "model": "tiny", "documents": [{"text": "a"}]}
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
    publish(settings.indexes_dir / "facts")
    service = ServiceSettings(data_dir=settings.data_dir, redis_url=settings.redis_url)
    transport = httpx.ASGITransport(create_app(service, broker))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


def named(spans: InMemorySpanExporter, *names: str) -> list[ReadableSpan]:
    """The spans of these names once they have ended, the first of each."""
    return until(lambda: found if None not in (found := [_first(spans, name) for name in names]) else None)


def _first(spans: InMemorySpanExporter, name: str) -> ReadableSpan | None:
    return next((span for span in spans.get_finished_spans() if span.name == name), None)


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def is_child(span: ReadableSpan, of: ReadableSpan) -> bool:
    assert span.parent is not None and of.context is not None
    return span.parent.span_id == of.context.span_id


async def test_a_query_is_one_trace_from_the_caller_to_the_worker(
    spans: InMemorySpanExporter, client: httpx.AsyncClient, broker: Broker, start_worker: Start
):
    start_worker()
    await soon(broker.list_workers)
    response = await client.post("/attribute", json=ASKED, headers=SENT | {"X-Request-ID": "mine-1"})
    assert response.status_code == 200, response.text
    server, work, gradient, search = named(spans, "POST /attribute", "queries", "gradient", "search")
    assert {trace_of(span) for span in (server, work, gradient, search)} == {TRACE}
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


async def test_a_job_goes_on_in_the_trace_of_the_call_that_submitted_it(
    spans: InMemorySpanExporter, client: httpx.AsyncClient, start_worker: Start
):
    assert (await client.post("/index", json=BUILT, headers=SENT)).status_code == 202
    start_worker()
    server, work = await asyncio.to_thread(named, spans, "POST /index", "job build")
    assert trace_of(work) == TRACE and is_child(work, server)


@pytest.mark.parametrize("lives", [True, False])
async def test_the_span_of_a_job_says_how_it_ended(
    spans: InMemorySpanExporter, client: httpx.AsyncClient, core: FakeCore, start_worker: Start, lives: bool
):
    def fail(number: int) -> None:
        raise TooLong("99 tokens")

    if not lives:
        core.during = fail
    await client.post("/index", json=BUILT)
    start_worker()
    (work,) = await asyncio.to_thread(named, spans, "job build")
    assert (work.attributes or {})["bergson.outcome"] == ("succeeded" if lives else "too_long")
    assert work.status.status_code.name == ("UNSET" if lives else "ERROR")


async def test_another_trace_does_not_make_another_job(
    spans: InMemorySpanExporter, client: httpx.AsyncClient
):
    sent = [await client.post("/index", json=BUILT, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert sent[0].json()["job_id"] == sent[1].json()["job_id"]


async def test_without_a_caller_that_traces_the_request_begins_a_trace(
    spans: InMemorySpanExporter, client: httpx.AsyncClient
):
    for sent in ({}, {"traceparent": "00-nonsense"}):
        await client.get("/livez", headers=sent)
    one, other = spans.get_finished_spans()
    assert one.parent is other.parent is None and trace_of(one) != trace_of(other)


def test_queries_that_are_answered_together_are_told_in_the_trace_of_each(
    spans: InMemorySpanExporter, redis: Redis, core: FakeCore, settings: Settings, start_worker: Start
):
    publish(settings.indexes_dir / "facts")
    for k in range(3):
        send(redis, f"q-{k}", traceparent=f"00-{k + 1:032x}-{k + 1:016x}-01", query=question(f"prompt {k}"))
    start_worker()
    until(lambda: len(replies(redis)) == 3)
    found = until(
        lambda: len(all_ := [s for s in spans.get_finished_spans() if s.name == "queries"]) == 3 and all_
    )
    first, *others = sorted(found, key=trace_of)
    assert [trace_of(span) for span in (first, *others)] == [f"{k + 1:032x}" for k in range(3)]
    assert [link.context.span_id for link in first.links] == [1, 2, 3]
    assert first.context is not None
    assert [[link.context.span_id for link in one.links] for one in others] == [[first.context.span_id]] * 2
    assert is_child(named(spans, "gradient")[0], first)


def test_a_batch_between_the_steps_of_a_build_is_no_part_of_its_trace(spans: InMemorySpanExporter):
    build = tracing.span("job", "consumer", [SENT["traceparent"]], {})
    with build, tracing.span("queries", "consumer", [None], {}):
        pass
    queries, job = spans.get_finished_spans()
    assert queries.parent is None and trace_of(job) == TRACE != trace_of(queries)


def test_a_failure_is_told(spans: InMemorySpanExporter):
    with tracing.span("GET", "server", [None], {}) as span:
        span.update({"http.response.status_code": 500}, name="GET /x", failed=True)
    (told,) = spans.get_finished_spans()
    assert (told.name, told.status.is_ok) == ("GET /x", False)


async def test_where_nobody_traces_nothing_is_sent(client: httpx.AsyncClient, broker: Broker, redis: Redis):
    await client.post("/index", json=BUILT, headers=SENT)
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


def test_an_endpoint_without_the_extra_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with caplog.at_level(logging.WARNING):
        tracing.configure("bergson-web")
    assert "bergson-service[otel]" in caplog.text and tracing.traceparent() is None


def test_spans_go_to_the_endpoint_of_the_environment_under_the_name_of_the_process():
    got: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
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
    ((path, body),) = got
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
