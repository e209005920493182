"""The client against the service itself over a fake broker, and against responses that a service seldom gives."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from inspect import isasyncgenfunction, iscoroutinefunction, isfunction, signature
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from bergson_core.errors import (
    BergsonError,
    Cancelled,
    DeadlineExceeded,
    IdsExist,
    IndexNotFound,
    InvalidInput,
    ModelNotFound,
    NoWorker,
    Unauthorized,
    Unavailable,
)
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.presets import PRESETS
from service.client import AsyncClient, Client
from service.client.errors import retry_after_s
from service.http.problems import make_problem, problem_response
from service.openapi import behaviour_examples, examples, link_examples, totals_examples
from tests.service.fake_broker import FakeBroker, publish_manifest
from tests.service.helpers import make_key_header, serve_app
from worker.problem import Problem

ROOT = Path(__file__).parents[3]
Responder = Callable[[httpx.Request], httpx.Response]
CHANGES = ("documents", "profiles", "behaviours", "compact", "unlearn")
EVENT_STREAM = {"Content-Type": "text/event-stream; charset=utf-8"}
DOCUMENTS = [{"text": "Ada Lovelace's birthplace is London"}]


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    with serve_app(app) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, retry_s=0) as client:
        yield client


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the client pauses between attempts; it does not really wait."""
    recorded: list[float] = []
    monkeypatch.setattr("time.sleep", recorded.append)
    return recorded


def make_client(*responses: Responder | httpx.Response, **options: Any) -> tuple[Client, list[httpx.Request]]:
    """Returns a client that gets `responses` one after the other, and the list of the requests that it has sent."""
    requests: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        response = responses[len(requests) - 1]
        return response if isinstance(response, httpx.Response) else response(request)

    return Client("http://there", transport=httpx.MockTransport(respond), **options), requests


def refusal(code: str, **headers: str) -> httpx.Response:
    response = problem_response(make_problem(code, "not now", "r-1"), headers)
    return httpx.Response(response.status_code, content=bytes(response.body), headers=dict(response.headers))


def failure(error_class: type[httpx.TransportError]) -> Responder:
    def fail(request: httpx.Request) -> httpx.Response:
        raise error_class("broken", request=request)

    return fail


def json_response(body: object) -> httpx.Response:
    return httpx.Response(200, json=body)


def event_stream(*pieces: bytes | str, stream_class: "type[ByteStream] | None" = None) -> httpx.Response:
    """Returns a response whose body is an event stream that arrives in `pieces`."""
    stream = (stream_class or ByteStream)(
        piece.encode() if isinstance(piece, str) else piece for piece in pieces
    )
    return httpx.Response(200, headers=EVENT_STREAM, stream=stream)


class ByteStream(httpx.SyncByteStream):
    """A body that arrives in pieces, and that knows whether its connection was closed."""

    def __init__(self, pieces: Iterable[bytes]):
        self.pieces = list(pieces)
        self.is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        yield from self.pieces

    def close(self) -> None:
        self.is_closed = True


class BrokenStream(ByteStream):
    """A body whose connection breaks after its last piece."""

    def __iter__(self) -> Iterator[bytes]:
        yield from self.pieces
        raise httpx.ReadError("broken", request=httpx.Request("GET", "http://there"))


def test_a_client_loads_neither_torch_nor_the_server() -> None:
    heavy = ("torch", "transformers", "faiss", "datasets", "fastapi", "starlette", "uvicorn", "redis")
    code = f"import service.client, sys; sys.exit(str([m for m in {heavy} if m in sys.modules]))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.stderr.strip() == "[]"


# Calls


def test_both_clients_have_the_same_methods() -> None:
    def public_methods(owner: type, is_method: Callable[[object], bool]) -> set[str]:
        return {name for name in dir(owner) if is_method(getattr(owner, name)) and not name.startswith("_")}

    def is_asynchronous(method: object) -> bool:
        return iscoroutinefunction(method) or isasyncgenfunction(method)

    assert public_methods(AsyncClient, is_asynchronous) == public_methods(Client, isfunction)


@pytest.mark.parametrize("name", [name for name in dir(Client) if not name.startswith("_")])
def test_help_shows_a_blocking_method_as_what_it_is(name: str) -> None:
    method, original = getattr(Client, name), getattr(AsyncClient, name)
    assert method.__doc__ == original.__doc__
    assert list(signature(method).parameters) == list(signature(original).parameters)
    assert "Async" not in str(signature(method))


def test_every_call_of_the_api_has_a_method(app: FastAPI) -> None:
    calls = {(method, path) for path, item in app.openapi()["paths"].items() for method in item}
    called: set[tuple[str, str]] = set()
    page = {"items": [], "next_cursor": None}
    bodies = {
        "/jobs/{job_id}": examples.JOB_CANCELLED,
        "/jobs/{job_id}/events": None,
        "/index/{name}": examples.INDEX_DETAIL,
        "/index/{name}/documents/{document_id}": examples.DOCUMENT,
        "/index/{name}/behaviours/{behaviour}": behaviour_examples.BEHAVIOUR,
        "/index/estimate": examples.ESTIMATE,
        "/attribute": examples.ATTRIBUTE_RESPONSE,
        "/attribute/batch": {"results": []},
        "/attribute/indexes": {"results": []},
        "/index/{name}/totals": totals_examples.TOTALS_RESPONSE,
        "/links": link_examples.LINK,
        "/links/{link_id}": link_examples.LINK,
        "/readyz": examples.READY,
        "/key": examples.KEY_PERMISSIONS,
    }

    def handle(request: httpx.Request) -> httpx.Response:
        parameters = {"facts": "{name}", "doc-17": "{document_id}", examples.JOB_ID: "{job_id}"}
        parameters |= {link_examples.LINK_ID: "{link_id}", "refusals": "{behaviour}"}
        path = "/".join(parameters.get(segment, segment) for segment in request.url.path.split("/"))
        called.add((request.method.lower(), path))
        if path.endswith("/events"):
            return event_stream(event("1-0", examples.JOB_CANCELLED))
        if request.method == "POST" and path in (
            "/index",
            *(f"/index/{{name}}/{change}" for change in CHANGES),
        ):
            return json_response(examples.JOB_ACCEPTED)
        return json_response(bodies.get(path, page))

    with Client("http://there", transport=httpx.MockTransport(handle)) as client:
        client.attribute("facts", "a", " b")
        client.attribute_batch([])
        client.attribute_indexes(["facts", "people"], "a", " b")
        assert client.totals("facts", "a", " b", by="source").groups[0].value == "wiki"
        client.remove_link(client.link(client.make_link("facts", "a", " b").id).id)
        client.build("facts", model="tiny", documents=DOCUMENTS)
        client.append("facts", documents=DOCUMENTS)
        client.fit_profile("facts", "law", dataset={"path": "legal/questions"})
        client.create_behaviour("facts", "refusals", [{"prompt": "a", "completion": " b"}])
        assert client.behaviours("facts") == []
        assert client.behaviour("facts", "refusals").query_count == 2
        client.delete_behaviour("facts", "refusals")
        client.compact("facts")
        client.preview_unlearning("facts", examples.UNLEARN_IDS["queries"], ids=["doc-17"])
        client.estimate(model="tiny", documents=DOCUMENTS)
        client.index("facts")
        client.delete_index("facts")
        client.document("facts", "doc-17")
        client.take_down("facts", "doc-17")
        client.cancel(client.job(examples.JOB_ID))
        assert [*client.indexes(), *client.jobs(), *client.workers(), *client.models()] == []
        assert client.permissions().name == "ada"
        assert len([*client.events(examples.JOB_ID)]) == 1
        client.ready()
    assert calls - called == {("get", "/livez"), ("get", "/metrics")}


def test_an_index_is_built_queried_and_looked_up(client: Client, broker: FakeBroker) -> None:
    job = client.build("news", model="tiny", documents=DOCUMENTS, gradients={"projection_dim": 4})
    assert (job.state, job.index) == ("queued", "news")
    assert broker.specs["news"].gradients.projection_dim == 4
    answer = client.attribute("facts", "Ada was born in", " London", top_k=3, timeout_s=7)
    assert answer.results and answer.results[0].id == "doc-0"
    query, request_id, timeout_s = broker.queries[0]
    assert (query.top_k, request_id, timeout_s) == (3, answer.request_id, 7)
    assert client.index("facts").rows == 1000
    assert client.estimate(model="tiny", documents=DOCUMENTS, timeout_s=9).documents == 10_000
    assert broker.estimate_timeouts_s == [9]
    assert next(client.jobs("queued")).job_id == job.job_id
    assert [worker.worker_id for worker in client.workers()] == [beat.worker_id for beat in broker.heartbeats]
    assert client.ready().workers == 1
    assert client.permissions().scope == "admin"
    assert client.cancel(job).state == client.job(job.job_id).state == "cancelled"


def test_warnings_of_an_answer_are_logged(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert client.attribute("facts", "Ada was born in", " London").warnings == []
        assert not [record for record in caplog.records if record.name.startswith("service.client")]
        (warning,) = client.attribute("facts", "Ada was born in", "London").warnings
    assert warning.suggestion == " London"
    assert "missing_space: no space before it" in caplog.text


def test_join_reaches_the_worker(client: Client, broker: FakeBroker) -> None:
    client.attribute("facts", "Ada was born in", " London", join="space")
    client.attribute("facts", "Ada was born in", " London")
    assert [query.join for query, *_ in broker.queries] == ["space", "exact"]


def test_lists_are_read_page_by_page(
    client: Client, broker: FakeBroker, spec: BuildSpec, settings: Any
) -> None:
    record = broker.records[client.build("news", model="tiny", documents=DOCUMENTS).job_id]
    for number in range(60):
        publish_manifest(settings.data_dir / "indexes", f"many-{number:02}", spec)
        broker.put(record.model_copy(update={"job_id": f"many-{number}"}))
    assert len([*client.jobs()]) == 61
    names = [index.name for index in client.indexes()]
    assert len(names) == 62 and names == sorted(names)


@pytest.mark.parametrize("document_id", ["a/b", "..", "../x", "ä ö?#%2F", "."])
def test_an_id_of_any_characters_stays_one_segment_of_the_path(document_id: str) -> None:
    client, requests = make_client(json_response(examples.DOCUMENT))
    client.document("facts", document_id)
    *_, last = requests[0].url.raw_path.decode().split("/")
    assert requests[0].url.raw_path.count(b"/") == 4
    assert httpx.URL(f"http://x/?a={last}").params["a"] == document_id


def test_key_and_address_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERGSON_URL", "http://elsewhere:9000")
    for key, sent in (("", None), ("bg_x_y", "Bearer bg_x_y")):
        monkeypatch.setenv("BERGSON_API_KEY", key)
        requests: list[httpx.Request] = []

        def respond(request: httpx.Request, requests: list[httpx.Request] = requests) -> httpx.Response:
            requests.append(request)
            return json_response(examples.READY)

        Client(transport=httpx.MockTransport(respond)).ready()
        assert (requests[0].url.host, requests[0].headers.get("authorization")) == ("elsewhere", sent)


async def test_the_asynchronous_client_does_the_same(url: str, broker: FakeBroker) -> None:
    async with AsyncClient(url, retry_s=0) as client:
        job = await client.build("news", model="tiny", documents=DOCUMENTS)
        broker.advance(job.job_id, "succeeded", stage="done")
        assert [record.state async for record in client.events(job)] == ["queued", "succeeded"]
        assert [index.name async for index in client.indexes()] == ["facts"]
        with pytest.raises(IndexNotFound):
            await client.index("none")


# Errors


def test_a_problem_is_raised_as_the_error_that_it_stands_for(client: Client, settings: Any) -> None:
    with pytest.raises(IndexNotFound, match="none") as raised:
        client.index("none")
    assert (raised.value.status, raised.value.code) == (404, "index_not_found")
    assert raised.value.request_id
    make_key_header(settings.data_dir)
    with pytest.raises(Unauthorized):
        client.index("facts")


def test_the_error_lists_the_ids_that_exist() -> None:
    refused = make_problem("ids_exist", "they exist", "r").model_copy(update={"ids": ["a", "b"]})
    client, _ = make_client(httpx.Response(409, json=refused.model_dump()))
    with pytest.raises(IdsExist) as raised:
        client.append("facts", documents=DOCUMENTS)
    assert raised.value.ids == ("a", "b")


def test_wrong_fields_are_refused_before_anything_is_sent() -> None:
    client, requests = make_client()
    with pytest.raises(InvalidInput, match="top_k"):
        client.attribute("facts", "a", " b", top_k=0)
    with pytest.raises(InvalidInput, match="topk"):
        client.attribute("facts", "a", " b", topk=3)
    with pytest.raises(InvalidInput, match="JSON"):
        client.build("news", model="tiny", documents=[{"text": "a", "year": float("nan")}])
    assert requests == []


def test_an_answer_that_is_not_the_services_is_quoted() -> None:
    page = httpx.Response(502, text="<h1>Bad gateway</h1>")
    with pytest.raises(BergsonError, match=r"502 .*Bad gateway"):
        make_client(page)[0].index("facts")
    with pytest.raises(BergsonError, match="version"):
        make_client(httpx.Response(200, text="hello"))[0].index("facts")


def test_fields_of_a_newer_service_are_ignored() -> None:
    newer = examples.READY | {"mood": "good"}
    assert make_client(json_response(newer))[0].ready().workers == 1


def test_the_answers_of_a_batch_are_answers_or_errors_in_the_order_of_the_queries() -> None:
    refused = make_problem("too_long", "too long", "r-2").model_dump()
    client, requests = make_client(json_response({"results": [examples.ATTRIBUTE_RESPONSE, refused]}))
    query = {"index": "facts", "prompt": "a", "completion": " b"}
    first, second = client.attribute_batch([query, query | {"top_k": 3}], timeout_s=5)
    assert not isinstance(first, BergsonError) and first.index == "facts"
    assert isinstance(second, InvalidInput) and second.request_id == "r-2"
    assert json.loads(requests[0].content) == {"queries": [query, query | {"top_k": 3}], "timeout_s": 5}


def test_a_batch_is_answered_by_the_service(client: Client, broker: FakeBroker) -> None:
    query = {"index": "facts", "prompt": "a", "completion": " b"}
    first, second = client.attribute_batch([query, query | {"prompt": "c"}], timeout_s=5)
    assert not isinstance(first, BergsonError) and not isinstance(second, BergsonError)
    assert (first.query.prompt, second.query.prompt) == ("a", "c")
    with pytest.raises(InvalidInput, match="queries"):
        client.attribute_batch([query] * 257)


# Retries


def test_a_call_that_is_refused_for_now_is_repeated_no_sooner_than_the_service_asks(
    pauses: list[float],
) -> None:
    late = refusal("rate_limited", **{"Retry-After": "7"})
    client, requests = make_client(
        refusal("queue_full"), late, refusal("no_worker"), json_response(examples.ATTRIBUTE_RESPONSE)
    )
    client.attribute("facts", "a", " b")
    assert len(requests) == 4
    assert [pause >= minimum for pause, minimum in zip(pauses, (1, 7, 5), strict=True)] == [True] * 3


def test_the_client_gives_up_when_the_next_pause_would_end_after_the_limit(pauses: list[float]) -> None:
    client, requests = make_client(*[refusal("no_worker")] * 2, retry_s=4)
    with pytest.raises(NoWorker) as raised:
        client.index("facts")
    assert (len(requests), raised.value.wait_s, pauses) == (1, 5, [])


def test_a_call_that_failed_with_another_error_is_not_repeated() -> None:
    client, requests = make_client(refusal("deadline_exceeded"), refusal("internal_error"))
    with pytest.raises(DeadlineExceeded):
        client.attribute("facts", "a", " b")
    with pytest.raises(BergsonError):
        client.index("facts")
    assert len(requests) == 2


def test_ready_is_called_once() -> None:
    client, requests = make_client(refusal("no_worker"))
    with pytest.raises(NoWorker):
        client.ready()
    assert len(requests) == 1


def test_a_build_whose_answer_was_lost_is_repeated_under_the_same_key(pauses: list[float]) -> None:
    lost = failure(httpx.ReadError)
    client, requests = make_client(lost, json_response(examples.JOB_ACCEPTED), json_response(examples.JOB))
    client.build("facts", model="tiny", documents=DOCUMENTS)
    first, second, _ = (request.headers.get("Idempotency-Key") for request in requests)
    assert first and first == second and len(pauses) == 1


def test_a_call_that_must_not_run_twice_is_repeated_only_when_it_never_arrived(pauses: list[float]) -> None:
    client, requests = make_client(failure(httpx.ReadError))
    with pytest.raises(Unavailable, match="bergson up"):
        client.take_down("facts", "doc-1")
    assert (len(requests), pauses) == (1, [])
    client, requests = make_client(failure(httpx.ConnectError), httpx.Response(204))
    client.take_down("facts", "doc-1")
    assert len(requests) == 2


def test_a_call_that_takes_too_long_is_not_repeated() -> None:
    client, requests = make_client(failure(httpx.ReadTimeout))
    with pytest.raises(DeadlineExceeded, match="timeout_s"):
        client.attribute("facts", "a", " b", timeout_s=3)
    assert [request.extensions["timeout"]["read"] for request in requests] == [13]


@pytest.mark.parametrize(
    ("header", "expected"),
    [("7", 7), ("", 0), ("soon", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("Wed, 21 Oct 2015 07:28:00", 0)],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(header: str, expected: int) -> None:
    assert retry_after_s(httpx.Response(503, headers={"Retry-After": header})) == expected


# Events


def event(event_id: str, record: dict[str, Any], name: str = "progress") -> str:
    return f"event: {name}\ndata: {json.dumps(record, ensure_ascii=False)}\nid: {event_id}\n\n"


def job(state: str, done: int = 0, **changes: Any) -> dict[str, Any]:
    return examples.JOB | {"state": state, "progress": {"stage": "gradients", "done": done}} | changes


def test_a_build_takes_a_preset_and_sends_its_values(client: Client, broker: FakeBroker) -> None:
    client.build("news", model="tiny", documents=DOCUMENTS, preset="best", gradients={"projection_dim": 32})
    gradients = {**PRESETS["best"].values["gradients"], "projection_dim": 32}
    assert broker.specs["news"] == BuildSpec.model_validate(
        {"model": "tiny", "documents": DOCUMENTS, **PRESETS["best"].values, "gradients": gradients}
    )


def test_a_build_is_followed_to_its_end(client: Client, broker: FakeBroker) -> None:
    job = client.build("news", model="tiny", documents=DOCUMENTS)
    broker.advance(job.job_id, "running", stage="gradients", done=3, total=9)
    broker.advance(job.job_id, "succeeded", stage="done")
    done: list[int] = []
    assert client.wait(job, lambda progress: done.append(progress.done)).state == "succeeded"
    assert done == [0, 3, 0]


def test_the_error_that_a_job_failed_with_is_raised(client: Client, broker: FakeBroker) -> None:
    job = client.build("news", model="tiny", documents=DOCUMENTS)
    failed = job.model_copy(
        update={"state": "failed", "error": Problem(code="model_not_found", detail="no model\u2028there")}
    )
    broker.put(failed)
    with pytest.raises(ModelNotFound, match="no model\u2028there"):
        client.wait(job.job_id)
    other = client.build("old", model="tiny", documents=DOCUMENTS)
    client.cancel(other)
    with pytest.raises(Cancelled):
        client.wait(other)


def test_events_go_on_after_a_broken_connection_and_none_comes_twice(pauses: list[float]) -> None:
    third = event("3-0", job("running", 2))
    client, requests = make_client(
        event_stream(
            event("1-0", job("queued")),
            event("2-0", job("running", 1)),
            third[:40],
            stream_class=BrokenStream,
        ),
        failure(httpx.ConnectError),
        refusal("redis_unavailable"),
        event_stream(third),  # the service was stopped, and ended the stream in good order
        event_stream(": ping\n\n", event("4-0", job("succeeded", 3))),
    )
    assert [record.progress.done for record in client.events(examples.JOB_ID)] == [0, 1, 2, 3]
    last_ids = [request.headers.get("Last-Event-ID") for request in requests]
    assert last_ids == [None, "2-0", "2-0", "2-0", "3-0"]
    assert len(pauses) == 4 and pauses[2] >= 5


def test_a_stream_that_is_refused_or_stays_away_is_given_up(pauses: list[float]) -> None:
    revoked = make_problem("unauthorized", "the key was revoked", "r").model_dump()
    with pytest.raises(Unauthorized):
        list(make_client(event_stream(event("", revoked, "problem")))[0].events("j"))
    client, requests = make_client(*[failure(httpx.ConnectError)] * 9, retry_s=0)
    with pytest.raises(Unavailable):
        list(client.events("j"))
    assert len(requests) == 1


def test_comments_renew_the_time_for_which_a_broken_stream_is_opened_again(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 50))
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    pings = [event_stream(": ping\n\n", stream_class=BrokenStream) for _ in range(3)]
    client, requests = make_client(*pings, event_stream(event("1-0", job("succeeded"))), retry_s=60)
    assert [record.state for record in client.events("j")] == ["succeeded"]
    assert len(requests) == 4
    client, requests = make_client(*[event_stream(stream_class=BrokenStream) for _ in range(9)], retry_s=60)
    with pytest.raises(Unavailable):
        list(client.events("j"))
    assert len(requests) == 3, "a stream of no bytes at all renews nothing"


def test_a_page_in_place_of_an_event_stream_is_an_error_and_not_requested_again(pauses: list[float]) -> None:
    client, requests = make_client(httpx.Response(200, html="<h1>Welcome</h1>"))
    with pytest.raises(BergsonError, match="event stream"):
        list(client.events("j"))
    assert (len(requests), pauses) == (1, [])


def test_the_connection_is_closed_when_the_caller_stops_iterating() -> None:
    response = event_stream(event("1-0", job("queued")), event("2-0", job("running")))
    stream = response.stream
    assert isinstance(stream, ByteStream)
    events = make_client(response)[0].events("j")
    assert next(events).state == "queued"
    assert not stream.is_closed
    events.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert stream.is_closed


def test_events_are_read_whatever_the_pieces_that_they_come_in() -> None:
    separator = "\u2028"  # no line break in an event stream, although str.splitlines() takes it for one
    first = job("queued", error=None, waits_for=f"a{separator}b")
    text = f": hello\n\n{event('1-0', first)}{event('2', job('failed'))}"
    raw = text.encode()
    whole = [*make_client(event_stream(raw))[0].events("j")]
    assert [(record.state, record.waits_for) for record in whole] == [
        ("queued", f"a{separator}b"),
        ("failed", None),
    ]
    raw = text.replace("\n", "\r\n").encode()
    for size in (1, 3, 50):
        pieces = (raw[start : start + size] for start in range(0, len(raw), size))
        assert [*make_client(event_stream(*pieces))[0].events("j")] == whole
