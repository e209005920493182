"""A client of the service: `Client`, and `AsyncClient` with the same methods to be awaited.

    with Client() as client:
        client.build("facts", model="EleutherAI/pythia-160m", dataset={"path": "NeelNanda/pile-10k"}, wait=True)
        answer = client.attribute("facts", "Ada Lovelace was born in", " London", top_k=3)

What is sent and what comes back are the service's own schemas, and a problem is raised as the error of
`bergson_core.errors` that it stands for. No torch here, and nothing of the server (a test holds it to that).

`AsyncClient` is written out; `Client` takes its methods from there (`service.client.transport` says how).
"""

import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import aclosing
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar
from uuid import uuid4

import httpx

from bergson_core.errors import BergsonError, Cancelled, Unavailable, from_code
from bergson_core.schemas.build import AppendSpec
from bergson_core.schemas.query import AttributionQuery, ProfileSpec
from bergson_core.schemas.results import Estimate, Progress
from service.client.errors_and_events import RetryBudget, connection_error, error_from_problem
from service.client.requests import RequestSender, parse_response, quote_path_segment, request_body
from service.client.transport import BlockingIo, Io, iterate, run
from service.schemas import (
    AttributeRequest,
    AttributeResponse,
    DocumentDetail,
    EstimateRequest,
    IndexDetail,
    IndexPage,
    IndexRequest,
    IndexSummary,
    JobAccepted,
    JobPage,
    ModelList,
    ModelSummary,
    Ready,
    WorkerList,
)
from worker.messages import FINAL_STATES, JobRecord, JobState, ServiceQuery, WorkerStatus

__all__ = ["AsyncClient", "Client"]

P = ParamSpec("P")
T = TypeVar("T")
OnProgress = Callable[[Progress], object]


class AsyncClient(RequestSender):
    __doc__ = RequestSender.__doc__

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # Queries

    async def attribute(
        self, index: str, prompt: str, completion: str | None = None, **options: Any
    ) -> AttributeResponse:
        """Which training samples made the model say `completion` after `prompt`? `options`: `AttributeRequest`."""
        said = {} if completion is None else {"completion": completion}
        body = request_body(AttributeRequest, {"index": index, "prompt": prompt, **said, **options})
        sent = await self._send("POST", "/attribute", body, repeatable=True, wait_s=options.get("timeout_s"))
        return parse_response(AttributeResponse, sent)

    async def attribute_batch(
        self, queries: Iterable[AttributionQuery | Mapping[str, Any]], *, timeout_s: float | None = None
    ) -> list[AttributeResponse | BergsonError]:
        """Up to 256 queries in one call: for each, in their order, the answer or the error that it met."""
        bodies = [request_body(ServiceQuery, one) for one in queries]
        body = {"queries": bodies} | ({} if timeout_s is None else {"timeout_s": timeout_s})
        sent = await self._send("POST", "/attribute/batch", body, repeatable=True, wait_s=timeout_s)
        return [
            error_from_problem(one)
            if "code" in one
            else AttributeResponse.model_validate(one, extra="ignore")
            for one in json.loads(sent)["results"]
        ]

    # Indexes

    async def build(
        self, name: str, *, wait: bool = False, on_progress: OnProgress | None = None, **spec: Any
    ) -> JobRecord:
        """Queues a build; its job, as it is then or, with `wait`, when it has succeeded. `spec`: `IndexRequest`."""
        return await self._submit(
            "/index", request_body(IndexRequest, {"name": name, **spec}), wait, on_progress
        )

    async def append(
        self, name: str, *, wait: bool = False, on_progress: OnProgress | None = None, **spec: Any
    ) -> JobRecord:
        """Queues an append of documents, as `build` does a build. `spec`: `AppendSpec`."""
        return await self._submit(
            f"/index/{quote_path_segment(name)}/documents", request_body(AppendSpec, spec), wait, on_progress
        )

    async def fit_profile(
        self,
        index: str,
        name: str,
        *,
        wait: bool = False,
        on_progress: OnProgress | None = None,
        **spec: Any,
    ) -> JobRecord:
        """Queues the fit of a profile of `index` to a task, as `build` does a build. `spec`: `ProfileSpec`."""
        body = request_body(ProfileSpec, {"name": name, **spec})
        return await self._submit(f"/index/{quote_path_segment(index)}/profiles", body, wait, on_progress)

    async def compact(
        self, name: str, *, wait: bool = False, on_progress: OnProgress | None = None
    ) -> JobRecord:
        """Queues the removal of what was taken down, as `build` does a build."""
        return await self._submit(f"/index/{quote_path_segment(name)}/compact", None, wait, on_progress)

    async def estimate(self, *, timeout_s: float = 300.0, **spec: Any) -> Estimate:
        """What a build would take. `spec`: that of `build`."""
        body = request_body(EstimateRequest, {"timeout_s": timeout_s, **spec})
        return parse_response(Estimate, await self._send("POST", "/index/estimate", body, wait_s=timeout_s))

    async def index(self, name: str) -> IndexDetail:
        """One index. Raises `IndexNotFound`."""
        return parse_response(IndexDetail, await self._send("GET", f"/index/{quote_path_segment(name)}"))

    async def indexes(self) -> AsyncIterator[IndexSummary]:
        """All indexes, by name."""
        async for page in self._pages(IndexPage, "/index"):
            for index in page.items:
                yield index

    async def delete_index(self, name: str) -> None:
        """Removes an index for good."""
        await self._send("DELETE", f"/index/{quote_path_segment(name)}")

    async def document(self, name: str, document_id: str) -> DocumentDetail:
        """A training sample of an index."""
        return parse_response(DocumentDetail, await self._send("GET", _document(name, document_id)))

    async def take_down(self, name: str, document_id: str) -> None:
        """Hides a document from every answer, from now on."""
        await self._send("DELETE", _document(name, document_id))

    # Jobs

    async def job(self, job: str | JobRecord) -> JobRecord:
        """The job as it is now."""
        return parse_response(JobRecord, await self._send("GET", _job(job)))

    async def jobs(self, state: JobState | None = None) -> AsyncIterator[JobRecord]:
        """All jobs, or those in a state, newest first."""
        async for page in self._pages(JobPage, "/jobs", state=state):
            for job in page.items:
                yield job

    async def cancel(self, job: str | JobRecord) -> JobRecord:
        """Asks for the work to stop; the job as it is then."""
        return parse_response(JobRecord, await self._send("DELETE", _job(job), repeatable=True))

    async def events(self, job: str | JobRecord) -> AsyncIterator[JobRecord]:
        """The job each time that something of it is new, from its beginning to its end.

        A connection that breaks is opened again, and goes on after the last event.
        """
        place, last_id, patience = f"{_job(job)}/events", "", RetryBudget(self._retry_s)
        while True:
            failure: BergsonError = Unavailable(f"{place} ended before the job did")
            try:
                async with aclosing(self._listen(place, last_id, patience)) as events:
                    async for event in events:
                        last_id, record = event.id, parse_response(JobRecord, event.data)
                        yield record
                        if record.state in FINAL_STATES:
                            return
            except httpx.TransportError as broken:
                failure = connection_error(broken)
            except Unavailable as refused:
                failure = refused
            await self._pause(patience, failure)

    async def wait(self, job: str | JobRecord, on_progress: OnProgress | None = None) -> JobRecord:
        """The job when it has succeeded; `on_progress` is told how far it is. Raises what it failed with."""
        record = None
        async for record in self.events(job):
            if on_progress:
                on_progress(record.progress)
        assert record is not None
        if record.error is not None:
            raise from_code(record.error.code, record.error.detail)
        if record.state == "cancelled":
            raise Cancelled(f"job {record.job_id} was cancelled")
        return record

    # The system

    async def workers(self) -> list[WorkerStatus]:
        """The live workers."""
        return parse_response(WorkerList, await self._send("GET", "/workers")).items

    async def models(self) -> list[ModelSummary]:
        """The models that they have in memory."""
        return parse_response(ModelList, await self._send("GET", "/models")).items

    async def ready(self) -> Ready:
        """Returns where the service can work at this moment. Raises `Unavailable` where it cannot, at once."""
        return parse_response(Ready, await self._send("GET", "/readyz", patience=RetryBudget(0)))

    async def _submit(
        self, path: str, body: dict[str, Any] | None, wait: bool, on_progress: OnProgress | None
    ) -> JobRecord:
        """The job of a call that queues one, which may be repeated: its key makes one job of all tries."""
        sent = await self._send("POST", path, body, repeatable=True, headers={"Idempotency-Key": uuid4().hex})
        job_id = parse_response(JobAccepted, sent).job_id
        return await (self.wait(job_id, on_progress) if wait else self.job(job_id))


def _document(name: str, document_id: str) -> str:
    return f"/index/{quote_path_segment(name)}/documents/{quote_path_segment(document_id)}"


def _job(job: str | JobRecord) -> str:
    return f"/jobs/{quote_path_segment(job if isinstance(job, str) else job.job_id)}"


class _Blocked(AsyncClient):
    @staticmethod
    def _open(**options: Any) -> Io:
        return BlockingIo(httpx.Client(**options))


def _blocking(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> "Callable[Concatenate[Client, P], T]":
    """The method of `Client` that does what `method` of `AsyncClient` does."""

    @wraps(method)
    def call(client: "Client", *args: P.args, **kwargs: P.kwargs) -> T:
        return run(method(client._awaited, *args, **kwargs))

    return call


def _iterating(
    method: Callable[Concatenate[AsyncClient, P], AsyncIterator[T]],
) -> "Callable[Concatenate[Client, P], Iterator[T]]":
    """`_blocking` for a method that is iterated over."""

    @wraps(method)
    def call(client: "Client", *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return iterate(method(client._awaited, *args, **kwargs))

    return call


class Client:
    __doc__ = RequestSender.__doc__

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 60.0,
        retry_s: float = 60.0,
        **options: Any,
    ):
        self._awaited = _Blocked(url, api_key, timeout_s=timeout_s, retry_s=retry_s, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    close = _blocking(AsyncClient.close)
    attribute = _blocking(AsyncClient.attribute)
    attribute_batch = _blocking(AsyncClient.attribute_batch)
    build = _blocking(AsyncClient.build)
    append = _blocking(AsyncClient.append)
    fit_profile = _blocking(AsyncClient.fit_profile)
    compact = _blocking(AsyncClient.compact)
    estimate = _blocking(AsyncClient.estimate)
    index = _blocking(AsyncClient.index)
    indexes = _iterating(AsyncClient.indexes)
    delete_index = _blocking(AsyncClient.delete_index)
    document = _blocking(AsyncClient.document)
    take_down = _blocking(AsyncClient.take_down)
    job = _blocking(AsyncClient.job)
    jobs = _iterating(AsyncClient.jobs)
    cancel = _blocking(AsyncClient.cancel)
    events = _iterating(AsyncClient.events)
    wait = _blocking(AsyncClient.wait)
    workers = _blocking(AsyncClient.workers)
    models = _blocking(AsyncClient.models)
    ready = _blocking(AsyncClient.ready)
