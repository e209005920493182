"""Does what a client does in the outside world: it sends requests, reads event streams and waits.

`AsyncClient` is written once, as coroutines over an `HttpSession`. Over an `AsyncSession` they run in an event loop.
The coroutines of a `BlockingSession` block instead of waiting for an event loop, so that a coroutine over it never
suspends: `run_without_event_loop` completes it in a single step, and `Client` needs neither a loop nor a thread.
"""

import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, Protocol, TypeVar

import anyio
import httpx
from httpx_sse import ServerSentEvent, aconnect_sse, connect_sse

T = TypeVar("T")
EventStream = tuple[httpx.Response, AsyncIterator[ServerSentEvent]]
"""A response and the events of its body. The body of an unsuccessful response has been read."""


class HttpSession(Protocol):
    """The operations that a client needs; its constructor takes the options of `httpx.Client`."""

    def __init__(self, **options: Any): ...

    @property
    def http(self) -> httpx.Client | httpx.AsyncClient:
        """The client of httpx, which builds requests with its address, headers and timeout."""
        ...

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Sends `request` and returns the response with its whole body."""
        ...

    def stream_events(self, path: str, headers: dict[str, str]) -> AbstractAsyncContextManager[EventStream]:
        """Opens the server-sent events of `path`, and closes the connection when the context ends."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        ...

    async def close(self) -> None:
        """Closes all connections."""
        ...


class AsyncSession:
    """An `HttpSession` whose coroutines run in an event loop."""

    def __init__(self, **options: Any):
        self.http = httpx.AsyncClient(**options)

    async def send(self, request: httpx.Request) -> httpx.Response:
        return await self.http.send(request)

    @asynccontextmanager
    async def stream_events(self, path: str, headers: dict[str, str]) -> AsyncIterator[EventStream]:
        async with aconnect_sse(self.http, "GET", path, headers=headers) as source:
            if not source.response.is_success:
                await source.response.aread()
            async with aclosing(source.aiter_sse()) as events:
                yield source.response, events

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    async def close(self) -> None:
        await self.http.aclose()


class BlockingSession:
    """An `HttpSession` whose coroutines block, so that they complete without an event loop."""

    def __init__(self, **options: Any):
        self.http = httpx.Client(**options)

    async def send(self, request: httpx.Request) -> httpx.Response:
        return self.http.send(request)

    @asynccontextmanager
    async def stream_events(self, path: str, headers: dict[str, str]) -> AsyncIterator[EventStream]:
        with connect_sse(self.http, "GET", path, headers=headers) as source:
            if not source.response.is_success:
                source.response.read()
            yield source.response, _as_async_iterator(source.iter_sse())

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  # a blocking client has to block

    async def close(self) -> None:
        self.http.close()


async def _as_async_iterator(items: Iterable[T]) -> AsyncIterator[T]:
    for item in items:
        yield item


def run_without_event_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Returns the result of a coroutine over a `BlockingSession`."""
    try:
        coroutine.send(None)
    except StopIteration as completed:
        return completed.value
    coroutine.close()
    raise AssertionError("a coroutine over a BlockingSession has waited for an event loop")


def iterate_without_event_loop(generator: AsyncIterator[T]) -> Iterator[T]:
    """Yields the items of an asynchronous generator over a `BlockingSession`.

    The generator is closed when the iteration ends, however it ends, so that no connection stays open.
    """
    try:
        while True:
            try:
                item = run_without_event_loop(_next_item(generator))
            except StopAsyncIteration:
                return
            yield item
    finally:
        run_without_event_loop(_close(generator))


async def _next_item(generator: AsyncIterator[T]) -> T:
    return await anext(generator)


async def _close(generator: Any) -> None:
    await generator.aclose()
