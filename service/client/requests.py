"""How a client calls: the request, its repetition, the pages of a list. What it calls is in `service.client`."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from bergson_core.errors import BergsonError, InvalidInput, Unavailable
from bergson_core.schemas.base import Spec
from service.client.errors_and_events import (
    Event,
    EventReader,
    RetryBudget,
    connection_error,
    error_from_problem,
    error_from_response,
    was_sent,
)
from service.client.transport import AsyncIo, Io
from service.schemas import IndexPage, JobPage
from service.settings import ClientSettings

_GRACE_S = 10.0
"""By so much does the client wait longer for an answer than the service does."""

M = TypeVar("M", bound=BaseModel)
Page = TypeVar("Page", IndexPage, JobPage)


class RequestSender:
    """The service at `url` (or `BERGSON_URL`, or this machine's), asked with `api_key` (or `BERGSON_API_KEY`).

    An answer is waited for `timeout_s` seconds, or as long as a call says. What the service refuses for now (429, 503)
    is tried again for up to `retry_s` seconds, as late as it asks; so is a call that got no answer, if it never
    arrived or does no harm twice. `options` are httpx's: `verify` for a certificate authority, `transport`, ...
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 60.0,
        retry_s: float = 60.0,
        **options: Any,
    ):
        settings = ClientSettings()
        key = api_key or (settings.api_key and settings.api_key.get_secret_value())
        self._io = self._open(
            base_url=url or settings.url,
            headers=options.pop("headers", {}) | ({"Authorization": f"Bearer {key}"} if key else {}),
            timeout=timeout_s,
            **options,
        )
        self._retry_s = retry_s

    @staticmethod
    def _open(**options: Any) -> Io:
        return AsyncIo(httpx.AsyncClient(**options))

    async def close(self) -> None:
        """Closes the connections."""
        await self._io.close()

    async def _pages(self, page: type[Page], path: str, **query: str | None) -> AsyncIterator[Page]:
        params = {name: value for name, value in query.items() if value is not None}
        while True:
            found = parse_response(page, await self._send("GET", path, params=params))
            yield found
            if found.next_cursor is None:
                return
            params["cursor"] = found.next_cursor

    async def _send(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        repeatable: bool | None = None,
        wait_s: float | None = None,
        patience: RetryBudget | None = None,
        **options: Any,
    ) -> bytes:
        """The body of the answer, where the call succeeds; it is made again while there is reason and `patience`."""
        if wait_s is not None:
            options["timeout"] = wait_s + _GRACE_S
        try:
            request = self._io.http.build_request(method, path, json=body, **options)
        except (ValueError, TypeError) as error:  # NaN; dates
            raise InvalidInput(f"expected what JSON can say: {error}") from None
        patience = patience or RetryBudget(self._retry_s)
        while True:
            try:
                response = await self._io.send(request)
            except httpx.TransportError as failure:
                error = connection_error(failure)
                again = isinstance(error, Unavailable) and (
                    repeatable or method == "GET" or not was_sent(failure)
                )
            else:
                if response.is_success:
                    return response.content
                error = error_from_response(response)
                again = isinstance(error, Unavailable)
            if not again:
                raise error
            await self._pause(patience, error)

    async def _listen(self, path: str, last_id: str, patience: RetryBudget) -> AsyncGenerator[Event, None]:
        """The events after `last_id`, for as long as the connection holds. Raises the error that one of them is."""
        headers = {"Last-Event-ID": last_id} if last_id else None
        request, reader = self._io.http.build_request("GET", path, headers=headers), EventReader()
        async with self._io.stream(request) as (response, pieces):
            if not response.is_success:
                raise error_from_response(response)
            async for piece in pieces:
                patience.renew()
                for event in reader.feed(piece):
                    if event.name == "problem":
                        raise error_from_problem(json.loads(event.data))
                    yield event

    async def _pause(self, patience: RetryBudget, error: BergsonError) -> None:
        """Returns when it may be tried again. Raises `error` where there is no more time for that."""
        pause_s = patience.pause_s(error.wait_s if isinstance(error, Unavailable) else 0)
        if pause_s is None:
            raise error
        await self._io.sleep(pause_s)


def request_body(schema: type[Spec], fields: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    """What `fields` say, as JSON has it. Raises `InvalidInput` where `schema` refuses them."""
    if isinstance(fields, BaseModel):
        fields = fields.model_dump(exclude_unset=True)
    return schema.model_validate(fields).model_dump(exclude_unset=True)


def parse_response(schema: type[M], content: bytes | str) -> M:
    """The answer as `schema`; fields that a later service adds are passed over."""
    try:
        return schema.model_validate_json(content, extra="ignore")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BergsonError(
            f"an answer cannot be read, is the service of this version? {schema.__name__}: {first['msg']}"
        ) from None


def quote_path_segment(text: str) -> str:
    """`text` as one part of a path; dots are encoded too, since a part of dots alone would mean another path."""
    return quote(text, safe="").replace(".", "%2E")
