"""Attribution: which training samples made the model say that?"""

from typing import Annotated, Any

from fastapi import APIRouter, Body

from bergson_core.errors import Forbidden
from bergson_core.specs import AttributionQuery
from bergson_core.takedowns import TakedownLog
from service import catalog, examples
from service.dependencies import BrokerDep, CallerDep, RequestIdDep, SettingsDep
from service.documentation import IN_QUESTION, answered, problems
from service.keys import Caller
from service.schemas import AttributeRequest, AttributeResponse
from service.strict_json import StrictJsonRoute

router = APIRouter(prefix="/attribute", tags=["Attribution"], route_class=StrictJsonRoute)

_BODIES: dict[str, Any] = {
    "proponents": {"summary": "What made the model say it", "value": examples.ATTRIBUTE_REQUEST},
    "both": {"summary": "What spoke for it and against it", "value": examples.ATTRIBUTE_BOTH},
    "filtered": {"summary": "Among some documents only", "value": examples.ATTRIBUTE_FILTERED},
}


def _allowed(query: AttributionQuery, caller: Caller) -> AttributionQuery:
    """The query as `caller` may ask it: without text there is no metadata either, nor a filter that finds it out."""
    if not caller.sees(query.index):
        raise catalog.unknown(query.index)
    if caller.text:
        return query
    if query.filter is not None:
        raise Forbidden("this key sees no metadata: ask without `filter`")
    return query.model_copy(update={"include": ()})


@router.post(
    "",
    summary="Ask an index",
    responses=answered(200, "The samples, most influential first.", examples.ATTRIBUTE_RESPONSE)
    | problems(
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
        refused=IN_QUESTION,
    ),
)
async def attribute(
    body: Annotated[AttributeRequest, Body(openapi_examples=_BODIES)],
    broker: BrokerDep,
    settings: SettingsDep,
    caller: CallerDep,
    request_id: RequestIdDep,
) -> AttributeResponse:
    """Which training samples made the model say `completion` after `prompt`?

    The worker takes the gradient of the completion's loss and compares it with that of every sample in the
    index. Proponents (high scores) made the completion more likely, opponents (low scores) less likely. Mind
    the space: a completion usually starts with one. Too long for the model is an error, never cut silently.
    """
    query = _allowed(body.query(), caller)
    timeout_s = settings.timeout(body.timeout_s)
    log = TakedownLog(settings.indexes_dir / body.index)
    log.skip()
    answer = await broker.ask(query, request_id, timeout_s)
    gone = {
        line["id"] for line in log.new()
    }  # since the question was asked: the worker may not have seen them
    return AttributeResponse.of(answer.without(gone), request_id)
