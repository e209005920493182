"""The client against the service itself over a fake broker, and against answers that a service does not give often."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from inspect import isasyncgenfunction, iscoroutinefunction, isfunction
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
from service.client import AsyncClient, Client, errors_and_events
from service.http.problems import make_problem, problem_response
from service.openapi import examples
from tests.service.fake_broker import FakeBroker, publish
from tests.service.keyed import bearer
from tests.service.served import serve_app
from worker.messages import Problem

ROOT = Path(__file__).parents[3]
Answering = Callable[[httpx.Request], httpx.Response]
CHANGES = ("documents", "profiles", "compact")
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
    """The pauses between tries, none of which is made."""
    taken: list[float] = []
    monkeypatch.setattr("time.sleep", taken.append)
    return taken


def over(*answers: Answering | httpx.Response, **options: Any) -> tuple[Client, list[httpx.Request]]:
    """A client that gets `answers` one after the other, and what it has asked for."""
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        one = answers[len(asked) - 1]
        return one if isinstance(one, httpx.Response) else one(request)

    return Client("http://there", transport=httpx.MockTransport(answer), **options), asked


def refusing(code: str, **headers: str) -> httpx.Response:
    sent = problem_response(make_problem(code, "not now", "r-1"), headers)
    return httpx.Response(sent.status_code, content=bytes(sent.body), headers=dict(sent.headers))


def breaking(kind: type[httpx.TransportError]) -> Answering:
    def fail(request: httpx.Request) -> httpx.Response:
        raise kind("broken", request=request)

    return fail


def answer(body: object) -> httpx.Response:
    return httpx.Response(200, json=body)


def test_a_client_loads_neither_torch_nor_the_server() -> None:
    heavy = ("torch", "transformers", "faiss", "datasets", "fastapi", "starlette", "uvicorn", "redis")
    code = f"import service.client, sys; sys.exit(str([m for m in {heavy} if m in sys.modules]))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.stderr.strip() == "[]"


# What it calls


def test_both_clients_have_the_same_methods() -> None:
    def names(of: type, kind: Callable[[object], bool]) -> set[str]:
        return {name for name in dir(of) if kind(getattr(of, name)) and not name.startswith("_")}

    awaited = names(AsyncClient, lambda one: iscoroutinefunction(one) or isasyncgenfunction(one))
    assert awaited == names(Client, isfunction)


def test_every_call_of_the_api_has_a_method(app: FastAPI) -> None:
    calls = {(method, path) for path, item in app.openapi()["paths"].items() for method in item}
    asked: set[tuple[str, str]] = set()
    page = {"items": [], "next_cursor": None}
    shown = {
        "/jobs/{job_id}": examples.JOB_CANCELLED,
        "/jobs/{job_id}/events": None,
        "/index/{name}": examples.INDEX_DETAIL,
        "/index/{name}/documents/{document_id}": examples.DOCUMENT,
        "/index/estimate": examples.ESTIMATE,
        "/attribute": examples.ATTRIBUTE_RESPONSE,
        "/attribute/batch": {"results": []},
        "/readyz": examples.READY,
    }

    def handle(request: httpx.Request) -> httpx.Response:
        names = {"facts": "{name}", "doc-17": "{document_id}", examples.JOB_ID: "{job_id}"}
        path = "/".join(names.get(one, one) for one in request.url.path.split("/"))
        asked.add((request.method.lower(), path))
        if path.endswith("/events"):
            return httpx.Response(200, text=event("1-0", examples.JOB_CANCELLED))
        if request.method == "POST" and path in ("/index", *(f"/index/{{name}}/{one}" for one in CHANGES)):
            return answer(examples.JOB_ACCEPTED)
        return answer(shown.get(path, page))

    with Client("http://there", transport=httpx.MockTransport(handle)) as client:
        client.attribute("facts", "a", " b")
        client.attribute_batch([])
        client.build("facts", model="tiny", documents=DOCUMENTS)
        client.append("facts", documents=DOCUMENTS)
        client.fit_profile("facts", "law", dataset={"path": "legal/questions"})
        client.compact("facts")
        client.estimate(model="tiny", documents=DOCUMENTS)
        client.index("facts")
        client.delete_index("facts")
        client.document("facts", "doc-17")
        client.take_down("facts", "doc-17")
        client.cancel(client.job(examples.JOB_ID))
        assert [*client.indexes(), *client.jobs(), *client.workers(), *client.models()] == []
        assert len([*client.events(examples.JOB_ID)]) == 1
        client.ready()
    assert calls - asked == {("get", "/livez"), ("get", "/metrics")}


def test_an_index_is_built_asked_and_looked_at(client: Client, broker: FakeBroker) -> None:
    job = client.build("news", model="tiny", documents=DOCUMENTS, gradients={"projection_dim": 4})
    assert (job.state, job.index) == ("queued", "news")
    assert broker.specs["news"].gradients.projection_dim == 4
    answer = client.attribute("facts", "Ada was born in", " London", top_k=3, timeout_s=7)
    assert answer.results and answer.results[0].id == "doc-0"
    query, request_id, timeout_s = broker.asked[0]
    assert (query.top_k, request_id, timeout_s) == (3, answer.request_id, 7)
    assert client.index("facts").rows == 1000
    assert client.estimate(model="tiny", documents=DOCUMENTS, timeout_s=9).documents == 10_000
    assert broker.waits == [9]
    assert next(client.jobs("queued")).job_id == job.job_id
    assert [one.worker_id for one in client.workers()] == [one.worker_id for one in broker.beats]
    assert client.ready().workers == 1
    assert client.cancel(job).state == client.job(job.job_id).state == "cancelled"


def test_lists_are_read_page_by_page(
    client: Client, broker: FakeBroker, spec: BuildSpec, settings: Any
) -> None:
    record = broker.records[client.build("news", model="tiny", documents=DOCUMENTS).job_id]
    for k in range(60):
        publish(settings.data_dir / "indexes", f"many-{k:02}", spec)
        broker.put(record.model_copy(update={"job_id": f"many-{k}"}))
    assert len([*client.jobs()]) == 61
    names = [index.name for index in client.indexes()]
    assert len(names) == 62 and names == sorted(names)


@pytest.mark.parametrize("document_id", ["a/b", "..", "../x", "ä ö?#%2F", "."])
def test_an_id_of_any_characters_stays_one_part_of_the_path(document_id: str) -> None:
    client, asked = over(answer(examples.DOCUMENT))
    client.document("facts", document_id)
    *_, last = asked[0].url.raw_path.decode().split("/")
    assert asked[0].url.raw_path.count(b"/") == 4
    assert httpx.URL(f"http://x/?a={last}").params["a"] == document_id


def test_the_key_and_the_address_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERGSON_URL", "http://elsewhere:9000")
    for key, sent in (("", None), ("bg_x_y", "Bearer bg_x_y")):
        monkeypatch.setenv("BERGSON_API_KEY", key)
        asked: list[httpx.Request] = []

        def handle(request: httpx.Request, asked: list[httpx.Request] = asked) -> httpx.Response:
            asked.append(request)
            return answer(examples.READY)

        Client(transport=httpx.MockTransport(handle)).ready()
        assert (asked[0].url.host, asked[0].headers.get("authorization")) == ("elsewhere", sent)


async def test_the_asynchronous_client_does_the_same(url: str, broker: FakeBroker) -> None:
    async with AsyncClient(url, retry_s=0) as client:
        job = await client.build("news", model="tiny", documents=DOCUMENTS)
        broker.advance(job.job_id, "succeeded", stage="done")
        assert [one.state async for one in client.events(job)] == ["queued", "succeeded"]
        assert [one.name async for one in client.indexes()] == ["facts"]
        with pytest.raises(IndexNotFound):
            await client.index("none")


# Errors


def test_a_problem_is_raised_as_the_error_that_it_stands_for(client: Client, settings: Any) -> None:
    with pytest.raises(IndexNotFound, match="none") as found:
        client.index("none")
    assert (found.value.status, found.value.code) == (404, "index_not_found")
    assert found.value.request_id
    bearer(settings.data_dir)
    with pytest.raises(Unauthorized):
        client.index("facts")


def test_ids_that_exist_come_with_the_error() -> None:
    refused = make_problem("ids_exist", "they exist", "r").model_copy(update={"ids": ["a", "b"]})
    client, _ = over(httpx.Response(409, json=refused.model_dump()))
    with pytest.raises(IdsExist) as found:
        client.append("facts", documents=DOCUMENTS)
    assert found.value.ids == ("a", "b")


def test_what_no_service_would_take_is_refused_before_it_is_sent() -> None:
    client, asked = over()
    with pytest.raises(InvalidInput, match="top_k"):
        client.attribute("facts", "a", " b", top_k=0)
    with pytest.raises(InvalidInput, match="topk"):
        client.attribute("facts", "a", " b", topk=3)
    with pytest.raises(InvalidInput, match="JSON"):
        client.build("news", model="tiny", documents=[{"text": "a", "year": float("nan")}])
    assert asked == []


def test_what_is_no_answer_of_the_service_is_shown() -> None:
    page = httpx.Response(502, text="<h1>Bad gateway</h1>")
    with pytest.raises(BergsonError, match=r"502 .*Bad gateway"):
        over(page)[0].index("facts")
    with pytest.raises(BergsonError, match="version"):
        over(httpx.Response(200, text="hello"))[0].index("facts")


def test_fields_of_a_newer_service_are_passed_over() -> None:
    newer = examples.READY | {"mood": "good"}
    assert over(answer(newer))[0].ready().workers == 1


def test_the_answers_of_a_batch_are_answers_or_errors_in_the_order_of_the_queries() -> None:
    refused = make_problem("too_long", "too long", "r-2").model_dump()
    client, asked = over(answer({"results": [examples.ATTRIBUTE_RESPONSE, refused]}))
    query = {"index": "facts", "prompt": "a", "completion": " b"}
    first, second = client.attribute_batch([query, query | {"top_k": 3}], timeout_s=5)
    assert not isinstance(first, BergsonError) and first.index == "facts"
    assert isinstance(second, InvalidInput) and second.request_id == "r-2"
    assert json.loads(asked[0].content) == {"queries": [query, query | {"top_k": 3}], "timeout_s": 5}


def test_a_batch_is_answered_by_the_service(client: Client, broker: FakeBroker) -> None:
    query = {"index": "facts", "prompt": "a", "completion": " b"}
    first, second = client.attribute_batch([query, query | {"prompt": "c"}], timeout_s=5)
    assert not isinstance(first, BergsonError) and not isinstance(second, BergsonError)
    assert (first.query.prompt, second.query.prompt) == ("a", "c")
    with pytest.raises(InvalidInput, match="queries"):
        client.attribute_batch([query] * 257)


# Trying again


def test_what_is_refused_for_now_is_tried_again_not_sooner_than_the_service_asks(pauses: list[float]) -> None:
    late = refusing("rate_limited", **{"Retry-After": "7"})
    client, asked = over(
        refusing("queue_full"), late, refusing("no_worker"), answer(examples.ATTRIBUTE_RESPONSE)
    )
    client.attribute("facts", "a", " b")
    assert len(asked) == 4
    assert [pause >= least for pause, least in zip(pauses, (1, 7, 5), strict=True)] == [True] * 3


def test_it_gives_up_when_the_time_is_over_or_would_be_with_the_pause(pauses: list[float]) -> None:
    client, asked = over(*[refusing("no_worker")] * 2, retry_s=4)
    with pytest.raises(NoWorker) as found:
        client.index("facts")
    assert (len(asked), found.value.wait_s, pauses) == (1, 5, [])


def test_other_errors_are_not_tried_again() -> None:
    client, asked = over(refusing("deadline_exceeded"), refusing("internal_error"))
    with pytest.raises(DeadlineExceeded):
        client.attribute("facts", "a", " b")
    with pytest.raises(BergsonError):
        client.index("facts")
    assert len(asked) == 2


def test_whether_the_service_is_ready_is_asked_once() -> None:
    client, asked = over(refusing("no_worker"))
    with pytest.raises(NoWorker):
        client.ready()
    assert len(asked) == 1


def test_a_build_whose_answer_was_lost_is_repeated_under_the_same_key(pauses: list[float]) -> None:
    lost = breaking(httpx.ReadError)
    client, asked = over(lost, answer(examples.JOB_ACCEPTED), answer(examples.JOB))
    client.build("facts", model="tiny", documents=DOCUMENTS)
    first, second, _ = (request.headers.get("Idempotency-Key") for request in asked)
    assert first and first == second and len(pauses) == 1


def test_what_may_be_done_twice_is_not_repeated_but_where_it_never_arrived(pauses: list[float]) -> None:
    client, asked = over(breaking(httpx.ReadError))
    with pytest.raises(Unavailable, match="bergson up"):
        client.take_down("facts", "doc-1")
    assert (len(asked), pauses) == (1, [])
    client, asked = over(breaking(httpx.ConnectError), httpx.Response(204))
    client.take_down("facts", "doc-1")
    assert len(asked) == 2


def test_an_answer_that_takes_too_long_is_not_asked_for_again() -> None:
    client, asked = over(breaking(httpx.ReadTimeout))
    with pytest.raises(DeadlineExceeded, match="timeout_s"):
        client.attribute("facts", "a", " b", timeout_s=3)
    assert [request.extensions["timeout"]["read"] for request in asked] == [13]


@pytest.mark.parametrize(
    ("header", "expected"),
    [("7", 7), ("", 0), ("soon", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("Wed, 21 Oct 2015 07:28:00", 0)],
)
def test_when_to_come_back_is_read_as_seconds_or_as_a_date(header: str, expected: int) -> None:
    assert errors_and_events.retry_after_s(httpx.Response(503, headers={"Retry-After": header})) == expected


# Events


def event(event_id: str, record: dict[str, Any], name: str = "progress") -> str:
    return f"event: {name}\ndata: {json.dumps(record, ensure_ascii=False)}\nid: {event_id}\n\n"


def job(state: str, done: int = 0, **changes: Any) -> dict[str, Any]:
    return examples.JOB | {"state": state, "progress": {"stage": "gradients", "done": done}} | changes


def cut(*pieces: str) -> httpx.Response:
    """A stream that breaks after `pieces`."""

    class Cut(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield from (piece.encode() for piece in pieces)
            raise httpx.ReadError("broken", request=httpx.Request("GET", "http://there"))

    return httpx.Response(200, stream=Cut())


def test_a_build_is_followed_to_its_end(client: Client, broker: FakeBroker) -> None:
    job = client.build("news", model="tiny", documents=DOCUMENTS)
    broker.advance(job.job_id, "running", stage="gradients", done=3, total=9)
    broker.advance(job.job_id, "succeeded", stage="done")
    seen: list[int] = []
    assert client.wait(job, lambda progress: seen.append(progress.done)).state == "succeeded"
    assert seen == [0, 3, 0]


def test_what_a_job_failed_with_is_raised(client: Client, broker: FakeBroker) -> None:
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
    half = event("3-0", job("running", 2))
    client, asked = over(
        cut(event("1-0", job("queued")), event("2-0", job("running", 1)), half[:40]),
        breaking(httpx.ConnectError),
        refusing("redis_unavailable"),
        httpx.Response(200, text=half),  # the service was stopped, and ended the stream in good order
        httpx.Response(200, text=": ping\n\n" + event("4-0", job("succeeded", 3))),
    )
    assert [record.progress.done for record in client.events(examples.JOB_ID)] == [0, 1, 2, 3]
    assert [request.headers.get("Last-Event-ID") for request in asked] == [None, "2-0", "2-0", "2-0", "3-0"]
    assert len(pauses) == 4 and pauses[2] >= 5


def test_a_stream_that_is_refused_or_stays_away_is_given_up(pauses: list[float]) -> None:
    revoked = make_problem("unauthorized", "the key was revoked", "r").model_dump()
    with pytest.raises(Unauthorized):
        list(over(httpx.Response(200, text=event("", revoked, "problem")))[0].events("j"))
    client, asked = over(*[breaking(httpx.ConnectError)] * 9, retry_s=0)
    with pytest.raises(Unavailable):
        list(client.events("j"))
    assert len(asked) == 1


def test_events_that_nobody_wants_any_more_close_their_connection() -> None:
    class Stream(httpx.SyncByteStream):
        closed = False

        def __iter__(self) -> Iterator[bytes]:
            yield event("1-0", job("queued")).encode()
            yield event("2-0", job("running")).encode()

        def close(self) -> None:
            self.closed = True

    stream = Stream()
    events = over(httpx.Response(200, stream=stream))[0].events("j")
    assert next(events).state == "queued"
    assert not stream.closed
    events.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert stream.closed


def test_events_are_read_whatever_the_pieces_that_they_come_in() -> None:
    text = f": hello\n\n{event('1-0', job('queued', error=None, index='a b'))}{event('2', job('failed'))}"
    whole = [*errors_and_events.EventReader().feed(text.encode())]
    assert [(one.id, one.name) for one in whole] == [("1-0", "progress"), ("2", "progress")]
    for step in (1, 3, 50):
        reader, raw = errors_and_events.EventReader(), text.replace("\n", "\r\n").encode()
        assert [one for at in range(0, len(raw), step) for one in reader.feed(raw[at : at + step])] == whole
