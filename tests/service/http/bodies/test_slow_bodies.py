"""Bodies have to come at a steady pace, and large ones may not fill the memory together."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from fastapi import HTTPException
from starlette.types import Message, Receive, Scope, Send

from service.http.bodies.slow_bodies import SlowBodyMiddleware
from service.http.connections import PROGRESS_BYTES

TIMEOUT_S = 0.2
LIMIT_BYTES = 4 * PROGRESS_BYTES
"""The bodies of all requests may have eight times as many bytes."""
SCOPE = {"type": "http"}

Source = Callable[[], Coroutine[Any, Any, Message]]


async def send_nothing(message: Message) -> None:
    raise AssertionError(message)


def make_body(*pieces: tuple[float, int], ends: bool = True) -> Source:
    """Returns a `receive` that returns pieces, each after so many seconds and with so many bytes."""
    remaining = list(pieces)

    async def receive() -> Message:
        if not remaining:
            await asyncio.Event().wait()
        pause_s, size = remaining.pop(0)
        await asyncio.sleep(pause_s)
        return {"type": "http.request", "body": size * b" ", "more_body": bool(remaining) or not ends}

    return receive


class Reader:
    """An application that reads a body, and then goes on until it is released."""

    def __init__(self, *, is_released: bool = True) -> None:
        self.read_bytes, self.has_read, self.released = 0, asyncio.Event(), asyncio.Event()
        if is_released:
            self.released.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            self.read_bytes += len(message["body"])
            if not message["more_body"]:
                break
        self.has_read.set()
        await self.released.wait()


def guard(app: Any) -> SlowBodyMiddleware:
    return SlowBodyMiddleware(app, TIMEOUT_S, LIMIT_BYTES)


@pytest.mark.parametrize(
    "pieces",
    [
        [(1, 1)],
        [(0, 1), (1, 1)],
        [(0.05, 1)] * 20,
        [(0, PROGRESS_BYTES), *[(0.05, 1)] * 20],
        [(0.05, PROGRESS_BYTES // 5)] * 20,
    ],
    ids=["no byte", "one byte", "bytes", "bytes after a good start", "not enough"],
)
async def test_a_body_that_comes_too_slowly_is_refused(pieces: list[tuple[float, int]]) -> None:
    with pytest.raises(HTTPException, match="BERGSON_CLIENT_TIMEOUT_S") as caught:
        await guard(Reader())(SCOPE, make_body(*pieces, ends=False), send_nothing)
    assert caught.value.status_code == 408
    assert (caught.value.headers or {})["Connection"] == "close"


async def test_a_steady_body_may_take_longer_than_the_timeout() -> None:
    reader = Reader()
    await guard(reader)(SCOPE, make_body(*[(0.05, PROGRESS_BYTES)] * 8), send_nothing)
    assert reader.read_bytes == 8 * PROGRESS_BYTES


async def test_after_the_body_there_is_no_timeout() -> None:
    async def answer_later(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2 * TIMEOUT_S):
                await receive()

    await guard(answer_later)(SCOPE, make_body((0, 1)), send_nothing)


async def test_large_bodies_are_refused_while_others_fill_the_memory() -> None:
    reader = Reader(is_released=False)
    middleware = guard(reader)
    first = asyncio.create_task(middleware(SCOPE, make_body((0, 8 * LIMIT_BYTES)), send_nothing))
    await reader.has_read.wait()
    with pytest.raises(HTTPException, match="memory") as caught:
        await middleware(SCOPE, make_body((0, PROGRESS_BYTES), (0, 2 * PROGRESS_BYTES)), send_nothing)
    assert caught.value.status_code == 429 and int((caught.value.headers or {})["Retry-After"]) >= 1
    reader.released.set()
    await middleware(SCOPE, make_body((0, PROGRESS_BYTES)), send_nothing)
    await first
    assert middleware.large_bytes == 0
    await middleware(SCOPE, make_body((0, 8 * LIMIT_BYTES)), send_nothing)


async def test_small_bodies_are_read_even_then() -> None:
    reader = Reader(is_released=False)
    middleware = guard(reader)
    first = asyncio.create_task(middleware(SCOPE, make_body((0, 8 * LIMIT_BYTES)), send_nothing))
    await reader.has_read.wait()
    second = asyncio.create_task(middleware(SCOPE, make_body((0, PROGRESS_BYTES)), send_nothing))
    await asyncio.sleep(0)
    reader.released.set()
    await asyncio.gather(first, second)


async def test_a_request_that_fails_gives_its_memory_back() -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        raise RuntimeError("no")

    middleware = guard(fail)
    with pytest.raises(RuntimeError):
        await middleware(SCOPE, make_body((0, LIMIT_BYTES)), send_nothing)
    assert middleware.large_bytes == 0
