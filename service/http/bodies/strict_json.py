"""Reads request bodies as JSON in the strict sense of RFC 8259: UTF-8, no NaN or Infinity, 64-bit numbers.

Other readers change larger numbers without notice. A router reads its bodies strictly with

    router = APIRouter(route_class=StrictJsonRoute)

Such a route keeps one request from holding up the others. The caller's scope is checked before a byte of the body is
read; the size of the body is limited by `service.http.bodies.body_limits`, and the time that it may take to arrive by
`service.http.bodies.slow_bodies`. A large body is parsed and validated in a thread, one after another.
"""

import asyncio
import gc
import json
import re
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from bergson_core.errors import Cancelled
from bergson_core.schemas.inline_values import PARSED_JSON
from service.auth.authorization import authorize
from service.http.bodies.body_limits import MAX_ELEMENTS, has_too_many_elements, max_body_bytes

_LARGE_BYTES: Final = 2**16
"""Bodies of more bytes are parsed in a thread."""
_MAY_OVERFLOW = re.compile(rb"\d{19}|[eE]\+?\d{3}")
"""Found in every body with a number beyond 64 bits; only such bodies are read a second time, by a slower parser."""
_JSON_TYPE = re.compile(r"application/([\w.+-]+\+)?json\s*(;.*)?", re.IGNORECASE)

_parser_thread = ThreadPoolExecutor(1, "json")
"""Where large bodies are parsed. There is one thread, so that only one of them is in memory as Python objects."""


def _parse_int64(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise ValueError("an integer is beyond 64 bits")
    return int(text)


def _parse_finite_float(text: str) -> float:
    if abs(value := float(text)) == float("inf"):
        raise ValueError("a number is beyond 64-bit floating point")
    return value


def parse_strict_json(body: bytes) -> Any:
    """Returns the value of a JSON text, which may be nested up to 200 deep.

    Raises:
        json.JSONDecodeError: `body` is not strict JSON.
    """
    try:
        if _MAY_OVERFLOW.search(body):
            # What the slow parser returns is dropped before the other one begins, which halves the memory.
            json.loads(body, parse_int=_parse_int64, parse_float=_parse_finite_float)
        return from_json(body, allow_inf_nan=False)
    except RecursionError:
        raise json.JSONDecodeError("expected at most 200 levels of nesting", "", 0) from None
    except ValueError as error:
        raise json.JSONDecodeError(str(error), "", 0) from None


class _ReadRequest(Request):
    """A request whose body has been read; `value` is what the body describes, and None without a body."""

    value: Any = None

    async def body(self) -> bytes:
        return b"" if self.value is None else b"see `value`"

    async def json(self) -> Any:
        return self.value


class StrictJsonRoute(APIRoute):
    """A route whose body has to be declared as JSON and is read by `parse_strict_json`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        adapter: TypeAdapter[Any] = TypeAdapter(self.body_field.field_info.annotation or Any)

        async def handle_strictly(request: Request) -> Response:
            await authorize(request)
            read_request = _ReadRequest(request.scope, request.receive)
            if body := await _read_body(request, max_body_bytes(self.name, request.app.state.settings)):
                read_request.value = await _parse(body, adapter)
            del body
            return await handle(read_request)

        return handle_strictly


async def _read_body(request: Request, max_bytes: int) -> bytes:
    """Returns the body of a request, which may be empty.

    Raises:
        HTTPException: The body is too large, or it is not declared as JSON.
        Cancelled: The client has closed the connection.
    """
    too_large = HTTPException(
        413, f"expected a body of at most {max_bytes:,} bytes for this call", {"Connection": "close"}
    )
    # `BodyLimitMiddleware` has refused lengths that are no number of a sensible size.
    if int(request.headers.get("content-length") or 0) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > max_bytes:
                raise too_large
    except ClientDisconnect:
        raise Cancelled("the client has closed the connection") from None
    if body and not is_json_type(request.headers.get("content-type", "")):
        raise HTTPException(415, "expected a JSON body with the header Content-Type: application/json")
    return bytes(body)


def is_json_type(content_type: str) -> bool:
    """Returns whether a header `Content-Type` declares JSON."""
    return _JSON_TYPE.fullmatch(content_type) is not None


async def _parse(body: bytes, adapter: TypeAdapter[Any]) -> Any:
    """Returns what a body describes.

    Raises:
        HTTPException: It has too many elements.
        RequestValidationError: It is not JSON, or a field is wrong.
    """
    if len(body) <= _LARGE_BYTES:
        return _parse_now(body, adapter)
    return await asyncio.get_running_loop().run_in_executor(_parser_thread, _parse_large, body, adapter)


def _parse_large(body: bytes, adapter: TypeAdapter[Any]) -> Any:
    """Does what `_parse_now` does, without the garbage collector, which would look at all new objects many times."""
    gc.disable()
    try:
        return _parse_now(body, adapter)
    finally:
        gc.enable()


def _parse_now(body: bytes, adapter: TypeAdapter[Any]) -> Any:
    if has_too_many_elements(body):
        raise HTTPException(
            413, f"expected a body of at most {MAX_ELEMENTS:,} commas, lists and objects, texts not counted"
        )
    try:
        return adapter.validate_python(parse_strict_json(body), context=PARSED_JSON)
    except json.JSONDecodeError as error:
        details = {"type": "json_invalid", "loc": ("body",), "msg": "", "ctx": {"error": error.msg}}
        raise RequestValidationError([details]) from None
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        located = [_without_frames(details) for details in errors]
        del errors
    raise RequestValidationError(located)


def _without_frames(details: Any) -> dict[str, Any]:
    """Returns an error without the exception that a validator raised.

    Its traceback leads back to what was parsed, in a circle that only the garbage collector would end, after many
    requests and for all of them at once.
    """
    context = {name: value for name, value in details.get("ctx", {}).items() if name != "error"}
    return {**details, "loc": ("body", *details["loc"]), "ctx": context}
