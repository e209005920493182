"""Totals: the influence of all documents on a completion or a behaviour, summed by a metadata column."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request

from bergson_core.schemas.totals.spec import CALLS_OF_TOTALS
from service.http.bodies.strict_json import StrictJsonRoute
from service.http.dependencies import IndexNamePath, QueryHandlerDep, RateLimiterDep
from service.http.query_handler import run_while_connected
from service.openapi import totals_examples
from service.openapi.metadata import QUERY_ERRORS, TOTALS_FIELD_ERROR, problem_responses, success_response
from service.schemas import TotalsRequest, TotalsResponse
from worker.messages import ServiceQuery

router = APIRouter(prefix="/index/{name}", tags=["Attribution"], route_class=StrictJsonRoute)

_TOTALS: dict[str, Any] = {
    "completion": {"summary": "Of a completion, by source", "value": totals_examples.TOTALS_REQUEST},
    "contrast": {"summary": "Why this rather than that", "value": totals_examples.TOTALS_CONTRAST},
    "behaviour": {"summary": "Of a behaviour that is kept", "value": totals_examples.TOTALS_BEHAVIOUR},
}


@router.post(
    "/totals",
    summary="Sum influence by a metadata column",
    responses=success_response(200, "The groups, the largest sum first.", totals_examples.TOTALS_RESPONSE)
    | problem_responses(
        *QUERY_ERRORS,
        refused=TOTALS_FIELD_ERROR,
    ),
)
async def influence_totals(
    name: IndexNamePath,
    body: Annotated[TotalsRequest, Body(openapi_examples=_TOTALS)],
    request: Request,
    handler: QueryHandlerDep,
    rate_limiter: RateLimiterDep,
) -> TotalsResponse:
    """Scores every document of the index, and sums the scores by the values of a metadata column: which source drives
    this answer?

    The question is that of `POST /attribute`: a prompt and a completion, a chat, or a behaviour, with `instead_of`,
    `span`, `join`, `objective`, `between`, `profile` and `filter`. Other fields of a query are refused.

    Scores are exact scores of the rows of the index. Sums over many noisy scores are mostly noise. So scores are moved
    towards their median by `threshold` times their noise, and are 0 within that distance. `"threshold": 0` sums the
    unchanged scores. Sums may be positive or negative and grow with the number of documents; the mean does not.
    Documents without a value are a group of their own.

    `interval` contains the mean of the sum over all random projections in nine of ten cases. All documents share the
    projections, so the interval does not follow from the intervals of the scores.

    A worker reads all rows of the index once or twice, and answers other queries in between. The request counts as ten
    calls. A key that sees no texts may not make it, because the values of a column are metadata.
    """
    query = ServiceQuery(index=name, **body.question())
    timeout_s = handler.settings.resolve_timeout_s(body.timeout_s)
    await rate_limiter.count_calls(handler.caller, CALLS_OF_TOTALS - 1)
    work = handler.sum_scores(query, body.spec(), timeout_s)
    totals = await run_while_connected(request, work)
    return TotalsResponse(**dict(totals), request_id=handler.request_id)
