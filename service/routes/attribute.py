"""Attribution: which training samples made the model say that?"""

import asyncio
import time
from collections.abc import Coroutine, Iterable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Body, Request

from bergson_core.errors import BergsonError
from service.http.dependencies import RateLimiterDep, QueryHandlerDep
from service.http.problems import ProblemDetails, make_problem
from service.http.query_handler import run_while_connected
from service.http.strict_json import StrictJsonRoute
from service.openapi import examples
from service.openapi.metadata import BATCH_FIELD_ERROR, QUERY_FIELD_ERROR, success_response, problem_responses
from service.schemas import AttributeRequest, AttributeResponse, BatchRequest, BatchResponse
from worker.messages import ServiceQuery

router = APIRouter(prefix="/attribute", tags=["Attribution"], route_class=StrictJsonRoute)

_BODIES: dict[str, Any] = {
    "proponents": {"summary": "What made the model say it", "value": examples.ATTRIBUTE_REQUEST},
    "both": {"summary": "What spoke for it and against it", "value": examples.ATTRIBUTE_BOTH},
    "filtered": {"summary": "Among some documents only", "value": examples.ATTRIBUTE_FILTERED},
    "generated": {"summary": "What the model says by itself", "value": examples.ATTRIBUTE_GENERATED},
    "verified": {"summary": "With the best of them unlearned", "value": examples.ATTRIBUTE_VERIFIED},
    "parts": {"summary": "Which tokens and modules of a sample it was", "value": examples.ATTRIBUTE_PARTS},
    "span": {"summary": "A part of what it said", "value": examples.ATTRIBUTE_SPAN},
}
_BATCHES: dict[str, Any] = {"two": {"summary": "Two questions", "value": examples.BATCH_REQUEST}}
T = TypeVar("T")


_ERRORS = (
    "index_not_found",
    "index_busy",
    "invalid_input",
    "too_long",
    "body_too_large",
    "unsupported_media_type",
    "queue_full",
    "index_corrupt",
    "no_worker",
    "redis_unavailable",
    "deadline_exceeded",
)
_AT_ONCE = 64
"""Queries of a batch that are asked at once; the others wait here, so that a batch does not fill the queue."""


@router.post(
    "",
    summary="Ask an index",
    responses=success_response(200, "The samples, most influential first.", examples.VERIFIED_RESPONSE)
    | problem_responses(*_ERRORS, refused=QUERY_FIELD_ERROR),
)
async def attribute(
    body: Annotated[AttributeRequest, Body(openapi_examples=_BODIES)],
    request: Request,
    asking: QueryHandlerDep,
    limits: RateLimiterDep,
) -> AttributeResponse:
    """Which training samples made the model say `completion` after `prompt`?

    The worker takes the gradient of the completion's loss and compares it with that of every sample in the
    index. Proponents (high scores) made the completion more likely, opponents (low scores) less likely. Mind
    the space: a completion usually starts with one. Without a completion the model says one, which is then explained.
    Too long for the model is an error, never cut silently.

    With `verify` the best samples are unlearned for real, one by one, beside random ones: how much less likely does
    that make the completion? It takes longer, gives way to other questions, and counts as a call for each sample.

    `percentile` says how a result stands among random samples of the index, and `notice` where none stands out. With
    `tokens` and `modules` in `include` a score is taken apart into what each token and each module of the sample adds.

    The same question to an index that has not changed is answered from memory, in a millisecond; with the header
    `Cache-Control: no-cache` it is asked anew.
    """
    query, timeout_s = body.query(), asking.settings.resolve_timeout_s(body.timeout_s)
    await limits.count_calls(asking.caller, query.max_unlearned_documents)
    work = asking.answer(query, timeout_s)
    return AttributeResponse.from_answer(await run_while_connected(request, work), asking.request_id)


@router.post(
    "/batch",
    summary="Ask many questions",
    responses=success_response(200, "An answer or a problem for each, in order.", examples.BATCH_RESPONSE)
    | problem_responses(
        "invalid_input", "body_too_large", "unsupported_media_type", "redis_unavailable", refused=BATCH_FIELD_ERROR
    ),
)
async def attribute_batch(
    body: Annotated[BatchRequest, Body(openapi_examples=_BATCHES)],
    request: Request,
    asking: QueryHandlerDep,
    limits: RateLimiterDep,
) -> BatchResponse:
    """Up to 256 questions, answered together; each counts as a call, and each sample to verify as one more.

    Questions that somebody asks by itself go first, so that a batch makes nobody wait for long.
    """
    timeout_s = asking.settings.resolve_timeout_s(body.timeout_s)
    await limits.count_calls(
        asking.caller, len(body.queries) - 1 + sum(one.max_unlearned_documents for one in body.queries)
    )
    ends, turns = time.monotonic() + timeout_s, asyncio.Semaphore(_AT_ONCE)

    async def one(query: ServiceQuery) -> AttributeResponse | ProblemDetails:
        async with turns:
            try:
                left_s = max(0.001, ends - time.monotonic())
                answer = await asking.answer(query, left_s, "batch")
                return AttributeResponse.from_answer(answer, asking.request_id)
            except BergsonError as error:
                return make_problem(error.code, str(error), asking.request_id)

    return BatchResponse(results=await run_while_connected(request, _gathered(map(one, body.queries))))


async def _gathered(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What each returns, in order; one that fails, or a cancellation of all, cancels the others."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one) for one in work]
    return [task.result() for task in tasks]
