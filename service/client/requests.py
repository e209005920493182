"""How a client calls the service: it builds requests, repeats them, and reads pages and event streams.

The methods that say what is called are in `service.client.async_client`.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from httpx_sse import ServerSentEvent, SSEError
from pydantic import BaseModel, ValidationError

from bergson_core.errors import BergsonError, InvalidInput, Unavailable
from bergson_core.schemas.base import Spec
from service.client.errors import (
    error_from_failure,
    error_from_problem,
    error_from_response,
    may_have_arrived,
)
from service.client.proxies import ProxyInUse
from service.client.retries import RetryBudget
from service.client.sessions import HttpSession
from service.index_schemas import IndexPage
from service.schemas import JobPage
from service.settings import DEFAULT_URL, ClientSettings

_GRACE_S = 10.0
"""How much longer than the service itself the client waits for an answer."""

Model = TypeVar("Model", bound=BaseModel)
Page = TypeVar("Page", IndexPage, JobPage)


def connection_options(
    url: str | None, api_key: str | None, timeout_s: float, **options: Any
) -> dict[str, Any]:
    """Returns the options of `httpx.Client` for a client of the service.

    Args:
        url: Address of the service; None takes `BERGSON_URL`, or else port 8000 of this machine.
        api_key: The API key; None takes `BERGSON_API_KEY`, if that is set, and an empty text sends none.
        timeout_s: Seconds to wait for an answer.
        options: Further options of `httpx.Client`.

    Raises:
        InvalidInput: The address cannot be read.
    """
    settings = ClientSettings()
    address = url or settings.url
    try:
        is_address = httpx.URL(address).scheme in ("http", "https") and bool(httpx.URL(address).host)
    except (httpx.InvalidURL, TypeError):
        is_address = False
    if not is_address:
        raise InvalidInput(
            f"expected the address of the service (BERGSON_URL), such as {DEFAULT_URL}, got {str(address)[:200]!r}"
        )
    key = api_key
    if key is None and settings.api_key is not None:
        key = settings.api_key.get_secret_value()
    authorization = {"Authorization": f"Bearer {key}"} if key else {}
    headers = {**options.pop("headers", {}), **authorization}
    return dict(base_url=address, headers=headers, timeout=timeout_s, **options)


class RequestSender:
    """Sends requests over a session, and repeats those that may succeed later, for up to `retry_s` seconds.

    Errors name the `proxy` that the session goes through.
    """

    def __init__(self, session: HttpSession, retry_s: float, proxy: ProxyInUse | None = None):
        self._session = session
        self._retry_s = retry_s
        self._proxy = proxy

    async def close(self) -> None:
        """Closes the connections."""
        await self._session.close()

    async def send(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        is_idempotent: bool = False,
        wait_s: float | None = None,
        retry_s: float | None = None,
        **options: Any,
    ) -> bytes:
        """Returns the body of the answer to a request.

        A request that the service refuses for now (429, 503) is repeated. One that got no answer is repeated when it
        cannot have arrived, or when repeating it does no harm.

        Args:
            method: The HTTP method.
            path: Path of the call, with quoted segments.
            body: JSON to send.
            is_idempotent: Whether the service may safely receive the request twice; true of every GET.
            wait_s: Seconds that the service takes at most; None leaves the client's timeout as it is.
            retry_s: Seconds for which the request is repeated; None takes those of the client.
            options: Further options of `httpx.Client.build_request`.

        Raises:
            InvalidInput: `body` holds what JSON cannot express.
            BergsonError: The error that the service answered, or that there was no answer.
        """
        if wait_s is not None:
            options["timeout"] = wait_s + _GRACE_S
        try:
            request = self._session.http.build_request(method, path, json=body, **options)
        except (ValueError, TypeError) as error:  # NaN; dates
            raise InvalidInput(f"expected values that JSON can express: {error}") from None
        budget = RetryBudget(self._retry_s if retry_s is None else retry_s)
        while True:
            try:
                response = await self._session.send(request)
            except httpx.TransportError as failure:
                error = error_from_failure(failure, self._proxy)
                may_repeat = is_idempotent or method == "GET" or not may_have_arrived(failure)
            else:
                if response.is_success:
                    return response.content
                error, may_repeat = error_from_response(response, self._proxy), True
            if not (may_repeat and isinstance(error, Unavailable)):
                raise error
            await self._pause_or_raise(budget, error)

    async def iter_pages(self, page_class: type[Page], path: str, **query: str | None) -> AsyncIterator[Page]:
        """Yields the pages of a list, one after the other.

        Args:
            page_class: The schema of a page.
            path: Path of the list.
            query: Query parameters; those that are None are left out.
        """
        params = {name: value for name, value in query.items() if value is not None}
        while True:
            page = parse_response(page_class, await self.send("GET", path, params=params))
            yield page
            if page.next_cursor is None:
                return
            params["cursor"] = page.next_cursor

    async def follow_events(self, path: str) -> AsyncGenerator[ServerSentEvent, None]:
        """Yields the server-sent events of a stream until the caller has seen enough.

        A connection that breaks or ends is opened again, and the stream goes on after the last event.

        Raises:
            BergsonError: The error that the service sent as an event or answered, or that it stayed away for longer
                than the client retries.
        """
        last_id, budget = "", RetryBudget(self._retry_s)
        while True:
            failure: BergsonError = Unavailable(f"{path} ended before the job did")
            try:
                async with aclosing(self._read_events(path, last_id, budget)) as events:
                    async for event in events:
                        last_id = event.id
                        yield event
            except httpx.TransportError as error:
                failure = error_from_failure(error, self._proxy)
            except Unavailable as error:
                failure = error
            await self._pause_or_raise(budget, failure)

    async def _read_events(
        self, path: str, last_id: str, budget: RetryBudget
    ) -> AsyncGenerator[ServerSentEvent, None]:
        """Yields the events after `last_id` for as long as one connection holds."""
        headers = {"Last-Event-ID": last_id} if last_id else {}
        async with self._session.stream_events(path, headers) as (response, events):
            if not response.is_success:
                raise error_from_response(response, self._proxy)
            try:
                async for event in events:
                    if event.event == "problem":
                        raise error_from_problem(json.loads(event.data))
                    if event.data:  # httpx-sse also reports the blank line after a comment
                        yield event
            except SSEError as error:
                raise BergsonError(
                    f"expected an event stream of the service at {response.url}: {error}"
                ) from None
            finally:
                # Comments count as well: a job may be quiet for longer than the client retries.
                if response.num_bytes_downloaded:
                    budget.renew()

    async def _pause_or_raise(self, budget: RetryBudget, error: BergsonError) -> None:
        """Waits until the next attempt, or raises `error` when the budget has no time left for one."""
        pause_s = budget.next_pause_s(error.wait_s if isinstance(error, Unavailable) else 0)
        if pause_s is None:
            raise error
        await self._session.sleep(pause_s)


def request_body(schema: type[Spec], fields: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    """Returns `fields` as the JSON body of a request, without the defaults that the caller left out.

    Raises:
        InvalidInput: `schema` refuses the fields.
    """
    if isinstance(fields, BaseModel):
        fields = fields.model_dump(exclude_unset=True)
    return schema.model_validate(fields).model_dump(exclude_unset=True)


def parse_response(schema: type[Model], content: bytes | str) -> Model:
    """Returns an answer as an instance of `schema`; fields that a later version of the service adds are ignored.

    Raises:
        BergsonError: The answer does not fit the schema.
    """
    try:
        return schema.model_validate_json(content, extra="ignore")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BergsonError(
            f"the answer does not fit {schema.__name__}: {first['msg']}; "
            "check that client and service have the same version"
        ) from None


def quote_path_segment(text: str) -> str:
    """Returns `text` quoted as one segment of a path.

    Dots are quoted too, because a segment of dots alone would lead to another path.
    """
    return quote(text, safe="").replace(".", "%2E")
