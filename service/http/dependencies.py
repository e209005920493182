"""The types by which a view asks for what it needs: the broker, the settings, the caller, parts of a page.

The functions are coroutines although they await nothing, because FastAPI runs other functions in a thread.
"""

from typing import Annotated

from fastapi import Depends, Header, Path, Query, Request, Response

from bergson_core.schemas.build import NAME_PATTERN
from service.auth.api_keys import Caller
from service.auth.authorization import KeyAuthenticator
from service.auth.rate_limits import RateLimiter
from service.http.job_submitter import JobSubmitter
from service.http.metrics import WebMetrics
from service.http.problems import get_request_id
from service.http.query_handler import QueryHandler
from service.indexes.answer_cache import AnswerCache
from service.queue.broker import Broker
from service.settings import ServiceSettings


async def _get_broker(request: Request) -> Broker:
    return request.app.state.broker


async def _get_settings(request: Request) -> ServiceSettings:
    return request.app.state.settings


async def _get_caller(request: Request) -> Caller:
    return request.state.caller


async def _get_authenticator(request: Request) -> KeyAuthenticator:
    return request.app.state.authenticator


async def _get_rate_limiter(request: Request) -> RateLimiter:
    return request.app.state.rate_limiter


async def _get_metrics(request: Request) -> WebMetrics:
    return request.app.state.metrics


async def _get_request_id(request: Request) -> str:
    return get_request_id(request)


BrokerDep = Annotated[Broker, Depends(_get_broker)]
SettingsDep = Annotated[ServiceSettings, Depends(_get_settings)]
CallerDep = Annotated[Caller, Depends(_get_caller)]
AuthenticatorDep = Annotated[KeyAuthenticator, Depends(_get_authenticator)]
RateLimiterDep = Annotated[RateLimiter, Depends(_get_rate_limiter)]
MetricsDep = Annotated[WebMetrics, Depends(_get_metrics)]
RequestIdDep = Annotated[str, Depends(_get_request_id)]

IndexNamePath = Annotated[
    str, Path(pattern=NAME_PATTERN, description="Name of the index.", examples=["facts"])
]
PageLimitQuery = Annotated[int, Query(ge=1, le=200, description="Most items on a page.")]

_IdempotencyKeyHeader = Annotated[
    str | None,
    Header(
        pattern=r"^[\x21-\x7e]{1,255}$",
        description="A request with the same key, path and body gets the same job again, for as long as the job can be "
        "read, so that the request is safe to repeat.",
    ),
]


async def _make_query_handler(request: Request) -> QueryHandler:
    state = request.app.state
    uses_cache = "no-cache" not in request.headers.get("Cache-Control", "")
    return QueryHandler(
        broker=state.broker,
        settings=state.settings,
        cache=state.cache if uses_cache else AnswerCache(0),
        metrics=state.metrics,
        caller=request.state.caller,
        request_id=get_request_id(request),
    )


async def _make_job_submitter(
    request: Request,
    response: Response,
    broker: BrokerDep,
    caller: CallerDep,
    request_id: RequestIdDep,
    idempotency_key: _IdempotencyKeyHeader = None,
) -> JobSubmitter:
    root_path = request.scope.get("root_path", "")
    return JobSubmitter(broker, caller, request_id, idempotency_key, response, root_path)


QueryHandlerDep = Annotated[QueryHandler, Depends(_make_query_handler)]
JobSubmitterDep = Annotated[JobSubmitter, Depends(_make_job_submitter)]
