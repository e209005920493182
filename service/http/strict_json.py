"""Reads request bodies as JSON in the strict sense of RFC 8259: UTF-8, no NaN or Infinity, 64-bit numbers.

Other readers change larger numbers without notice. A router reads its bodies strictly with

    router = APIRouter(route_class=StrictJsonRoute)
"""

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

_MAY_OVERFLOW = re.compile(rb"\d{19}|[eE]\+?\d{3}")
"""Found in every body with a number beyond 64 bits; only such bodies are read a second time, by a slower parser."""
_JSON_TYPE = re.compile(r"application/([\w.+-]+\+)?json\s*(;.*)?", re.IGNORECASE)


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
        value = from_json(body, allow_inf_nan=False)
        if _MAY_OVERFLOW.search(body):
            json.loads(body, parse_int=_parse_int64, parse_float=_parse_finite_float)
    except ValueError as error:
        raise json.JSONDecodeError(str(error), "", 0) from None
    return value


class _StrictRequest(Request):
    async def body(self) -> bytes:
        body = await super().body()
        if body and not _JSON_TYPE.fullmatch(self.headers.get("content-type", "")):
            raise HTTPException(415, "expected a JSON body with the header Content-Type: application/json")
        return body

    async def json(self) -> Any:
        return parse_strict_json(await self.body())


class StrictJsonRoute(APIRoute):
    """A route whose body has to be declared as JSON and is read by `parse_strict_json`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return handle_strictly
