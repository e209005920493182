"""What a client does in the world: send a request, read a stream, wait.

`service.client` is written once, as coroutines over `Io`. Over `AsyncIo` they run in an event loop. Over `BlockingIo`
nothing in them ever waits for one, so that `run` has each of them done in a single step, without a loop or a thread.
"""

import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, TypeVar

import anyio
import httpx

T = TypeVar("T")
Stream = AbstractAsyncContextManager[tuple[httpx.Response, AsyncIterator[bytes]]]


class Io(Protocol):
    @property
    def http(self) -> httpx.Client | httpx.AsyncClient:
        """Makes requests with the client's address, headers and limits of time."""
        ...

    async def send(self, request: httpx.Request) -> httpx.Response:
        """The whole answer."""
        ...

    def stream(self, request: httpx.Request) -> Stream:
        """The answer, read where it is an error, and the pieces of its body otherwise."""
        ...

    async def sleep(self, seconds: float) -> None: ...

    async def close(self) -> None: ...


class AsyncIo:
    def __init__(self, http: httpx.AsyncClient):
        self.http = http

    async def send(self, request: httpx.Request) -> httpx.Response:
        return await self.http.send(request)

    @asynccontextmanager
    async def stream(
        self, request: httpx.Request
    ) -> AsyncIterator[tuple[httpx.Response, AsyncIterator[bytes]]]:
        response = await self.http.send(request, stream=True)
        try:
            if not response.is_success:
                await response.aread()
            yield response, response.aiter_bytes()
        finally:
            await response.aclose()

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    async def close(self) -> None:
        await self.http.aclose()


class BlockingIo:
    def __init__(self, http: httpx.Client):
        self.http = http

    async def send(self, request: httpx.Request) -> httpx.Response:
        return self.http.send(request)

    @asynccontextmanager
    async def stream(
        self, request: httpx.Request
    ) -> AsyncIterator[tuple[httpx.Response, AsyncIterator[bytes]]]:
        response = self.http.send(request, stream=True)
        try:
            if not response.is_success:
                response.read()
            yield response, _as_async(response.iter_bytes())
        finally:
            response.close()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  # to wait is what a blocking client is to do

    async def close(self) -> None:
        self.http.close()


async def _as_async(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine over `BlockingIo` returns."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise AssertionError("a coroutine over BlockingIo has waited for an event loop")


def iterate(items: AsyncIterator[T]) -> Iterator[T]:
    """What an asynchronous generator over `BlockingIo` yields; it ends with this one, so that nothing stays open."""
    try:
        while True:
            try:
                item = run(_next(items))
            except StopAsyncIteration:
                return
            yield item
    finally:
        run(_close(items))


async def _next(items: AsyncIterator[T]) -> T:
    return await anext(items)


async def _close(items: Any) -> None:
    await items.aclose()
