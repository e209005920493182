"""One query for several indexes, whose answers stand side by side."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from fastapi.concurrency import run_in_threadpool

from service.http.bodies.strict_json import StrictJsonRoute
from service.http.dependencies import QueryHandlerDep, RateLimiterDep
from service.http.query_handler import run_while_connected
from service.indexes import catalog
from service.openapi import examples
from service.openapi.metadata import (
    INDEXES_FIELD_ERROR,
    QUERY_ERRORS,
    problem_responses,
    success_response,
)
from service.schemas import BatchResponse, SideBySideRequest

router = APIRouter(prefix="/attribute", tags=["Attribution"], route_class=StrictJsonRoute)

_QUERIES: dict[str, Any] = {
    "corpora": {"summary": "Two corpora of one model", "value": examples.SIDE_BY_SIDE_REQUEST}
}


@router.post(
    "/indexes",
    summary="Query several indexes",
    responses=success_response(
        200, "For each index, in order, an answer or a problem.", examples.BATCH_RESPONSE
    )
    | problem_responses(*QUERY_ERRORS, refused=INDEXES_FIELD_ERROR),
)
async def attribute_indexes(
    body: Annotated[SideBySideRequest, Body(openapi_examples=_QUERIES)],
    request: Request,
    handler: QueryHandlerDep,
    rate_limiter: RateLimiterDep,
) -> BatchResponse:
    """Asks 2 to 16 indexes the same query, and returns their answers side by side.

    All fields are those of `POST /attribute`, with `indexes` in place of `index`. Each answer has its own scores,
    percentiles, strengths and notice. The answers are not merged, because the scores of different indexes have
    different scales: `strength` and `notice` say which index has documents that stand out. For the mean over
    checkpoints of a run, build one index with `models`.

    If an index does not exist, or the API key may not see it, the whole request is refused. An error that concerns one
    index alone, such as a metadata column that it does not keep, is a problem in its place. Each index counts as a
    call.
    """
    queries, timeout_s = body.queries(), handler.settings.resolve_timeout_s(body.timeout_s)
    for query in queries:
        handler.restrict_to_permissions(query)
        await run_in_threadpool(catalog.require_index, handler.settings.indexes_dir, query.index)
    extra_calls = sum(query.extra_calls for query in queries)
    await rate_limiter.count_calls(handler.caller, len(queries) - 1 + extra_calls)
    work = handler.answer_batch(queries, timeout_s, "interactive")
    return BatchResponse(results=await run_while_connected(request, work))
