"""`AsyncClient`: every call of the service as a coroutine. `Client` takes its methods from here."""

import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, Self

from bergson_core.errors import BergsonError
from bergson_core.schemas.build import AppendSpec
from bergson_core.schemas.query import AttributionQuery, ProfileSpec
from bergson_core.schemas.results import Estimate
from service.client.behaviour_calls import BehaviourCalls
from service.client.job_calls import ProgressListener
from service.client.link_calls import LinkCalls
from service.client.proxies import choose_proxy
from service.client.requests import (
    RequestSender,
    connection_options,
    parse_response,
    quote_path_segment,
    request_body,
)
from service.client.sessions import AsyncSession, HttpSession
from service.client.side_by_side_calls import SideBySideCalls, parse_answers
from service.client.totals_calls import TotalsCalls
from service.client.unlearning_calls import UnlearningCalls
from service.index_schemas import DocumentDetail, IndexDetail, IndexPage, IndexSummary
from service.schemas import (
    AttributeRequest,
    AttributeResponse,
    EstimateRequest,
    IndexRequest,
    KeyPermissions,
    ModelList,
    ModelSummary,
    Ready,
    WorkerList,
)
from worker.messages import JobRecord, ServiceQuery, WorkerStatus

logger = logging.getLogger(__name__)


class AsyncClient(BehaviourCalls, UnlearningCalls, TotalsCalls, SideBySideCalls, LinkCalls):
    """A client of the service whose methods are coroutines.

    A request that the service refuses for now (429, 503) is repeated, no sooner than the service asks for. So is a
    request that got no answer, provided that it never arrived or that repeating it does no harm. An error that the
    service answers is raised as its class of `bergson_core.errors`; `Unavailable` is raised when the service does not
    answer at all, `DeadlineExceeded` when it does not answer in time.

    Args:
        url: Address of the service. By default the environment variable `BERGSON_URL`, or port 8000 of this machine.
        api_key: API key, `bg_…`. By default the environment variable `BERGSON_API_KEY`; an empty text sends none.
        timeout_s: Seconds to wait for an answer; methods that take a `timeout_s` of their own wait 10 s longer than
            that.
        retry_s: Seconds for which a request is repeated, counted from its first failure; 0 repeats none.
        options: Further options of `httpx.AsyncClient`: `verify` for a certificate authority, `headers`, `proxy`, …

    Raises:
        InvalidInput: The address, or that of a proxy in the environment, cannot be read; or a SOCKS proxy needs a
            package that is missing.
    """

    _session_class: type[HttpSession] = AsyncSession

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 60.0,
        retry_s: float = 60.0,
        **options: Any,
    ):
        options, proxy = choose_proxy(connection_options(url, api_key, timeout_s, **options))
        self._sender = RequestSender(self._session_class(**options), retry_s, proxy)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._sender.close()

    # Queries

    async def attribute(
        self, index: str, prompt: str | None = None, completion: str | None = None, **options: Any
    ) -> AttributeResponse:
        """Finds the training documents that made the model say `completion` after `prompt`, or the turns of a chat.

        Args:
            index: Name of the index.
            prompt: Text before the completion; it may be empty.
            completion: Text to explain, usually with a space at its beginning. By default the model generates it.
            options: Further fields of `AttributeRequest`, such as `join`, `top_k`, `direction`, `filter`, `rescore` and
                `timeout_s`, and `messages`, a chat instead of prompt and completion.

        Returns:
            The documents in the order of their influence, with scores and, unless `include` says otherwise, texts. Its
            `warnings` tell what was probably not meant, such as a completion without its leading space; they are also
            logged.

        Raises:
            InvalidInput: A field is wrong, or the text is too long for the model (`TooLong`).
            IndexNotFound: There is no index of this name, or none for this API key.
            IndexBusy: The index is being built for the first time.
            DeadlineExceeded: There was no answer within `timeout_s` seconds.
        """
        fields: dict[str, Any] = {"index": index, **options}
        fields |= {
            name: text for name, text in (("prompt", prompt), ("completion", completion)) if text is not None
        }
        content = await self._sender.send(
            "POST",
            "/attribute",
            request_body(AttributeRequest, fields),
            is_idempotent=True,
            wait_s=options.get("timeout_s"),
        )
        answer = parse_response(AttributeResponse, content)
        for warning in answer.warnings:
            logger.warning("%s: %s", warning.code, warning.detail)
        return answer

    async def attribute_batch(
        self, queries: Iterable[AttributionQuery | Mapping[str, Any]], *, timeout_s: float | None = None
    ) -> list[AttributeResponse | BergsonError]:
        """Answers up to 256 queries in one call.

        Args:
            queries: Queries, each of which names its index, or their fields.
            timeout_s: Seconds to wait for all answers. By default what the service is set to.

        Returns:
            For each query, in the order of the queries, its answer or the error that it met.

        Raises:
            InvalidInput: A field is wrong, or there are too many queries.
        """
        body: dict[str, Any] = {"queries": [request_body(ServiceQuery, query) for query in queries]}
        if timeout_s is not None:
            body["timeout_s"] = timeout_s
        content = await self._sender.send(
            "POST", "/attribute/batch", body, is_idempotent=True, wait_s=timeout_s
        )
        return parse_answers(content)

    # Indexes

    async def build(
        self, name: str, *, wait: bool = False, on_progress: ProgressListener | None = None, **spec: Any
    ) -> JobRecord:
        """Queues the build of an index.

        Args:
            name: Name of the index: lower-case letters, digits, `-` and `_`.
            wait: Whether to wait until the job has succeeded.
            on_progress: Called with the progress of the job while `wait` waits for it.
            spec: Fields of `BuildSpec`: `model`, `dataset` or `documents`, `columns`, `preset`, `gradients`, …

        Returns:
            The queued job, or with `wait` the job that has succeeded.

        Raises:
            IndexExists: An index of this name is published or being built.
            InvalidInput: A field is wrong.
            Cancelled: With `wait`: the job was cancelled.
            BergsonError: With `wait`: what the job failed with.
        """
        body = request_body(IndexRequest, {"name": name, **spec})
        return await self._submit("/index", body, wait, on_progress)

    async def append(
        self, name: str, *, wait: bool = False, on_progress: ProgressListener | None = None, **spec: Any
    ) -> JobRecord:
        """Queues a job that adds documents to an index.

        Args:
            name: Name of the index.
            wait: Whether to wait until the job has succeeded.
            on_progress: Called with the progress of the job while `wait` waits for it.
            spec: Fields of `AppendSpec`: `dataset` or `documents`.

        Returns:
            The queued job, or with `wait` the job that has succeeded.

        Raises:
            IndexNotFound: There is no index of this name.
            IdsExist: The index has documents of these ids; `ids` lists them.
            IndexBusy: Another job is changing the index.
            InvalidInput: A field is wrong, or differs from how the index was built.
            BergsonError: With `wait`: what the job failed with, or `Cancelled`.
        """
        body = request_body(AppendSpec, spec)
        return await self._submit(f"{_index_path(name)}/documents", body, wait, on_progress)

    async def fit_profile(
        self,
        index: str,
        name: str,
        *,
        wait: bool = False,
        on_progress: ProgressListener | None = None,
        **spec: Any,
    ) -> JobRecord:
        """Queues a job that fits a profile of an index to a task.

        Args:
            index: Name of the index.
            name: Name of the profile, for the field `profile` of a query.
            wait: Whether to wait until the job has succeeded.
            on_progress: Called with the progress of the job while `wait` waits for it.
            spec: Fields of `ProfileSpec`: `queries` or `dataset`, `mixing`.

        Returns:
            The queued job, or with `wait` the job that has succeeded.

        Raises:
            IndexNotFound: There is no index of this name.
            IndexBusy: Another job is changing the index.
            InvalidInput: A field is wrong.
            BergsonError: With `wait`: what the job failed with, or `Cancelled`.
        """
        body = request_body(ProfileSpec, {"name": name, **spec})
        return await self._submit(f"{_index_path(index)}/profiles", body, wait, on_progress)

    async def compact(
        self, name: str, *, wait: bool = False, on_progress: ProgressListener | None = None
    ) -> JobRecord:
        """Queues a job that removes the bytes of documents that were taken down.

        Args:
            name: Name of the index.
            wait: Whether to wait until the job has succeeded.
            on_progress: Called with the progress of the job while `wait` waits for it.

        Returns:
            The queued job, or with `wait` the job that has succeeded.

        Raises:
            IndexNotFound: There is no index of this name.
            IndexBusy: Another job is changing the index.
            BergsonError: With `wait`: what the job failed with, or `Cancelled`.
        """
        return await self._submit(f"{_index_path(name)}/compact", None, wait, on_progress)

    async def estimate(self, *, timeout_s: float = 300.0, **spec: Any) -> Estimate:
        """Estimates what a build would cost: documents, tokens, disk, memory and time.

        Args:
            timeout_s: Seconds to wait for the estimate; a worker tries the build, which takes about a minute.
            spec: The fields that `build` takes.

        Raises:
            InvalidInput: A field is wrong.
            DeadlineExceeded: There was no estimate within `timeout_s` seconds.
        """
        body = request_body(EstimateRequest, {"timeout_s": timeout_s, **spec})
        content = await self._sender.send("POST", "/index/estimate", body, wait_s=timeout_s)
        return parse_response(Estimate, content)

    async def index(self, name: str) -> IndexDetail:
        """Returns the state, counts, sizes and spec of an index.

        Raises:
            IndexNotFound: There is no index of this name.
        """
        return parse_response(IndexDetail, await self._sender.send("GET", _index_path(name)))

    async def indexes(self) -> AsyncIterator[IndexSummary]:
        """Yields all indexes, in the order of their names."""
        async for page in self._sender.iter_pages(IndexPage, "/index"):
            for index in page.items:
                yield index

    async def delete_index(self, name: str) -> None:
        """Deletes an index for good.

        Raises:
            IndexNotFound: There is no index of this name.
            IndexBusy: A job is changing the index.
        """
        await self._sender.send("DELETE", _index_path(name))

    async def document(self, name: str, document_id: str) -> DocumentDetail:
        """Returns a document of the index `name` with its text, metadata and loss.

        Raises:
            IndexNotFound: There is no index of this name.
            DocumentNotFound: The index has no such document, or it was taken down.
        """
        content = await self._sender.send("GET", _document_path(name, document_id))
        return parse_response(DocumentDetail, content)

    async def take_down(self, name: str, document_id: str) -> None:
        """Hides a document of the index `name` from every answer, from now on.

        Raises:
            IndexNotFound: There is no index of this name.
            DocumentNotFound: The index has no such document, or it was taken down already.
        """
        await self._sender.send("DELETE", _document_path(name, document_id))

    # The system

    async def workers(self) -> list[WorkerStatus]:
        """Returns the live workers."""
        return parse_response(WorkerList, await self._sender.send("GET", "/workers")).items

    async def models(self) -> list[ModelSummary]:
        """Returns the models that the live workers hold in memory."""
        return parse_response(ModelList, await self._sender.send("GET", "/models")).items

    async def permissions(self) -> KeyPermissions:
        """Returns what the API key of the client may do: its scope, the indexes it sees, and whether it sees texts."""
        return parse_response(KeyPermissions, await self._sender.send("GET", "/key"))

    async def ready(self) -> Ready:
        """Returns how many workers are alive, provided that the service can work at this moment.

        The request is not repeated.

        Raises:
            Unavailable: Redis does not answer, no worker is alive, or the service is stopping.
        """
        return parse_response(Ready, await self._sender.send("GET", "/readyz", retry_s=0))


def _index_path(name: str) -> str:
    return f"/index/{quote_path_segment(name)}"


def _document_path(name: str, document_id: str) -> str:
    return f"{_index_path(name)}/documents/{quote_path_segment(document_id)}"
